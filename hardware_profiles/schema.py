"""What a device profile and an engine profile hold: every key, its unit and its range (see docs/devices.md)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hardware_profiles.check import Items, Number, Rule, Table, Text, check

FORMATS = ("fp32", "tf32", "bf16", "fp16", "fp8", "int8", "fp4", "int4")
KINDS = ("gpu", "tpu", "accel", "soc", "phone", "cpu")
GROUPS = ("matmul", "decode_attention", "prefill_attention", "elementwise")
SOURCED = ("memory", "compute", "onchip", "link", "power", "price", "energy")

# Lower bounds a little above zero: one over a denormal is infinite, and no device is that slow.
SHARE = Number(above=1e-4, most=1)
MAYBE = Number(above=1e-6, nullable=True)

TERMS: dict[str, Rule] = {
    "compute": SHARE,
    "memory": SHARE,
    "floor_us": Number(closed=True, most=1e6),
    "overlap_p": Number(above=1, closed=True, most=1e3, infinite=True),
    "quantise": Number(closed=True, most=1e3),
    "depth_us": Number(closed=True, most=1e6),
}
INTERVAL = Items(Number(closed=True, infinite=True), length=2)
FITTED = Table(TERMS, {"provenance": Text(), "interval": Table({}, dict.fromkeys(TERMS, INTERVAL))})
GROUP = Table({"any": FITTED}, dict.fromkeys(FORMATS, FITTED))
WIRE: dict[str, Rule] = {
    "bandwidth_GBps": MAYBE,
    "efficiency": SHARE,
    "latency_us": Number(closed=True, most=1e6),
}
GRADE = Text(("A", "B", "C"), nullable=True)

MHZ = Number(above=1, most=1e5, whole=True)
CLOCK_TERMS: dict[str, Rule] = {"cap_W": Number(1e-3, 1e6), "busy_W": Number(closed=True, most=1e6)}
CLOCK = Table(
    {
        **dict.fromkeys(("boost_MHz", "top_MHz", "rated_MHz", "base_MHz", "step_MHz"), MHZ),
        "window_s": Number(1e-6, 3600),
        **CLOCK_TERMS,
        "provenance": Text(),
    },
    {"voltage_floor_MHz": MHZ, "interval": Table({}, dict.fromkeys((*CLOCK_TERMS, "voltage_floor_MHz"), INTERVAL))},
)

DEVICE = Table(
    {
        "name": Text(),
        "aliases": Items(Text()),
        "vendor": Text(),
        "kind": Text(KINDS),
        "year": Number(above=1990, most=2100, whole=True),
        "memory": Table(
            {"type": Text(), "capacity_GB": Number(1e-6, 1e6), "bandwidth_GBps": Number(1e-6, 1e7)},
            {"reported_GB": Number(1e-6, 1e6)},
        ),
        "peak_TFLOPs": Table(dict.fromkeys(FORMATS, Number(1e-6, 1e7, nullable=True))),
        "onchip": Table(
            {
                "capacity_MiB": MAYBE,
                "what": Text(),
                "bandwidth_GBps": MAYBE,
                "near_capacity_MiB": MAYBE,
                "near_what": Text(nullable=True),
            }
        ),
        "link": Table({"name": Text(nullable=True), **WIRE}),
        "host_link": Table(WIRE),
        "power": Table({"tdp_W": MAYBE, "idle_W": MAYBE}),
        "price": Table({"usd_per_hour": MAYBE, "what": Text(nullable=True), "date": Text(nullable=True)}),
        "efficiency": Table({"provenance": Text(), **dict.fromkeys(GROUPS, GROUP)}),
        "energy": Table(
            {
                "pJ_per_FLOP": Table(dict.fromkeys(FORMATS, MAYBE)),
                "pJ_per_byte": Table(dict.fromkeys(("memory", "onchip", "link"), Number(closed=True))),
            }
        ),
        "sources": Table(dict.fromkeys(SOURCED, Table({"from": Text(), "grade": GRADE}))),
        "unverified": Items(Text()),
        "notes": Text(nullable=True),
    },
    {"clock": CLOCK},
)

HOST_TERMS: dict[str, Rule] = {
    "host_us_per_step": Number(closed=True),
    "host_us_per_layer": Number(closed=True),
    "host_us_per_sequence": Number(closed=True),
    "request_ms": Number(closed=True),
    "cached_token_us": Number(closed=True),
}
SPEEDS: dict[str, Rule] = dict.fromkeys(("product_speed", "attention_speed"), Number(above=1e-3, most=10))
COLLECTIVES: dict[str, Rule] = {
    "collective_us": Number(closed=True, most=1e6),
    "collective_speed": Number(above=1e-3, most=10),
    "pcie_us": Number(closed=True, most=1e6),
    "pcie_efficiency": SHARE,
}

EXPERTS = Table({"compute": Number(above=1e-3, most=10), "memory": Number(above=1e-3, most=10),
                 "layer_us": Number(closed=True, most=1e5), "matrix_us_per_MB": Number(closed=True, most=1e5)},
                {"interval": Table({}, dict.fromkeys(("compute", "memory", "layer_us", "matrix_us_per_MB"), INTERVAL)),
                 "provenance": Text()})  # fmt: skip
PRODUCTS = ("bf16", "fp8", "fp8_block", "int8", "int8_wo", "int4_wo", "nvfp4")  # as kernel profiles name them
ENGINE = Table(
    {
        "name": Text(),
        **HOST_TERMS,
        "plan_ahead": Number(closed=True, most=8, whole=True),
        "defaults": Table(
            {
                "scheduler": Text(nullable=True),
                "token_budget": Number(most=1e7, whole=True, nullable=True),
                "max_sequences": Number(most=1e6, whole=True, nullable=True),
                "memory_fraction": Number(most=1, nullable=True),
            }
        ),
        "provenance": Text(),
        "notes": Text(nullable=True),
    },
    {
        "kernels": Text(nullable=True),
        "experts": Table({}, dict.fromkeys(PRODUCTS, EXPERTS)),
        "product_kernels": Table({}, dict.fromkeys(PRODUCTS, Text(("trtllm", "vllm", "sglang")))),
        "overlap": Text(("max", "sum")),
        "batch_buckets": Items(Number(most=1e6, whole=True), nullable=True),
        "interval": Table({}, dict.fromkeys({**HOST_TERMS, **SPEEDS, **COLLECTIVES}, INTERVAL)),
        **SPEEDS,
        **COLLECTIVES,
        "memory_fraction_of": Text(("device", "free")),
        "runtime_GB": Number(closed=True, most=1e3),
    },
)


def check_device(profile: dict[str, Any], file: str) -> None:
    """Raise ValueError, one line naming file and key, unless `profile` is a complete and sane device profile."""
    check(profile, DEVICE, f"{file}: ")
    if not any(profile["peak_TFLOPs"].values()):
        raise ValueError(f"{file}: peak_TFLOPs lists no rate at all; at least one format is needed")
    power = profile["power"]
    if None not in power.values() and power["idle_W"] >= power["tdp_W"]:
        raise ValueError(f"{file}: power.idle_W is {power['idle_W']}, allowed: below tdp_W ({power['tdp_W']})")
    if (power["tdp_W"] is None) != (power["idle_W"] is None):
        raise ValueError(f"{file}: power.tdp_W and power.idle_W must both be numbers or both null")
    if "clock" in profile:
        _check_clock(profile, file)
    for group in GROUPS:
        for number_format, terms in profile["efficiency"][group].items():
            _check_intervals(terms, f"{file}: efficiency.{group}.{number_format}")


def check_engine(profile: dict[str, Any], file: str) -> None:
    """Raise ValueError, one line naming file and key, unless `profile` is a complete engine profile."""
    check(profile, ENGINE, f"{file}: ")
    _check_intervals(profile, f"{file}: engine")
    buckets = profile.get("batch_buckets") or []
    if any(low >= high for low, high in pairwise(buckets)):
        raise ValueError(f"{file}: batch_buckets must ascend, each a whole number above the one before")


def _check_clock(profile: dict[str, Any], file: str) -> None:
    """Steps must lead from the lowest clock to the rated one, and idle power must leave the cap some room."""
    clock, idle_W = profile["clock"], profile["power"]["idle_W"]
    base, rated, top, boost, step = (clock[f"{key}_MHz"] for key in ("base", "rated", "top", "boost", "step"))
    if not base <= rated <= top <= boost or (rated - base) % step or (top - base) % step:
        allowed = "base_MHz <= rated_MHz <= top_MHz <= boost_MHz, rated and top whole steps above base"
        raise ValueError(f"{file}: clock: {base}, {rated}, {top}, {boost} in steps of {step}, allowed: {allowed}")
    if idle_W is None or not any(profile["energy"]["pJ_per_FLOP"].values()):
        raise ValueError(f"{file}: clock needs power.idle_W and energy.pJ_per_FLOP: joules set the clock")
    if clock["cap_W"] <= idle_W:
        raise ValueError(f"{file}: clock.cap_W is {clock['cap_W']}, allowed: above power.idle_W ({idle_W})")
    if clock.get("voltage_floor_MHz", 0) > rated:
        floor = clock["voltage_floor_MHz"]
        raise ValueError(f"{file}: clock.voltage_floor_MHz is {floor}, allowed: up to rated_MHz, {rated}")
    _check_intervals(clock, f"{file}: clock")


def _check_intervals(terms: dict[str, Any], where: str) -> None:
    for key, (low, high) in terms.get("interval", {}).items():
        if not low <= terms.get(key, 1.0) <= high:  # a speed that is left out is 1
            raise ValueError(f"{where}.{key} is {terms.get(key, 1.0)}, outside its own interval [{low}, {high}]")
