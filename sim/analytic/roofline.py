"""One fused kernel on one device: seconds, joules and what bound it, from its ops (reference: roofline model)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import inf
from typing import Any

import numpy as np

from sim.analytic.collectives import kind_of
from sim.analytic.fused import decode_seconds, prefill_seconds
from sim.analytic.hardware import Device, Kernels, Link, Terms
from sim.analytic.ops import Op
from sim.analytic.placement import Placement

__all__ = [
    "CAUSES", "Bound", "combine", "joules", "kernels", "larger", "on_device", "streams", "terms_of", "used_format",
]  # fmt: skip

Count = Any
CAUSES = ("weights", "kv", "activations", "compute", "onchip", "link", "overhead")


def larger(a: Count, b: Count) -> Count:
    """``np.maximum``, without its overhead for two Python floats."""
    if type(a) is float and type(b) is float:
        return a if a >= b else b
    return np.maximum(a, b)


def combine(a: Count, b: Count, p: float) -> Count:
    """Overlap of two times: the larger (p infinite), their sum (p = 1), else ``(a^p + b^p)^(1/p)``.

    Written as ``m * (1 + (min/max)^p)^(1/p)``, which does not underflow; elementwise, the same bits for any length.
    """
    if p == inf:
        return larger(a, b)
    if p == 1:
        return a + b
    if isinstance(a, float) and isinstance(b, float):  # np.power of a scalar and of an array differ in the last bit
        return float(combine(np.array([a]), np.array([b]), p)[0])
    high, low = np.maximum(a, b), np.minimum(a, b)
    ratio = low / np.maximum(high, 1e-300)
    return high * np.power(1.0 + np.power(ratio, p), 1.0 / p)


@dataclass(frozen=True, slots=True)
class Bound:
    """The times that one kernel would take if only one thing limited it, over all its layers, in seconds.

    ``weights_s``, ``kv_s``, ``activations_s`` share the main memory and add up to ``memory_s``. ``overhead_s`` is
    the launch floor and the per-kernel terms that nothing overlaps. ``p`` is the overlap of compute and memory.
    """

    compute_s: Count
    weights_s: Count
    kv_s: Count
    activations_s: Count
    onchip_s: Count
    link_s: Count
    overhead_s: Count
    p: float

    @property
    def memory_s(self) -> Count:
        """Seconds of main-memory traffic."""
        return self.weights_s + self.kv_s + self.activations_s

    @property
    def seconds(self) -> Count:
        """Seconds of the kernel: compute and memory combined, not below on-chip or link time, plus overhead."""
        return self._busy() + self.overhead_s

    def _busy(self) -> Count:
        roof = combine(self.compute_s, self.memory_s, self.p)
        return np.maximum(np.maximum(roof, self.onchip_s), self.link_s)

    def causes(self) -> dict[str, Count]:
        """The kernel's seconds by what bound it (CAUSES); memory time is split by what was moved."""
        busy, memory = self._busy(), self.memory_s
        by_memory = (memory > self.compute_s) & (memory >= self.onchip_s) & (memory >= self.link_s)
        by_onchip = ~by_memory & (self.onchip_s > self.compute_s) & (self.onchip_s >= self.link_s)
        by_link = ~by_memory & ~by_onchip & (self.link_s > self.compute_s)
        by_compute = ~(by_memory | by_onchip | by_link)
        scale = by_memory * busy / np.maximum(memory, 1e-300)
        return {
            "weights": self.weights_s * scale,
            "kv": self.kv_s * scale,
            "activations": self.activations_s * scale,
            "compute": by_compute * busy,
            "onchip": by_onchip * busy,
            "link": by_link * busy,
            "overhead": self.overhead_s,
        }


def kernels(ops: Iterable[Op]) -> Iterator[list[Op]]:
    """Ops grouped into the kernels they run in, in order."""
    for _, group in groupby(ops, key=lambda op: (op.kernel, op.driver)):
        yield list(group)


