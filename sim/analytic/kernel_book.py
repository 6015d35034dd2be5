"""Fitted terms of one device under one kernel library: which terms a kernel gets, by format and head layout.

Files: hardware_profiles/kernels (docs/calibration.md). What a library was not measured in comes from another library of
the same device, then from the device's class, as the file's own order says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sim.analytic.fused import layout_keys
from sim.analytic.hardware import MICRO, Ratio, Spans, Terms, ratio_of

__all__ = ["Collective", "ExpertTerms", "KernelBook", "scheme"]

Count = Any
GROUPS = ("matmul", "decode_attention", "prefill_attention")
FOUR_BITS = ("int4", "int4_g128", "fp4", "nvfp4", "mxfp4", "nf4", "q4_k", "q4_1", "q4_0", "q3_k", "q2_k")
SIXTEEN = ("bf16", "fp16", "tf32", "fp32")


def scheme(stored: str, multiplied: str) -> str:
    """The name of a product's number formats in kernel tables: weights ``stored``, ``multiplied`` in."""
    if multiplied in SIXTEEN:
        if stored in FOUR_BITS or stored.startswith(("ternary", "4bit", "3bit", "2bit")):
            return "int4_wo"
        return "bf16" if stored in SIXTEEN or not stored else "int8_wo"
    if multiplied == "fp8" and stored in ("mxfp8", "fp8_block"):
        return "fp8_block"
    return {"fp4": "nvfp4"}.get(multiplied, multiplied)


@dataclass(frozen=True)
class Collective:
    """One collective among so many devices: the faster of two algorithms, each a wait and a share of the link.

    One sends little at once, the other sends all of it at the link's pace; libraries switch between them. ``ratio`` and
    ``ranges`` as in Terms.
    """

    small_s: float
    small_efficiency: float
    large_s: float
    large_efficiency: float
    ratio: Ratio | None = None
    ranges: Spans = ()

    @classmethod
    def from_profile(cls, entry: Mapping[str, Any]) -> Collective:
        """A collective of a kernel profile; microseconds become seconds."""
        small, large = entry["small_us"] * MICRO, entry["large_us"] * MICRO
        shares = entry["small_efficiency"], entry["large_efficiency"]
        spans = tuple((name, float(low), float(high)) for name, (low, high) in entry.get("range", {}).items())
        return cls(small, shares[0], large, shares[1], ratio_of(entry), spans)

    def seconds(self, sent_bytes: Count, link_Bps: float) -> Count:
        """Seconds to send ``sent_bytes`` from every device, elementwise; nothing where nothing is sent."""
        small = self.small_s + sent_bytes / (link_Bps * self.small_efficiency)
        large = self.large_s + sent_bytes / (link_Bps * self.large_efficiency)
        return np.minimum(small, large) * (np.asarray(sent_bytes) > 0)


@dataclass(frozen=True)
class ExpertTerms:
    """Grouped products of experts beside the same product of one matrix.

    ``compute`` and ``memory``: shares of its efficiencies. ``layer_s``: routing, sorting and adding up, once a layer.
    ``matrix_s``: seconds for each byte of ONE expert's matrix, which a kernel streams whatever the others do.
    """

    compute: float = 1.0
    memory: float = 1.0
    layer_s: float = 0.0
    matrix_s: float = 0.0

    @classmethod
    def from_profile(cls, entry: Mapping[str, float]) -> ExpertTerms:
        """Terms of an engine profile's ``experts``; microseconds become seconds, a megabyte bytes."""
        layer_s, matrix_s = entry["layer_us"] * MICRO, entry["matrix_us_per_MB"] * MICRO * 1e-6
        return cls(entry["compute"], entry["memory"], layer_s, matrix_s)

    def of(self, alone: Terms) -> Terms:
        """Terms of one of the two products of a layer's experts."""
        compute, memory = alone.compute_efficiency * self.compute, alone.memory_efficiency * self.memory
        floor_s = alone.floor_s + 0.5 * self.layer_s
        return replace(
            alone, compute_efficiency=compute, memory_efficiency=memory, floor_s=floor_s, matrix_s=self.matrix_s
        )


@dataclass(frozen=True)
class KernelBook:
    """Terms by group, format and head layout; ``collectives`` by (kind, devices). ``source``: device and library."""

    source: str
    tables: Mapping[str, Mapping[str, Mapping[str, Terms]]]
    elementwise: Terms
    collectives: Mapping[tuple[str, int], Collective]
    experts: Mapping[str, ExpertTerms] = field(default_factory=dict)

    @classmethod
    def from_profile(cls, profile: Mapping[str, Any]) -> KernelBook:
        """A book from a mapping that ``hardware_profiles.kernels`` has checked and merged for one library."""
        source = profile["source"]
        tables = {
            group: {
                name: {key: _terms(entry, source) for key, entry in entries.items()}
                for name, entries in profile[group].items()
            }
            for group in GROUPS
        }
        collectives = {
            (kind, int(devices)): Collective.from_profile(entry)
            for kind, by_devices in profile["collectives"].items()
            for devices, entry in by_devices.items()
        }
        return cls(source, tables, _terms(profile["elementwise"], source), collectives)

    def product(self, stored: str, multiplied: str, grouped: bool = False) -> Terms:
        """Terms of a product with weights ``stored`` in one format and ``multiplied`` in another.

        ``grouped``: of experts, which are those of one matrix where nothing else is known.
        """
        alone = self._alone(stored, multiplied)
        own = self.experts.get(scheme(stored, multiplied)) if grouped else None
        return alone if own is None else own.of(alone)

    def _alone(self, stored: str, multiplied: str) -> Terms:
        found = self.tables["matmul"]
        name = scheme(stored, multiplied)
        for known in (name, name.removesuffix("_block"), "fp8" if multiplied in ("fp8", "int8") else "bf16"):
            if known in found:
                return found[known]["any"]
        return next(iter(found.values()))["any"]

    def attention(self, group: str, computed: str, kv: str, layout: tuple[int, int, int, bool]) -> Terms:
        """Terms of attention ``computed`` in one format over keys kept in another, by head layout."""
        wide = "bf16" if kv in (*SIXTEEN, "") else "fp8"
        names = [wide] if group == "decode_attention" else [f"fp8-{wide}" if computed == "fp8" else f"bf16-{wide}"]
        names += ["bf16-fp8", "bf16-bf16", "fp8", "bf16"] if wide == "fp8" else ["bf16-bf16", "bf16"]
        entries = next((e for name in names if (e := self.tables[group].get(name))), None)
        if entries is None:
            entries = next(iter(self.tables[group].values()))
        return next(entries[key] for key in layout_keys(*layout) if key in entries)

    def collective(self, kind: str, devices: int) -> Collective | None:
        """The collective among ``devices``, or of the nearest number of them above, else below; None if unmeasured."""
        known = sorted(n for name, n in self.collectives if name == kind)
        if not known:
            return None
        return self.collectives[kind, next((n for n in known if n >= devices), known[-1])]


def _terms(entry: Mapping[str, Any], source: str) -> Terms:
    """Terms of a measured kernel, whose activations come from memory and go back there."""
    return replace(Terms.from_profile(entry, source), streams=True)
