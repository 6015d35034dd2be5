"""The formulas that kernel timings are fitted to: seconds of many rows at once, from the Terms that a device then has.

They are those of sim/analytic/roofline.py and sim/analytic/fused.py (a test holds both equal, op by op), and what only
a benchmark sees: it reads the same buffers again and again, so that small ones stay on chip (``hot_share``,
``hot_cost``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf

import numpy as np
from numpy.typing import NDArray

from sim.analytic.fused import decode_seconds, prefill_seconds
from sim.analytic.hardware import Terms
from sim.analytic.roofline import busy_area, combine

__all__ = ["ATTENTION", "FORMULAS", "Parameter", "Rows", "kept", "seconds"]

Floats = NDArray[np.float64]
Rows = Mapping[str, Floats]  # columns of one table, peak_flops, memory_Bps and onchip_bytes among them


@dataclass(frozen=True)
class Parameter:
    """A term to be fitted: profile key and field of Terms, start and bounds, and what it means."""

    key: str
    field: str
    start: float
    low: float
    high: float
    unit: float
    meaning: str


def _parameter(key: str, start: float, low: float, high: float, meaning: str) -> Parameter:
    unit = {"us": 1e-6, "ns": 1e-9}.get(key.rpartition("_")[2], 1.0)
    names = {"compute": "compute_efficiency", "memory": "memory_efficiency"}
    field = names.get(key, key if unit == 1.0 else f"{key.rpartition('_')[0]}_s")
    return Parameter(key, field, start, low, high, unit, meaning)


COMMON = (
    _parameter("compute", 0.5, 0.003, 1.0, "share of the format's peak rate"),
    _parameter("memory", 0.8, 0.05, 1.0, "share of the memory bandwidth"),
    _parameter("floor_us", 6.0, 0.3, 400.0, "launch, and all that does not depend on size"),
)
HOT = (
    _parameter("hot_share", 0.4, 0.02, 1.0, "benchmarks only: share of on-chip memory that stays warm between repeats"),
    _parameter("hot_cost", 0.5, 0.02, 1.0, "benchmarks only: cost of a byte read from there, over one from memory"),
)
OVERLAP = _parameter("overlap_p", 2.0, 1.02, 20.0, "overlap of compute and memory: 1 adds, infinity takes the larger")
PRODUCT = (
    *COMMON,
    OVERLAP,
    _parameter("depth_us", 2.0, 0.001, 200.0, "per 4096 of a dot product's length"),
    _parameter("depth_limit", 30000.0, 200.0, 1e6, "length from which dot products are split over the device"),
    _parameter("wave_columns", 3000.0, 16.0, 60000.0, "columns that one wave of tiles covers"),
    _parameter("output", 0.3, 1e-4, 100.0, "bytes' time of finishing one output, not overlapped"),
    *HOT,
)
QUANTISE = _parameter("quantise", 2.0, 1e-4, 100.0, "bytes' time of quantising one input, not overlapped")
DECODE = (
    *COMMON,
    OVERLAP,
    _parameter("tile_tokens", 100.0, 0.5, 4096.0, "keys that every query pays for at least"),
    _parameter("walk_ns", 1.0, 0.01, 1000.0, "per key of one sequence, walked in order"),
    _parameter("sequence_ns", 1.0, 1e-4, 250.0, "per query token and KV head"),
    _parameter("split_us", 3.0, 0.001, 30.0, "putting split keys together"),
    _parameter("split_tokens", 1000.0, 8.0, 20000.0, "keys at which half of that is due"),
    *HOT,
)
PREFILL = (
    *COMMON,
    _parameter("tile_tokens", 64.0, 1.0, 512.0, "queries of a tile: diagonal tiles are computed whole"),
    _parameter("walk_ns", 10.0, 0.01, 1000.0, "per key of the longest row, walked in order"),
    *HOT,
)
FORMULAS = {"gemm": PRODUCT, "decode_attention": DECODE, "prefill_attention": PREFILL}
ATTENTION = ("decode_attention", "prefill_attention")


def seconds(kind: str, terms: Terms, rows: Rows) -> Floats:
    """Seconds of every row of a table of that kind."""
    if kind == "gemm":
        return _product(terms, rows)
    return _decode(terms, rows) if kind == "decode_attention" else _prefill(terms, rows)


def cold(terms: Terms) -> Terms:
    """Terms without what only a benchmark sees."""
    return replace(terms, hot_share=0.0, hot_cost=1.0)


def kept(terms: Terms, moved: Floats, onchip_bytes: Floats) -> Floats:
    """Bytes as if from memory: all stays warm up to ``hot_share`` of the on-chip memory, nothing beyond twice that."""
    if not terms.hot_share:
        return moved
    warm = np.clip(2.0 - moved / np.maximum(terms.hot_share * onchip_bytes, 1.0), 0.0, 1.0)
    return moved * (1.0 - warm * (1.0 - terms.hot_cost))


def _product(terms: Terms, rows: Rows) -> Floats:
    m, n, k, memory_Bps = rows["m"], rows["n"], rows["k"], rows["memory_Bps"]
    compute = k * busy_area(terms, m, n) * 2 / (rows["peak_flops"] * terms.compute_efficiency)
    weights = kept(terms, n * k * rows["weight_bytes"], rows["onchip_bytes"])
    memory = (weights + 2.0 * m * (n + k)) / (memory_Bps * terms.memory_efficiency)
    deep = k if terms.depth_limit == inf else k / (1.0 + k / terms.depth_limit)
    aside = (terms.quantise * k + terms.output * n) * m / memory_Bps
    total: Floats = combine(compute, memory, terms.overlap_p) + (terms.floor_s + terms.depth_s * deep / 4096 + aside)
    return total


def _decode(terms: Terms, rows: Rows) -> Floats:
    batch, reads, heads, head_dim = rows["batch"], rows["kv_len"], rows["heads"], rows["head_dim"]
    memory_Bps = rows["memory_Bps"] * terms.memory_efficiency
    pair_s = 4.0 * heads * head_dim / (rows["peak_flops"] * terms.compute_efficiency)
    cached = batch * reads * rows["kv_heads"] * head_dim * 2.0 * rows["kv_bytes"]
    memory = kept(terms, cached, rows["onchip_bytes"]) / memory_Bps
    compute, memory, added = decode_seconds(terms, batch * reads, batch, rows["kv_heads"], head_dim, pair_s, memory)
    busy = combine(compute, memory + 4.0 * batch * heads * head_dim / memory_Bps, terms.overlap_p)
    total: Floats = busy + (terms.floor_s + added)
    return total


def _prefill(terms: Terms, rows: Rows) -> Floats:
    heads, head_dim, tokens = rows["heads"], rows["head_dim"], rows["batch"] * rows["isl"]
    memory_Bps = rows["memory_Bps"] * terms.memory_efficiency
    pair_s = 4.0 * heads * head_dim / (rows["peak_flops"] * terms.compute_efficiency)
    one = prefill_seconds(terms, rows["pairs"], 0.0, rows["isl"], head_dim, pair_s)  # of one sequence
    walk = terms.walk_s * head_dim / 128 * np.minimum(2.0 * rows["pairs"] / rows["isl"], rows["isl"])
    compute = rows["batch"] * (one - walk) + walk
    moved = tokens * head_dim * (4.0 * heads + 2.0 * rows["kv_heads"] * rows["kv_bytes"])
    memory = kept(terms, moved, rows["onchip_bytes"]) / memory_Bps
    total: Floats = compute + memory + terms.floor_s
    return total
