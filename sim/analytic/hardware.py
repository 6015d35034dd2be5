"""Where a model runs: devices, links and engines in SI units, built from checked profiles. No ops, no clock.

A profile (``hardware_profiles.load``) says GB, TFLOPs and microseconds in its keys; here everything is bytes, FLOP,
seconds, watts and joules. The conversion happens once, in this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

GB, TERA, MIB, MICRO, PICO = 1e9, 1e12, 1 << 20, 1e-6, 1e-12
FORMATS = ("fp32", "tf32", "bf16", "fp16", "fp8", "int8", "fp4", "int4")
BITS = {"fp32": 32, "tf32": 32, "bf16": 16, "fp16": 16, "fp8": 8, "int8": 8, "fp4": 4, "int4": 4}
SIXTEEN = ("bf16", "fp16")

# What a device computes in when it has no rate for the format asked for, best first.
FALLBACKS: dict[str, tuple[str, ...]] = {
    "fp32": ("tf32",),
    "tf32": ("fp32",),
    "bf16": ("fp16", "fp32"),
    "fp16": ("bf16", "fp32"),
}
NARROW = ("bf16", "fp16", "fp32")
SAME_RATE = {"mxfp4": "fp4", "nvfp4": "fp4"}
# Formats that no unit multiplies: weights are unpacked and multiplied in 16 bits whatever the device.
STORAGE_ONLY = ("nf4", "ternary", "int2", "int3", "fp6")
BF16_PASSES_FOR_FP32 = 6  # three bf16 parts a factor, six of the nine products kept (XLA's bf16_6x)
LOWEST_SHARE = 0.15  # of a rated clock, under a power cap: 210 of 1410 MHz on an A100 (recalled)
SPEEDS = (  # of an engine, beside its kernels
    "product_speed", "attention_speed", "collective_us", "collective_speed", "pcie_us", "pcie_efficiency"
)  # fmt: skip
VECTOR_SHARE = 1 / 16  # of the 16-bit matrix rate; A100 1/16, H100 1/15, V100 and MI300X 1/8


Ratio = tuple[float, float, float]
Spans = tuple[tuple[str, float, float], ...]


class Peak(NamedTuple):
    """A rate in FLOP per second, the format that the device computes in, and why if it is not the one asked for."""

    flops: float
    used_format: str
    note: str


@dataclass(frozen=True)
class Terms:
    """Fitted terms of one kind of kernel in one format; the defaults are the textbook roofline.

    A product [m, k] @ [k, n] takes ``floor_s + ((F/(compute_efficiency*P))^p + (B/(memory_efficiency*BW))^p)^(1/p) +
    quantise*m*k/BW + output*m*n/BW + depth_s*K/4096``, with p = ``overlap_p`` (infinite: the larger of the two) and K =
    k/(1 + k/``depth_limit``): deep dot products are split. F counts rows padded to whole tiles of ``tile_rows`` (from
    the first whole tile on) and at least ``wave_columns`` columns beside the first tile: a wave that does not fill the
    device. Attention: ``tile_tokens``, ``walk_s``, ``sequence_s``, ``split_s`` and ``split_tokens`` as
    sim/analytic/fused.py says. ``hot_share`` of the on-chip memory keeps what a benchmark reads again and again, at
    1/``hot_cost`` of memory's rate; a pass goes through all its layers in between, so it has no use for it.
    ``matrix_s``: seconds a byte of one expert's matrix, in grouped products.
    ``streams``: activations go through main memory however small. ``interval``: (low, high) by profile key. ``ratio``:
    10th, 50th and 90th percentile of measured over predicted seconds on cases that the fit has not seen (None: not
    known); ``ranges``: (smallest, largest) that was measured, by size. Neither changes a time.
    """

    compute_efficiency: float = 1.0
    memory_efficiency: float = 1.0
    floor_s: float = 0.0
    overlap_p: float = float("inf")
    quantise: float = 0.0
    depth_s: float = 0.0
    depth_limit: float = float("inf")
    tile_rows: int = 1
    wave_columns: float = 0.0
    output: float = 0.0
    tile_tokens: float = 0.0
    walk_s: float = 0.0
    sequence_s: float = 0.0
    split_s: float = 0.0
    split_tokens: float = 1.0
    hot_share: float = 0.0
    hot_cost: float = 1.0
    matrix_s: float = 0.0
    streams: bool = False
    provenance: str = "textbook roofline, nothing fitted"
    interval: tuple[tuple[str, float, float], ...] = ()
    ratio: Ratio | None = None
    ranges: Spans = ()

    @classmethod
    def from_profile(cls, entry: Mapping[str, Any], provenance: str) -> Terms:
        """Terms of one entry of a profile's ``efficiency`` group; microseconds become seconds."""
        return cls(
            compute_efficiency=float(entry["compute"]),
            memory_efficiency=float(entry["memory"]),
            floor_s=entry["floor_us"] * MICRO,
            overlap_p=float(entry["overlap_p"]),
            quantise=float(entry["quantise"]),
            depth_s=entry["depth_us"] * MICRO,
            **_finer(entry),
            provenance=entry.get("provenance", provenance),
            interval=_intervals(entry),
            ratio=ratio_of(entry),
            ranges=_intervals(entry, "range"),
        )


