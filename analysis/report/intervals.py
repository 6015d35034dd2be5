"""How sure the latencies of one run are: intervals from consecutive requests drawn again in blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.blocks import block_length

__all__ = ["mean_and_percentiles"]

Floats = NDArray[np.float64]
LEAST, DRAWS, WORK, CONFIDENCE = 30, 400, 4_000_000, 0.95
PERCENTILES = (50.0, 99.0)


def mean_and_percentiles(values: Any) -> list[tuple[str, float, float, float]]:
    """(statistic, value, low, high): mean, p50, p99 of the known ``values`` in order of arrival, with 95 % intervals.

    Circular blocks as long as the values stay correlated (analysis/blocks.py); nothing below 30 values. Of a
    stationary run only: a line that grows without end is seen by no interval.
    """
    series = np.ma.compressed(np.ma.masked_invalid(np.ma.asarray(values, dtype=np.float64)))
    if len(series) < LEAST:
        return []
    found, drawn = _statistics(series), _draws(series)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    names = ("mean", *(f"p{q:g}" for q in PERCENTILES))
    return [(name, float(v), float(a), float(b)) for name, v, a, b in zip(names, found, low, high, strict=True)]


def _statistics(series: Floats) -> Floats:
    return np.array([series.mean(), *np.percentile(series, PERCENTILES)])


def _draws(series: Floats) -> Floats:
    """The statistics of every draw, shape [draws, 3]."""
    n, length = len(series), block_length(series)[0]
    rng = np.random.default_rng([n, length])
    offsets, draws = np.arange(length), max(50, min(DRAWS, WORK // n))
    rows = []
    for _ in range(draws):
        starts = rng.integers(0, n, -(-n // length))
        rows.append(_statistics(series[((starts[:, None] + offsets) % n).ravel()[:n]]))
    return np.array(rows)
