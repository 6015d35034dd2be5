"""Is it in balance? A queue that grows is no capacity, however good the latencies of a short run look.

Requests in the system (arrived, not finished) are counted over the second and the last quarter of the time in which
requests arrive, as means of eight equal batches each. They grow if the last quarter's mean is above the second's by a
fifth and by two requests, and by more than chance: Welch's t over the batches, one-sided at 1 %.
"""

from __future__ import annotations

from itertools import pairwise
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.blocks import student_quantile

__all__ = ["grows", "in_system"]

Floats = NDArray[np.float64]
BATCHES = 8
GROWTH, LEAST, CHANCE = 1.2, 2.0, 0.01


def grows(arrival_ns: NDArray[np.int64], finish_ns: Any) -> bool:
    """Whether the number in the system grows; ``finish_ns`` is masked where a request never finished."""
    first, last = int(arrival_ns.min(initial=1 << 62)), int(arrival_ns.max(initial=0))
    if last <= first:
        return False
    left = np.ma.filled(np.ma.asarray(finish_ns, dtype=np.float64), np.inf)
    edges = first + (last - first) * np.arange(4 * BATCHES + 1) / (4 * BATCHES)
    held = in_system(arrival_ns.astype(np.float64), left, edges)
    early, late = held[BATCHES : 2 * BATCHES], held[3 * BATCHES :]
    more = float(late.mean() - early.mean())
    return more >= (GROWTH - 1) * float(early.mean()) and more > max(LEAST, _chance(early, late))


def in_system(arrival: Floats, finish: Floats, edges: Floats) -> Floats:
    """Mean number between each two edges; shape [edges - 1]."""
    spans = (np.clip(np.minimum(finish, b) - np.maximum(arrival, a), 0.0, None) for a, b in pairwise(edges))
    return np.array([span.sum() for span in spans]) / np.diff(edges)


def _chance(early: Floats, late: Floats) -> float:
    """How much the difference of two means may come to by chance (Welch, degrees of freedom by Satterthwaite)."""
    a, b = (float(x.var(ddof=1)) / len(x) for x in (early, late))
    if not a + b:
        return 0.0
    freedom = (a + b) ** 2 / ((a * a) / (len(early) - 1) + (b * b) / (len(late) - 1))
    return student_quantile(1 - CHANCE, max(1, int(freedom))) * sqrt(a + b)
