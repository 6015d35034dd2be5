"""A measured machine as the two files a scenario names: ``hardware:`` and ``engine:``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hardware_profiles.schema import FORMATS, GROUPS, SOURCED, check_device, check_engine
from sim.calibration.fit import Machine

Intervals = Mapping[str, tuple[float, float]]
TERMS = {"compute": 1.0, "memory": 1.0, "floor_us": 0.0, "overlap_p": float("inf"), "quantise": 0.0, "depth_us": 0.0}


def device_profile(machine: Machine, ranges: Intervals, facts: Mapping[str, Any]) -> dict[str, Any]:
    """A hardware profile, checked. ``facts``: name, processor, memory_bytes, threads, year, how (a sentence)."""
    how = facts["how"]
    unknown = dict.fromkeys(FORMATS)
    profile = {
        "name": facts["name"],
        "aliases": [],
        "vendor": facts["processor"],
        "kind": "cpu",
        "year": facts["year"],
        "memory": {
            "type": "as measured",
            "capacity_GB": _round(facts["memory_bytes"] / 1e9),
            "bandwidth_GBps": _round(machine.memory_Bps / 1e9),
        },
        "peak_TFLOPs": {**unknown, "fp32": _round(machine.peak_flops / 1e12)},
        "onchip": {
            "capacity_MiB": _round(machine.onchip_bytes / 2**20),
            "what": "cache, as the streaming rate shows it",
            "bandwidth_GBps": _round(machine.onchip_Bps / 1e9),
            "near_capacity_MiB": None,
            "near_what": None,
        },
        "link": {"name": None, "bandwidth_GBps": None, "efficiency": 1.0, "latency_us": 0.0},
        "host_link": {"bandwidth_GBps": None, "efficiency": 1.0, "latency_us": 0.0},
        "power": {"tdp_W": None, "idle_W": None},
        "price": {"usd_per_hour": None, "what": None, "date": None},
        "efficiency": {"provenance": how, **{group: {"any": _terms(group, machine, ranges)} for group in GROUPS}},
        "energy": {"pJ_per_FLOP": unknown, "pJ_per_byte": {"memory": 0.0, "onchip": 0.0, "link": 0.0}},
        "sources": {key: _source(key, how) for key in SOURCED},
        "unverified": [],
        "notes": _notes(ranges, facts),
    }
    check_device(profile, str(facts["name"]))
    return profile


def engine_profile(machine: Machine, ranges: Intervals, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The NumPy executor as an engine: what its Python code costs a pass, a layer and a sequence; checked."""
    host = {"host_us_per_step": "step_s", "host_us_per_layer": "layer_s", "host_us_per_sequence": "sequence_s"}
    profile = {
        "name": f"numpy-on-{facts['name']}",
        **{key: _round(getattr(machine, field) * 1e6) for key, field in host.items()},
        "request_ms": 0.0,
        "cached_token_us": 0.0,
        "plan_ahead": 0,
        "defaults": {"scheduler": None, "token_budget": None, "max_sequences": None, "memory_fraction": None},
        "provenance": facts["how"],
        "notes": "the witness (sim/reference); host time of a sequence is an average over models of two to six layers",
        "interval": {key: [_round(end * 1e6) for end in ranges[field]] for key, field in host.items()},
    }
    check_engine(profile, str(profile["name"]))
    return profile


def _terms(group: str, machine: Machine, ranges: Intervals) -> dict[str, Any]:
    """Fitted terms of one kind of kernel, float32; compute and memory do not overlap (p = 1)."""
    given = {"compute": _round(getattr(machine, group)), "memory": _round(machine.memory_share), "overlap_p": 1.0}
    interval = {"compute": _ends(ranges[group]), "memory": _ends(ranges["memory_share"])}
    if group == "matmul":
        given["quantise"] = _round(machine.pack_s * machine.memory_Bps)
        low, high = ranges["pack_s"]
        interval["quantise"] = _ends((low * machine.memory_Bps, high * machine.memory_Bps))
    return {**TERMS, **given, "interval": interval}


def _ends(span: tuple[float, float]) -> list[float]:
    return [_round(end) for end in span]


def _source(key: str, how: str) -> dict[str, Any]:
    measured = key in ("memory", "compute", "onchip")
    return {"from": how, "grade": "A"} if measured else {"from": "not measured", "grade": None}


def _notes(ranges: Intervals, facts: Mapping[str, Any]) -> str:
    spans = {
        "memory GB/s": (1e9, "memory_Bps"),
        "cache GB/s": (1e9, "onchip_Bps"),
        "cache MB": (1e6, "onchip_bytes"),
        "fp32 GFLOP/s": (1e9, "peak_flops"),
    }
    said = [f"{name} {ranges[key][0] / by:.3g} to {ranges[key][1] / by:.3g}" for name, (by, key) in spans.items()]
    return f"ranges over repeats: {'; '.join(said)}. {facts['table']}".strip()


def _round(value: float) -> float:
    """Six digits: more than any of this is worth, few enough to read."""
    return float(f"{value:.6g}")
