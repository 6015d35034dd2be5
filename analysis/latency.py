"""Latency tables: mean, median, high percentiles and maximum, in milliseconds, as ``vllm bench serve`` defines them.

Percentiles interpolate linearly between order statistics (NumPy's default), token gaps included: those come as
distinct values with weights, and the percentile is that of the multiset they stand for, which is never built.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["PERCENTILES", "Statistics", "describe", "describe_weighted", "weighted_percentiles"]

PERCENTILES = (50.0, 90.0, 99.0)
NAMES = ("mean", "std", "p50", "p90", "p99", "max")
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Statistics = dict[str, float | None]


def describe(values: Floats) -> Statistics:
    """NAMES of the values; None of each where there are no values."""
    if not len(values):
        return dict.fromkeys(NAMES)
    found = np.percentile(values, [*PERCENTILES, 100.0])
    return dict(zip(NAMES, map(float, (values.mean(), values.std(), *found)), strict=True))


def describe_weighted(values: Floats, weights: Ints) -> Statistics:
    """The same for distinct ascending values, each of which occurs ``weights`` times."""
    total = int(weights.sum())
    if not total:
        return dict.fromkeys(NAMES)
    mean = float((values * weights).sum()) / total
    std = float(np.sqrt((weights * (values - mean) ** 2).sum() / total))
    found = weighted_percentiles(values, weights, [*PERCENTILES, 100.0])
    return dict(zip(NAMES, (mean, std, *map(float, found)), strict=True))


def weighted_percentiles(values: Floats, weights: Ints, percentiles: Sequence[float]) -> Floats:
    """``np.percentile(np.repeat(values, weights), percentiles)`` without the repeat; ``values`` ascend."""
    until = np.cumsum(weights)
    place = (int(until[-1]) - 1) * (np.asarray(percentiles) / 100.0)
    low = np.floor(place).astype(np.int64)
    high = np.minimum(low + 1, until[-1] - 1)
    below, above = (values[np.searchsorted(until, k, side="right")] for k in (low, high))
    found: Floats = below + (place - low) * (above - below)
    return found