def on_device(kernel: Sequence[Op], device: Device, place: Placement, plain: bool = False) -> Bound:
    """Times of one kernel on one device. Shapes: those of the ops' counts.

    ``plain``: attention as linear in its counts, without what sim/analytic/fused.py adds.
    """
    main = next((op for op in kernel if op.unit == "tensor"), kernel[0])
    if main.unit == "link":
        return _collective(main, device)
    terms = terms_of(main, device)
    weights, kv, activations = hbm_bytes(kernel, place, terms.streams)
    layers, memory_Bps = main.layers, device.memory_Bps * terms.memory_efficiency
    moved = onchip_bytes(kernel)
    runs = np.asarray(main.flops if main.unit == "tensor" else moved) > 0
    bound = Bound(
        compute_s=layers * compute_seconds(kernel, device),
        weights_s=layers * weights / memory_Bps,
        kv_s=layers * kv / memory_Bps,
        activations_s=layers * activations / memory_Bps,
        onchip_s=layers * moved / (device.onchip.bandwidth_Bps or inf),
        link_s=layers * _sum(op.link_bytes / op.link_Bps for op in kernel if op.link_Bps) + 0.0 * moved,
        overhead_s=layers * _overhead(main, terms, device) * runs,
        p=terms.overlap_p,
    )
    if plain or main.attended is None or not terms.streams:
        return bound
    return _fused(bound, main, terms, memory_Bps, runs)


def _fused(bound: Bound, op: Op, terms: Terms, memory_Bps: float, runs: Any) -> Bound:
    """The bound of an attention kernel with what whole tiles, long sequences and split keys add."""
    seen, layers = op.attended, op.layers
    assert seen is not None
    pair_s = bound.compute_s / np.maximum(seen.pairs, 1) / layers
    if seen.is_prefill:
        compute = prefill_seconds(terms, seen.pairs, seen.reads, seen.tokens, seen.head_dim, pair_s)
        again = bound.kv_s + layers * (seen.tokens * (seen.token_bytes / memory_Bps))
        return replace(bound, compute_s=layers * compute * runs, kv_s=again)
    compute, read, added = decode_seconds(
        terms, seen.pairs, seen.tokens, seen.kv_heads, seen.head_dim, pair_s, bound.kv_s / layers
    )
    overhead = bound.overhead_s + layers * added * runs
    return replace(bound, compute_s=layers * compute * runs, kv_s=layers * read * runs, overhead_s=overhead)


def terms_of(op: Op, device: Device) -> Terms:
    """The device's fitted terms for the op's kind of kernel, in the format that the device computes in."""
    used = device.vector_flops().used_format if op.unit != "tensor" else device.peak_flops(op.format).used_format
    if device.kernels is not None:
        return _of_library(op, device.kernels, used)
    group: Any = getattr(device, op.terms)
    terms: Terms = group[used]
    return terms


def streams(kernel: Sequence[Op], device: Device) -> bool:
    """Whether the kernel's activations go through main memory however small."""
    main = next((op for op in kernel if op.unit == "tensor"), kernel[0])
    return main.unit != "link" and terms_of(main, device).streams


def _of_library(op: Op, book: Kernels, used: str) -> Terms:
    if op.terms == "matmul":
        return book.product(op.stored, used) if op.matrices is None else book.product(op.stored, used, grouped=True)
    if op.attended is None:  # elementwise, or attention that is not fused
        return book.elementwise
    seen = op.attended
    return book.attention(op.terms, used, op.stored, (seen.heads, seen.kv_heads, seen.head_dim, seen.windowed))


def compute_seconds(kernel: Sequence[Op], device: Device) -> Count:
    """Seconds of one layer's arithmetic: matrix and vector units work side by side, the slower one counts."""
    tensor = _sum(_filled(op, device) / _rate(op, device) for op in kernel if op.unit == "tensor")
    if any(op.attended is not None for op in kernel) and device.kernels is not None:
        return tensor  # measured with its softmax inside
    vector = _sum(op.flops / _rate(op, device) for op in kernel if op.unit == "vector")
    return np.maximum(tensor, vector)


def _filled(op: Op, device: Device) -> Count:
    """FLOPs that the units are busy with: rows of a product fill whole tiles, a wave has a least number of columns."""
    terms = terms_of(op, device)
    if not op.inner or (terms.tile_rows == 1 and not terms.wave_columns):
        return op.flops
    rows, per_row = op.inputs / op.inner, op.flops / np.maximum(op.inputs, 1)  # per_row: 2 n
    return op.inner * busy_area(terms, rows, per_row / 2) * 2


def busy_area(terms: Terms, rows: Count, columns: Count) -> Count:
    """Outputs that a product of [rows, k] @ [k, columns] keeps the device busy for (``Terms``)."""
    tile = terms.tile_rows
    padded = np.where(np.asarray(rows) > tile, np.ceil(rows / tile) * tile, rows)
    return np.maximum(padded * columns, np.minimum(rows, tile) * terms.wave_columns)


