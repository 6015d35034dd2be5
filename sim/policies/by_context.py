"""Acceptance that depends on how many tokens are cached when a round starts.

Draft models and heads lose the thread of long contexts (EAGLE-3 on Qwen3-8B: 2.30 tokens a round at 2,000 tokens of
context, 1.09 at 16,000; speculators issue 684). Between two measured contexts the survival vectors are mixed on a
straight line, outside they stay as they are.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sim.policies import Draws

__all__ = ["ByContext"]


@dataclass(frozen=True)
class ByContext:
    """``contexts``: tokens cached, rising, [points]; ``vectors``: the survival vector at each, [points, gamma]."""

    contexts: tuple[int, ...]
    vectors: tuple[tuple[float, ...], ...]

    def at(self, context: int) -> NDArray[np.float64]:
        """P(at least k drafts kept) of a round that starts with ``context`` tokens cached; shape [gamma]."""
        low, high, share = self._between(context)
        return np.array([a + share * (b - a) for a, b in zip(low, high, strict=True)])

    def first(self, draws: Draws) -> int:
        """Where a sequence's walk begins: its prompt is cached before its first decode round."""
        return draws.prompt

    def kept(self, context: int, coins: Sequence[float]) -> list[int]:
        """Drafts kept in each round from ``context`` cached tokens on, one uniform a round."""
        out = []
        for coin in coins:
            low, high, share = self._between(context)
            kept = 0
            for a, b in zip(low, high, strict=True):
                if coin >= a + share * (b - a):
                    break
                kept += 1
            out.append(kept)
            context += kept + 1
        return out

    def _between(self, context: int) -> tuple[tuple[float, ...], tuple[float, ...], float]:
        """The vectors to either side of ``context`` and how far it lies from the first towards the second."""
        after = bisect_right(self.contexts, context)
        if after in (0, len(self.contexts)):
            only = self.vectors[min(after, len(self.contexts) - 1)]
            return only, only, 0.0
        below, above = self.contexts[after - 1], self.contexts[after]
        return self.vectors[after - 1], self.vectors[after], (context - below) / (above - below)