@dataclass(frozen=True)
class Link:
    """A wire between devices, or from a device to its host; bandwidth in bytes per second and direction.

    ``bandwidth_Bps`` is None where no source gives one.
    """

    name: str | None
    bandwidth_Bps: float | None
    efficiency: float = 1.0
    latency_s: float = 0.0

    @classmethod
    def from_profile(cls, entry: Mapping[str, Any], name: str | None) -> Link:
        """A link from a profile's ``link`` or ``host_link``."""
        bandwidth = _times(entry["bandwidth_GBps"], GB)
        return cls(name, bandwidth, float(entry["efficiency"]), entry["latency_us"] * MICRO)


@dataclass(frozen=True)
class Onchip:
    """The largest on-chip level that can hold weights or activations between ops, and the memory next to the units.

    ``capacity_bytes`` is 0 where the device has none or none is known; ``bandwidth_Bps`` None where unknown;
    ``near_bytes`` (shared memory, VMEM, SBUF: what a flash-attention tile lives in) None where unknown.
    """

    capacity_bytes: float
    what: str
    bandwidth_Bps: float | None
    near_bytes: float | None

    @classmethod
    def from_profile(cls, entry: Mapping[str, Any]) -> Onchip:
        """On-chip memory from a profile's ``onchip``."""
        return cls(
            capacity_bytes=_times(entry["capacity_MiB"], MIB) or 0.0,
            what=entry["what"],
            bandwidth_Bps=_times(entry["bandwidth_GBps"], GB),
            near_bytes=_times(entry["near_capacity_MiB"], MIB),
        )


@dataclass(frozen=True)
class Energy:
    """Joules of a device: ``idle_W`` always, plus joules per FLOP by format and per byte by level."""

    idle_W: float
    flop_J: Mapping[str, float] = field(hash=False)
    memory_byte_J: float
    onchip_byte_J: float
    link_byte_J: float

    @classmethod
    def from_profile(cls, profile: Mapping[str, Any]) -> Energy | None:
        """Energy of a profile; None where its power is unknown, since joules are then unknown too."""
        idle_W, per_byte = profile["power"]["idle_W"], profile["energy"]["pJ_per_byte"]
        flop_J = {f: v * PICO for f, v in profile["energy"]["pJ_per_FLOP"].items() if v is not None}
        if idle_W is None or not flop_J:
            return None
        return cls(float(idle_W), flop_J, *(per_byte[level] * PICO for level in ("memory", "onchip", "link")))

    def joules_per_flop(self, number_format: str) -> float:
        """Joules of one FLOP in that format; one not listed costs by width against the 16-bit (else widest) one."""
        if number_format in self.flop_J:
            return self.flop_J[number_format]
        known = next(f for f in (*SIXTEEN, *FORMATS) if f in self.flop_J)
        return self.flop_J[known] * BITS[number_format] / BITS[known]


