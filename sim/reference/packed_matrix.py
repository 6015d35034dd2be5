"""Matrices really packed into few bits, with their scales, zero points or tables; decoded again, number by number.

Linear grids, NF4 (arXiv 2305.14314, appendix E), FP4 e2m1 with power-of-two scales (OCP microscaling v1.0), FP8 e4m3
(arXiv 2209.05433), ternary by absmean (arXiv 2402.17764, section 2), k-means tables (Lloyd's algorithm, per unit).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
TINY = 1e-6  # a float16 scale that is still a normal number's neighbour

NF4 = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
)  # fmt: skip
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
FP4 = np.unique(np.concatenate([-_E2M1, _E2M1]))
_E4M3 = np.array([(m / 8 if e == 0 else 1 + m / 8) * 2.0 ** (max(e, 1) - 7) for e in range(16) for m in range(8)][:-1])
FP8 = np.unique(np.concatenate([-_E4M3, _E4M3]))
TERNARY = np.array([-1.0, 0.0, 1.0])
TABLES = {"nf4": NF4, "fp4": FP4, "fp8": FP8, "ternary": TERNARY}
SECOND = 256  # first scales that share a second one


@dataclass(frozen=True)
class Rule:
    """How to pack: ``bits``; ``group`` of inputs to a scale, or "channel" or "tensor"; kind of ``codebook``."""

    bits: int
    group: int | str = "channel"
    codebook: str = "linear"
    zero_point: bool = False
    double: bool = False


@dataclass(frozen=True)
class Packed:
    """A packed matrix [k, n]: ``codes`` (bits end to end), ``scales`` and ``zeros`` one a unit, as stored."""

    rule: Rule
    shape: tuple[int, int]
    codes: Array
    scales: Array
    zeros: Array | None = None
    second: Array | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of everything stored."""
        return sum(part.nbytes for part in (self.codes, self.scales, self.zeros, self.second) if part is not None)

    @property
    def units(self) -> tuple[int, int]:
        """Units along k and n."""
        k, n = self.shape
        group = self.rule.group
        return (-(-k // group), n) if isinstance(group, int) else (1, n if group == "channel" else 1)

    def levels(self) -> Array:
        """What the codes stand for before they are scaled, [k, n] float64."""
        codes = unpack(self.codes, self.rule.bits, self.shape[0] * self.shape[1]).reshape(self.shape)
        if self.rule.codebook == "kmeans":
            tables = self._spread(np.arange(np.prod(self.units)).reshape(self.units))
            return np.asarray(self.scales[tables, codes], np.float64)
        if self.rule.codebook != "linear":
            return np.asarray(TABLES[self.rule.codebook][codes])
        if self.zeros is None:
            return codes - float(top(self.rule.bits))
        zeros = unpack(self.zeros, self.rule.bits, int(np.prod(self.units))).reshape(self.units)
        return codes - self._spread(zeros).astype(np.float64)

    def unit_scales(self) -> Array:
        """One number a unit, [units of k, units of n] float64; ones for k-means."""
        if self.rule.codebook == "kmeans":
            return np.ones(self.units)
        scales = self.scales
        if self.second is not None:
            scales = scales * np.repeat(self.second, SECOND)[: len(scales)] / 255.0
        elif scales.dtype == np.uint8:
            scales = np.exp2(scales.astype(np.float64) - 127)
        return np.asarray(scales, np.float64).reshape(self.units)

    def decode(self) -> Array:
        """The numbers that it stands for, [k, n] float64."""
        return np.asarray(self.levels() * self._spread(self.unit_scales()))

    def _spread(self, units: Array) -> Array:
        """One number a unit -> one a weight (or one a column, or one)."""
        group = self.rule.group
        return np.repeat(units, group, axis=0)[: self.shape[0]] if isinstance(group, int) else units


def top(bits: int) -> int:
    """The largest integer of symmetric rounding: 127 for 8 bits."""
    return int(2 ** (bits - 1)) - 1


def pack(w: Array, rule: Rule) -> Packed:
    """A matrix [k, n] by ``rule``; every scale is stored before it is used, so that decoding sees the same one."""
    k, n = w.shape
    groups = _grouped(np.asarray(w, np.float64), rule)  # [units of k, in a unit, n]; padded with NaN
    if rule.codebook == "kmeans":
        return _kmeans(w, groups, rule)
    if rule.zero_point:
        return _asymmetric(w, groups, rule)
    stored, second = _stored_scales(_wanted_scales(groups, rule), rule)
    packed = Packed(rule, (k, n), np.zeros(0, np.uint8), stored, None, second)
    levels = np.arange(-top(rule.bits), top(rule.bits) + 1.0) if rule.codebook == "linear" else TABLES[rule.codebook]
    codes = nearest(w / packed._spread(packed.unit_scales()), levels)
    return Packed(rule, (k, n), pack_bits(codes, rule.bits), stored, None, second)


def nearest(x: Array, levels: Array) -> Array:
    """Index of the level next to each number (levels ascending)."""
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, x)


def pack_bits(codes: Array, bits: int) -> Array:
    """Codes end to end, ``bits`` each, in whole bytes."""
    return np.packbits(codes.reshape(-1, 1).astype(np.int64) >> np.arange(bits) & 1)


def unpack(packed: Array, bits: int, count: int) -> Array:
    """The first ``count`` codes, int64."""
    ones = np.unpackbits(packed, count=count * bits).reshape(count, bits)
    return np.asarray(ones @ (1 << np.arange(bits)))


def _grouped(w: Array, rule: Rule) -> Array:
    k, n = w.shape
    if rule.group == "tensor":
        return w.reshape(1, -1, 1)
    size = rule.group if isinstance(rule.group, int) else k
    padded = np.full((-(-k // size) * size, n), np.nan)
    padded[:k] = w
    return padded.reshape(-1, size, n)


def _wanted_scales(groups: Array, rule: Rule) -> Array:
    """[units of k, units of n]: the largest magnitude meets the largest level; ternary: the mean magnitude.

    A matrix that is ternary already (a trained BitNet's) keeps its own magnitude.
    """
    if rule.codebook == "ternary":
        sizes = np.abs(groups)
        mean, most = np.nanmean(sizes, axis=1), np.nanmax(sizes, axis=1)
        is_ternary = np.all((sizes < 0.001 * most[:, None]) | (sizes > 0.999 * most[:, None]) | np.isnan(sizes), axis=1)
        return np.asarray(np.where(is_ternary, most, mean))
    largest = top(rule.bits) if rule.codebook == "linear" else TABLES[rule.codebook].max()
    return np.asarray(np.nanmax(np.abs(groups), axis=1) / largest)


def _stored_scales(wanted: Array, rule: Rule) -> tuple[Array, Array | None]:
    """Scales as they are kept, flat: float16; float32 for a codebook's; powers of two for FP4; 8 bits if doubled."""
    flat = np.maximum(wanted.ravel(), TINY)
    if rule.codebook == "fp4":
        return np.asarray(np.ceil(np.log2(flat)) + 127, np.uint8), None
    if not rule.double:
        return flat.astype(np.float16 if rule.codebook == "linear" else np.float32), None
    blocks = [flat[i : i + SECOND] for i in range(0, len(flat), SECOND)]
    second = np.array([b.max() for b in blocks], np.float32)
    first = np.concatenate([np.ceil(b / s * 255) for b, s in zip(blocks, second, strict=True)])
    return np.clip(first, 1, 255).astype(np.uint8), second


def _asymmetric(w: Array, groups: Array, rule: Rule) -> Packed:
    """From the smallest to the largest number of a unit, zero on the grid."""
    low = np.minimum(np.nanmin(groups, axis=1), 0)
    high = np.maximum(np.nanmax(groups, axis=1), 0)
    steps = 2**rule.bits - 1
    scales = np.maximum((high - low) / steps, TINY).astype(np.float16)
    zeros = np.clip(np.round(-low / scales), 0, steps)
    packed = Packed(rule, (w.shape[0], w.shape[1]), np.zeros(0, np.uint8), scales.ravel(), pack_bits(zeros, rule.bits))
    codes = np.clip(np.round(w / packed._spread(packed.unit_scales())) + packed._spread(zeros), 0, steps)
    return Packed(rule, packed.shape, pack_bits(codes, rule.bits), packed.scales, packed.zeros)


def _kmeans(w: Array, groups: Array, rule: Rule) -> Packed:
    units = groups.swapaxes(1, 2).reshape(-1, groups.shape[1])  # [units, in a unit]
    tables = np.array([_lloyd(unit[~np.isnan(unit)], 2**rule.bits) for unit in units], np.float32)
    blank = Packed(rule, (w.shape[0], w.shape[1]), np.zeros(0, np.uint8), tables)
    which = np.broadcast_to(blank._spread(np.arange(len(units)).reshape(blank.units)), w.shape)
    codes = np.zeros(w.shape, np.int64)
    for unit, table in enumerate(tables):
        mine = which == unit
        codes[mine] = nearest(w[mine], table)
    return Packed(rule, blank.shape, pack_bits(codes, rule.bits), tables)


def _lloyd(numbers: Array, size: int, rounds: int = 200) -> Array:
    """``size`` ascending levels: each the mean of the numbers nearest to it (Lloyd 1982), from the quantiles on."""
    levels = np.quantile(numbers, (np.arange(size) + 0.5) / size)
    for _ in range(rounds):
        near = nearest(numbers, levels)
        counts = np.bincount(near, minlength=size)
        sums = np.bincount(near, weights=numbers, minlength=size)
        fresh = np.where(counts > 0, sums / np.maximum(counts, 1), levels)
        if np.allclose(fresh, levels, rtol=0, atol=1e-7):
            break
        levels = fresh
    return np.asarray(levels)