def hbm_bytes(kernel: Sequence[Op], place: Placement, streams: bool = False) -> tuple[Count, Count, Count]:
    """Main-memory bytes of one layer: (weights, KV, activations); ``streams``: activations however small."""
    weights = _sum(0.0 * op.weight_bytes if place.resident else op.weight_bytes for op in kernel)
    kv = _sum(op.kv_read_bytes + op.kv_write_bytes for op in kernel)
    return weights, kv, _sum(op.activation_bytes if streams else spilled_bytes(op, place) for op in kernel)


def spilled_bytes(op: Op, place: Placement) -> Count:
    """Activation bytes that go through main memory: all of an op's, if they exceed the free on-chip memory."""
    return op.activation_bytes * (np.asarray(op.activation_bytes) > place.free_bytes)


def onchip_bytes(kernel: Sequence[Op]) -> Count:
    """Bytes that enter or leave the compute units, wherever they come from."""
    return _sum(op.weight_bytes + op.kv_read_bytes + op.kv_write_bytes + op.activation_bytes for op in kernel)


def joules(kernel: Sequence[Op], device: Device, place: Placement) -> Count:
    """Dynamic joules of one kernel over its layers: FLOPs by format and bytes by level (static power: the clock's).

    NaN where the device's energy is unknown.
    """
    energy = device.energy
    if energy is None:
        return float("nan") * _sum(op.flops for op in kernel)
    weights, kv, activations = hbm_bytes(kernel, place)
    flops_J = _sum(op.flops * energy.joules_per_flop(used_format(op, device)) for op in kernel if op.unit != "link")
    bytes_J = (weights + kv + activations) * energy.memory_byte_J + onchip_bytes(kernel) * energy.onchip_byte_J
    link_J = _sum(op.link_bytes for op in kernel) * energy.link_byte_J
    return kernel[0].layers * (flops_J + bytes_J + link_J)


def _collective(op: Op, device: Device) -> Bound:
    link = device.link if op.link_Bps is None else Link("", op.link_Bps, latency_s=op.link_latency_s)
    if link.bandwidth_Bps is None:
        raise ValueError(f"{device.name}: link.bandwidth_GBps is unknown, so no layout of several devices can be timed")
    zero = 0.0 * op.link_bytes
    known = device.kernels if op.link_Bps is None else None
    measured = None if known is None else known.collective(kind_of(op.name), op.group)
    if measured is not None:
        spent = op.layers * measured.seconds(op.link_bytes, link.bandwidth_Bps)
        return Bound(zero, zero, zero, zero, zero, spent, zero, inf)
    seconds = op.layers * op.link_bytes / (link.bandwidth_Bps * link.efficiency)
    floor = op.layers * link.latency_s * (np.asarray(op.link_bytes) > 0)
    return Bound(zero, zero, zero, zero, zero, seconds, floor, inf)


def _overhead(op: Op, terms: Terms, device: Device) -> Count:
    """Seconds that nothing overlaps: launch floor, quantising inputs, finishing outputs, long dot products."""
    quantise = op.inputs * (terms.quantise / device.memory_Bps)
    deep = op.inner if terms.depth_limit == inf else op.inner / (1.0 + op.inner / terms.depth_limit)
    spent = terms.floor_s + quantise + terms.depth_s * deep / 4096
    if terms.output and op.inner:
        spent = spent + op.flops * (0.5 * terms.output / op.inner / device.memory_Bps)
    if terms.matrix_s and op.matrices is not None:
        spent = spent + terms.matrix_s * (op.weight_bytes / np.maximum(op.matrices, 1e-300))
    return spent


def _rate(op: Op, device: Device) -> float:
    peak = device.peak_flops(op.format) if op.unit == "tensor" else device.vector_flops()
    return peak.flops * terms_of(op, device).compute_efficiency


def used_format(op: Op, device: Device) -> str:
    """The format in which the device computes the op."""
    return device.peak_flops(op.format).used_format if op.unit == "tensor" else device.vector_flops().used_format


def _sum(terms: Iterable[Count]) -> Count:
    """Terms added left to right; 0.0 for none."""
    total: Count = 0.0
    for term in terms:
        total = total + term
    return total
