"""How many experts the tokens of a pass visit, and how uneven it gets, when some experts are chosen more often.

Every token chooses k of E experts; expert e is among them with probability q_e, and the q_e add up to k. Tokens choose
independently of each other, so that n of them visit ``sum_e 1 - (1 - q_e)^n`` experts (uniform: E (1 - (1 - k/E)^n)).
The same law with k = 1 says how many of A adapters a batch uses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import lgamma, log1p
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["busiest", "dropped", "inclusion", "visited", "zipf"]

Count = Any


def zipf(experts: int, skew: float) -> tuple[float, ...]:
    """Popularity of rank r, proportional to r^-skew; not normalised. Skew 0: all alike."""
    return tuple(float(rank) ** -skew for rank in range(1, experts + 1))


def inclusion(popularity: Sequence[float], chosen: int) -> tuple[float, ...]:
    """P(expert is among the ``chosen``): proportional to its popularity, at most 1, adding up to ``chosen``.

    Experts that would exceed 1 are always chosen; the rest is shared in proportion among the others.
    """
    certain: set[int] = set()
    while True:
        rest = sum(p for i, p in enumerate(popularity) if i not in certain)
        left = chosen - len(certain)
        over = {i for i, p in enumerate(popularity) if i not in certain and p * left >= rest * (1 + 1e-12)}
        if not over or rest <= 0:
            scale = left / rest if rest > 0 else 0.0
            return tuple(1.0 if i in certain else min(1.0, p * scale) for i, p in enumerate(popularity))
        certain |= over


def visited(shares: Sequence[float], tokens: Count) -> NDArray[np.float64]:
    """Expected experts that at least one of ``tokens`` visits; elementwise. ``shares``: q_e of every expert."""
    n = np.asarray(tokens, dtype=np.float64)
    total = 0.0 * n
    for share, count in Counter(shares).items():
        total = total + count * (1.0 - np.power(1.0 - share, n))
    return np.asarray(total)


def busiest(shares: Sequence[float], tokens: int) -> float:
    """Expected tokens of the busiest expert: ``sum_m 1 - prod_e P(X_e <= m)`` with X_e binomial.

    Loads add up to k n; taking them as independent errs by a few percent (2.7 low for 24 tokens, 2 of 8 experts).
    """
    below = np.ones(tokens)
    for share, count in Counter(shares).items():
        below = below * np.cumsum(_binomial(tokens, share))[:tokens] ** count
    return float((1.0 - below).sum())


def dropped(shares: Sequence[float], tokens: int, capacity: int) -> float:
    """Expected share of choices that find their expert full: ``sum_e E[max(0, X_e - capacity)] / (k n)``."""
    over = np.maximum(np.arange(tokens + 1) - capacity, 0)
    lost = sum(count * float(_binomial(tokens, share) @ over) for share, count in Counter(shares).items())
    return float(lost / (sum(shares) * tokens))


def _binomial(tokens: int, share: float) -> NDArray[np.float64]:
    """P(X = m), m = 0..tokens; shape [tokens + 1]."""
    if share >= 1.0 or share <= 0.0:
        return np.asarray(np.eye(tokens + 1)[tokens if share >= 1.0 else 0])
    m: NDArray[np.int64] = np.arange(tokens + 1)
    logs = np.array([lgamma(i + 1) for i in range(tokens + 1)])
    return np.asarray(np.exp(logs[-1] - logs - logs[::-1] + m * np.log(share) + (tokens - m) * log1p(-share)))
