"""Choosing the k' best of n by approximate scores: what is found, what a batch reads together, what gathering costs.

The recall integral follows from Gaussian scores with Gaussian noise; unions from de Finetti: rows of a batch that may
be exchanged choose independently given how popular each unit is.
"""

from __future__ import annotations

from math import comb, erf, lgamma, sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["gather_efficiency", "recall", "shard_recall", "union"]

Count = Any  # a number, or an array of shape [rounds]
STEPS = 2000  # of the recall integral, whose integrand is smooth
ALIKE = 1e-6  # overlap closer than this to independence is independence

_lgamma = np.frompyfunc(lgamma, 1, 1)


def recall(noise: float, candidates: int, keep: int, total: int) -> float:
    """Expected share of the true ``keep`` best of ``total`` that are among the ``candidates`` best noisy scores.

    Scores are Gaussian, ``noise`` is the standard deviation of their error over that of the scores. With z_q the upper
    q / total quantile: (V/k) * integral from z_k of phi(l) Phi((l - z_k' sqrt(1 + s^2)) / s) dl, taken over the upper
    tail in even steps of probability. Raises ValueError unless keep <= candidates <= total and noise > 0.
    """
    if not 0 < keep <= candidates <= total or not noise > 0:
        raise ValueError(f"recall: noise {noise}, keep {keep}, candidates {candidates} of {total}: need 0 < keep <= "
                         "candidates <= total and noise > 0")  # fmt: skip
    if candidates == total:
        return 1.0
    normal = NormalDist()
    bar = normal.inv_cdf(1 - candidates / total) * sqrt(1 + noise * noise)
    tail = ((i + 0.5) / STEPS * (keep / total) for i in range(STEPS))
    above = ((-normal.inv_cdf(share) - bar) / noise for share in tail)
    return sum((1 + erf(x / sqrt(2))) / 2 for x in above) / STEPS


def shard_recall(cap: int, keep: int, total: int, shards: int) -> float:
    """Expected share of the true ``keep`` best that survive when each of ``shards`` may name ``cap`` (DA-TOP-k).

    The best lie on the shards at random: s E[min(X, cap)] / k with X hypergeometric (k drawn from V, V/s on a shard).
    Raises ValueError unless shards divide total.
    """
    if shards < 1 or total % shards or not 0 < keep <= total:
        raise ValueError(f"shard_recall: {shards} shards must divide {total}, and keep {keep} be from 1 to {total}")
    own = total // shards
    ways = [comb(own, x) * comb(total - own, keep - x) for x in range(min(own, keep) + 1)]
    found = sum(min(x, cap) * n for x, n in enumerate(ways))
    return shards * found / (comb(total, keep) * keep)


def union(rows: Count, total: int, chosen: Count, overlap: float | None = None) -> Count:
    """Expected distinct units of ``total`` when each of ``rows`` chooses ``chosen``; elementwise.

    ``overlap``: how likely a unit that one row chose is chosen by another row too; None: independent rows,
    n (1 - (1 - c/n)^m). Otherwise units differ in popularity by a Beta law with that overlap, and
    n (1 - B(a, b + m) / B(a, b)), a + b = (1 - overlap) / (overlap - c/n), a = (a + b) c/n. Exact at 0 and 1 rows.
    Raises ValueError for an overlap below that of independent rows, or above 1.
    """
    rows, chosen = np.asarray(rows, dtype=np.float64), np.asarray(chosen, dtype=np.float64)
    share = chosen / total
    if overlap is not None and not float(np.max(share)) - ALIKE <= overlap <= 1:
        raise ValueError(f"overlap: {overlap}: must be from {float(np.max(share)):.4g}, the share chosen, to 1")
    if overlap is None:
        unseen = np.power(1.0 - share, rows)
    elif overlap > 1 - ALIKE:
        unseen = 1.0 - share * (rows > 0)
    else:
        unseen = np.where(overlap - share < ALIKE, np.power(1.0 - share, rows), _unseen(share, rows, overlap))
    return np.where(rows <= 1, rows * chosen, total * (1.0 - unseen)) + 0.0


def _unseen(share: NDArray[Any], rows: NDArray[Any], overlap: float) -> NDArray[Any]:
    """Chance that no row chooses a unit: B(a, b + m) / B(a, b)."""
    spread = (1.0 - overlap) / np.maximum(overlap - share, ALIKE)
    rest = np.maximum((1.0 - share) * spread, 1e-300)
    logs = _lgamma(rest + rows) - _lgamma(rest) - _lgamma(spread + rows) + _lgamma(spread)
    return np.exp(np.asarray(logs, dtype=np.float64))


def gather_efficiency(chunk_bytes: float, half_bytes: float) -> float:
    """Share of the memory bandwidth that gathering contiguous chunks reaches: c / (c + half).

    Each chunk costs the time of ``half_bytes`` more than it holds (a burst begun, a page opened).
    """
    return chunk_bytes / (chunk_bytes + half_bytes) if half_bytes else 1.0