@dataclass(frozen=True)
class Clock:
    """What a governor may do with the clock of a device's compute units.

    Whole MHz, in steps of ``step_MHz`` from ``base_MHz`` to ``top_MHz``, the highest seen under load; ``boost_MHz`` is
    what the hardware lists. Peaks and fitted terms refer to ``rated_MHz``, which a fixed clock has. ``cap_W`` is what
    the governor holds a device to, over windows of ``window_ns``; ``busy_W`` what compute units draw at the rated clock
    while they run, whatever they compute, beyond idle power, FLOPs and bytes. At ``voltage_floor_MHz`` and below the
    voltage is as low as it goes. ``provenance`` says what it was fitted to, or that it is the class default.
    """

    boost_MHz: int
    top_MHz: int
    rated_MHz: int
    base_MHz: int
    step_MHz: int
    window_ns: int
    cap_W: float
    busy_W: float
    provenance: str = ""
    interval: tuple[tuple[str, float, float], ...] = ()
    voltage_floor_MHz: int = 0

    @classmethod
    def from_profile(cls, entry: Mapping[str, Any] | None) -> Clock | None:
        """The clock of a profile; None where nobody has measured it."""
        if entry is None:
            return None
        whole = {key: entry[key] for key in ("boost_MHz", "top_MHz", "rated_MHz", "base_MHz", "step_MHz")}
        return cls(
            **whole,
            window_ns=round(entry["window_s"] * 1e9),
            cap_W=float(entry["cap_W"]),
            busy_W=float(entry["busy_W"]),
            provenance=entry["provenance"],
            interval=_intervals(entry),
            voltage_floor_MHz=entry.get("voltage_floor_MHz", 0),
        )

    @classmethod
    def of_class(cls, tdp_W: float) -> Clock:
        """A guess for a capped GPU of which nothing but its TDP is known: thousandths of a rated clock, wide intervals.

        Range as the A100-PCIe's; no share of power beyond idle, FLOPs and bytes, whose class defaults already add up to
        the TDP (docs/devices.md).
        """
        spans = (("cap_W", 0.9 * tdp_W, 1.05 * tdp_W), ("busy_W", 0.0, 0.6 * tdp_W))
        said = "class default: range of the A100-PCIe-40GB, cap at the TDP"
        return cls(1180, 1040, 1000, 760, 10, 10**9, tdp_W, 0.0, said, spans)

    def capped(self, cap_W: float) -> Clock:
        """The clock of a device that is held to ``cap_W``; it may then fall to LOWEST_SHARE of the rated one."""
        steps = int(self.rated_MHz * (1 - LOWEST_SHARE) // self.step_MHz)
        return replace(self, cap_W=cap_W, base_MHz=min(self.base_MHz, self.rated_MHz - steps * self.step_MHz))

    def share(self, MHz: int) -> float:
        """Compute rates at a clock, over those at the rated one."""
        return MHz / self.rated_MHz

    def busy_W_at(self, MHz: int) -> float:
        """Watts of running units at a clock: it times the square of the voltage, which follows it down to its floor."""
        volts = max(MHz, self.voltage_floor_MHz) / self.rated_MHz
        return self.busy_W * (MHz / self.rated_MHz * volts * volts)


class Kernels(Protocol):
    """What a kernel library makes of a device: sim/analytic/kernel_book.py."""

    @property
    def elementwise(self) -> Terms:
        """Terms of small kernels."""

    def product(self, stored: str, multiplied: str, grouped: bool = False) -> Terms:
        """Terms of a product, by the formats of its weights and of its multiplication; ``grouped``: of experts."""

    def attention(self, group: str, computed: str, kv: str, layout: tuple[int, int, int, bool]) -> Terms:
        """Terms of attention, by formats and head layout."""

    def collective(self, kind: str, devices: int) -> Any:
        """The collective among so many devices; None if unmeasured."""


@dataclass(frozen=True)
class Device:
    """A device: peaks, memory, links, power, price, and the terms that measured kernels need.

    ``peaks`` FLOP/s by format (dense; integer formats: operations/s), only formats with a rate of their own.
    ``memory_bytes`` is the marketed decimal capacity, ``reported_bytes`` what its driver reports. ``tdp_W``, ``energy``
    and ``usd_per_hour`` are None where no source gives them. ``matmul``, ``decode_attention``, ``prefill_attention``
    and ``elementwise`` map every format of FORMATS to its Terms; ``kernels``, where a kernel library was fitted, comes
    first (sim/analytic/kernel_book.py).
    """

    name: str
    vendor: str
    kind: str
    memory_type: str
    memory_bytes: float
    memory_Bps: float
    peaks: Mapping[str, float] = field(hash=False)
    onchip: Onchip
    link: Link
    host_link: Link
    tdp_W: float | None = None
    energy: Energy | None = None
    clock: Clock | None = None
    usd_per_hour: float | None = None
    price_note: str = ""
    unverified: tuple[str, ...] = ()
    matmul: Mapping[str, Terms] = field(default_factory=lambda: _textbook(), hash=False)
    decode_attention: Mapping[str, Terms] = field(default_factory=lambda: _textbook(), hash=False)
    prefill_attention: Mapping[str, Terms] = field(default_factory=lambda: _textbook(), hash=False)
    elementwise: Mapping[str, Terms] = field(default_factory=lambda: _textbook(), hash=False)
    kernels: Kernels | None = field(default=None, hash=False)
    reported_bytes: float | None = None

    @classmethod
    def from_profile(cls, profile: Mapping[str, Any]) -> Device:
        """A device from a mapping that ``hardware_profiles.load`` has checked."""
        memory, price, fitted = profile["memory"], profile["price"], profile["efficiency"]
        return cls(
            name=profile["name"],
            vendor=profile["vendor"],
            kind=profile["kind"],
            memory_type=memory["type"],
            memory_bytes=memory["capacity_GB"] * GB,
            memory_Bps=memory["bandwidth_GBps"] * GB,
            peaks={f: v * TERA for f, v in profile["peak_TFLOPs"].items() if v is not None},
            onchip=Onchip.from_profile(profile["onchip"]),
            link=Link.from_profile(profile["link"], profile["link"]["name"]),
            host_link=Link.from_profile(profile["host_link"], "host"),
            tdp_W=_times(profile["power"]["tdp_W"], 1.0),
            energy=Energy.from_profile(profile),
            clock=Clock.from_profile(profile.get("clock")),
            usd_per_hour=_times(price["usd_per_hour"], 1.0),
            price_note=", ".join(filter(None, (price["what"], price["date"]))),
            unverified=tuple(profile["unverified"]),
            matmul=_group(fitted, "matmul"),
            decode_attention=_group(fitted, "decode_attention"),
            prefill_attention=_group(fitted, "prefill_attention"),
            elementwise=_group(fitted, "elementwise"),
            reported_bytes=_times(memory.get("reported_GB"), GB),
        )

    def peak_flops(self, number_format: str) -> Peak:
        """Matrix rate for operands of that format, falling back as the hardware does; the note says how.

        fp32 on a device that lists only 16-bit rates runs as six bf16 passes; 16-bit on one that lists only int8
        is taken at half of it. Raises ValueError for a format that is not known at all.
        """
        wanted = SAME_RATE.get(number_format, number_format)
        if wanted in self.peaks:
            return Peak(self.peaks[wanted], wanted, "")
        if wanted not in FORMATS and wanted not in STORAGE_ONLY:
            allowed = ", ".join((*FORMATS, *SAME_RATE, *STORAGE_ONLY))
            raise ValueError(f"{self.name}: no number format {number_format!r}; allowed: {allowed}")
        for used in FALLBACKS.get(wanted, NARROW):
            if used in self.peaks:
                return Peak(self.peaks[used], used, self._note(number_format, used))
        return self._last_resort(number_format)

    def at_clock(self, MHz: int) -> Device:
        """The same device with its compute units at another clock: compute rates and on-chip bandwidth follow it,
        memory and links do not. Raises ValueError where the device has no clock.
        """
        if self.clock is None:
            raise ValueError(f"{self.name}: its profile has no clock")
        share = self.clock.share(MHz)
        onchip_Bps = self.onchip.bandwidth_Bps
        onchip = replace(self.onchip, bandwidth_Bps=None if onchip_Bps is None else onchip_Bps * share)
        return replace(self, peaks={f: rate * share for f, rate in self.peaks.items()}, onchip=onchip)

    def vector_flops(self) -> Peak:
        """Rate of the vector units: the fp32 rate, or a sixteenth of the 16-bit matrix rate where none is listed."""
        if "fp32" in self.peaks:
            return Peak(self.peaks["fp32"], "fp32", "")
        note = f"{self.name} lists no fp32 vector rate: 1/16 of the 16-bit matrix rate assumed."
        return Peak(self.peak_flops("bf16").flops * VECTOR_SHARE, "fp32", note)

    def ridge_point(self, number_format: str) -> float:
        """Arithmetic intensity, FLOP per byte, at which compute and memory take equally long."""
        return self.peak_flops(number_format).flops / self.memory_Bps

    def _note(self, wanted: str, used: str) -> str:
        if wanted in FALLBACKS:
            return f"{self.name} has no {wanted} matrix rate: computed in {used}."
        return f"{self.name} does not multiply {wanted}: operands are dequantised and computed in {used}."

    def _last_resort(self, wanted: str) -> Peak:
        """Rates for devices that list neither the format nor a wider one."""
        sixteen = next((f for f in SIXTEEN if f in self.peaks), None)
        if sixteen is not None:
            note = f"{self.name} lists no {wanted} rate: six {sixteen} passes assumed."
            return Peak(self.peaks[sixteen] / BF16_PASSES_FOR_FP32, sixteen, note)
        used, rate = max(self.peaks.items(), key=lambda item: item[1])
        share = 8 if wanted in ("fp32", "tf32") else 2
        return Peak(rate / share, used, f"{self.name} lists only {used}: {wanted} taken at 1/{share} of that rate.")


@dataclass(frozen=True)
class Engine:
    """The serving software's host time and habits; every term is 0 or None for the ideal engine.

    ``plan_ahead`` rounds are already planned when an arrival comes (vLLM V1: 1). ``overlap``: whether host time adds to
    the device's ("sum") or runs beside it ("max"). ``batch_buckets``: token counts, ascending, for which graphs are
    captured; a pass of up to the largest is padded to the next, which costs time and counts nothing. ``kernels``: the
    kernel library whose fitted terms a device runs with (None: those of its own profile); ``product_speed`` and
    ``attention_speed``: times these (sim/analytic/speeds.py); ``collective_us`` to ``pcie_efficiency``: see
    sim/analytic/paced.py. ``memory_fraction_of``: all of the device's memory, or what weights, workspace and the
    engine's own ``runtime_bytes`` leave of what the driver reports ("free"). ``product_kernels``:
    pairs of a product's format and another library whose terms it has; ``experts``: of a format and what grouped
    products differ in (sim/analytic/kernel_book.py). ``measured`` is
    False where the profile says ``provenance: none``: then its times are guesses of its class. The four defaults are
    what a scenario gets if it names none.
    """

    name: str
    step_s: float = 0.0
    layer_s: float = 0.0
    sequence_s: float = 0.0
    request_s: float = 0.0
    cached_token_s: float = 0.0
    plan_ahead: int = 0
    overlap: str = "sum"
    batch_buckets: tuple[int, ...] = ()
    kernels: str | None = None
    product_kernels: tuple[tuple[str, str], ...] = ()
    experts: tuple[tuple[str, Mapping[str, float]], ...] = field(default=(), hash=False)
    measured: bool = True
    scheduler: str | None = None
    token_budget: int | None = None
    max_sequences: int | None = None
    memory_fraction: float | None = None
    provenance: str = ""
    interval: tuple[tuple[str, float, float], ...] = ()
    product_speed: float = 1.0
    attention_speed: float = 1.0
    collective_us: float = 0.0
    collective_speed: float = 1.0
    pcie_us: float = 0.0
    pcie_efficiency: float | None = None
    memory_fraction_of: str = "device"
    runtime_bytes: float = 0.0

    @classmethod
    def from_profile(cls, profile: Mapping[str, Any]) -> Engine:
        """An engine from a mapping that ``hardware_profiles.engine`` has checked."""
        return cls(
            name=profile["name"],
            step_s=profile["host_us_per_step"] * MICRO,
            layer_s=profile["host_us_per_layer"] * MICRO,
            sequence_s=profile["host_us_per_sequence"] * MICRO,
            request_s=profile["request_ms"] * 1e-3,
            cached_token_s=profile["cached_token_us"] * MICRO,
            plan_ahead=profile["plan_ahead"],
            overlap=profile.get("overlap", "sum"),
            batch_buckets=tuple(profile.get("batch_buckets") or ()),
            kernels=profile.get("kernels"),
            product_kernels=tuple(profile.get("product_kernels", {}).items()),
            experts=tuple(profile.get("experts", {}).items()),
            measured=profile["provenance"] != "none",
            **profile["defaults"],
            provenance=profile["provenance"],
            interval=_intervals(profile),
            **_speeds(profile),
            memory_fraction_of=profile.get("memory_fraction_of", "device"),
            runtime_bytes=profile.get("runtime_GB", 0.0) * GB,
        )


def _speeds(profile: Mapping[str, Any]) -> dict[str, Any]:
    return {key: float(profile[key]) for key in SPEEDS if key in profile}


def _group(fitted: Mapping[str, Any], group: str) -> dict[str, Terms]:
    entries, provenance = fitted[group], fitted["provenance"]
    return {f: Terms.from_profile(entries.get(f, entries["any"]), provenance) for f in FORMATS}


HOT_TERMS = ("hot_share", "hot_cost")  # of benchmarks


def _finer(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Terms that only fits of measured kernels have; a key that is absent keeps its neutral value."""
    plain = ("depth_limit", "tile_rows", "wave_columns", "output", "tile_tokens", "split_tokens", *HOT_TERMS)
    scaled = {"walk_ns": 1e-9, "sequence_ns": 1e-9, "split_us": MICRO}
    found = {key: entry[key] for key in plain if key in entry}
    return found | {f"{key.rpartition('_')[0]}_s": entry[key] * unit for key, unit in scaled.items() if key in entry}


def _textbook() -> dict[str, Terms]:
    return dict.fromkeys(FORMATS, Terms())


def _intervals(entry: Mapping[str, Any], key: str = "interval") -> Spans:
    return tuple((name, float(low), float(high)) for name, (low, high) in entry.get(key, {}).items())


def ratio_of(entry: Mapping[str, Any]) -> Ratio | None:
    """The 10th, 50th and 90th percentile of measured over predicted seconds; None where a profile has none."""
    found = entry.get("ratio")
    return None if found is None else (float(found[0]), float(found[1]), float(found[2]))


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
