"""Table drafts: a unigram or bigram table proposes gamma tokens one after the other. No model, no search.

Leviathan, Kalman and Matias 2023 (arXiv 2211.17192), section 4.2 and table 3: the trivial drafts that still pay (a
bigram keeps 0.20 of its tokens on English to German, and with gamma 3 gives 1.25x at no cost). Every round verifies
gamma tokens. A table of order 2 holds one successor (or one distribution) for each token of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sim.policies import Draws, Future, IntArray, Pass, Prompts, Totals, Windows, one_pass
from sim.policies.acceptance import SAME, kept_under, survival_vector
from sim.policies.checks import number, whole

PUBLISHED = {1: 0.08, 2: 0.20}
"""Acceptance by order: T5-XXL on WMT English to German, greedy (arXiv 2211.17192, table 3)."""


@dataclass(frozen=True)
class Bigram:
    """``order``: 1 the likeliest tokens, 2 the likeliest successors (a longer memory where ``acceptance`` is measured);
    ``gamma``: drafted tokens a round; ``acceptance``: any kind that is the same in every round, by default what was
    published for the order; ``lookup_us``: host time of a look-up, for each decoding sequence.
    """

    name: ClassVar[str] = "bigram"
    drafts: ClassVar[tuple[str, ...]] = ()
    linear: ClassVar[bool] = True
    order: int = 2
    gamma: int = 3
    acceptance: Any = None
    lookup_us: float = 0.0

    def __post_init__(self) -> None:
        whole(self.order, "policy.order", 1, 8)
        whole(self.gamma, "policy.gamma", 1, 64)
        number(self.lookup_us, "policy.lookup_us", 0, 1e6)
        if self.acceptance is None and self.order not in PUBLISHED:
            raise ValueError(f"policy.order: {self.order} has no published acceptance; give policy.acceptance")
        _ = self.survival

    @cached_property
    def survival(self) -> NDArray[np.float64]:
        """P(at least k drafts are kept), k = 1..gamma; shape [gamma], not increasing."""
        said = PUBLISHED[self.order] if self.acceptance is None else self.acceptance
        return survival_vector(said, self.gamma, kinds=SAME)

    @property
    def expected_tokens(self) -> float:
        """Tokens a round, E = 1 + sum of the survival vector."""
        return 1.0 + float(self.survival.sum())

    @property
    def tokens_per_round(self) -> int:
        """At most: gamma drafts and the target's own token."""
        return self.gamma + 1

    @property
    def host_s(self) -> tuple[float, float]:
        """Seconds that the host takes in a round, and for each sequence."""
        return 0.0, self.lookup_us * 1e-6

    def future(self, draws: Draws, start: int, remaining: int) -> Future:
        """One uniform a round against the survival vector; the last gain is clipped to what is left."""
        return one_pass.steady(draws, self._kept, self.gamma, start, remaining, self.expected_tokens)

    def _kept(self, u: NDArray[np.float64]) -> IntArray:
        return kept_under(self.survival, u)

    def channels(self, windows: tuple[Windows, ...]) -> int:
        """Drafted tokens, then reads and pairs by attention kind."""
        return one_pass.channels(windows)

    def rows(self, future: Future, context: int, windows: tuple[Windows, ...]) -> tuple[IntArray, ...]:
        """gamma + 1 tokens a round after what is cached."""
        return one_pass.rows(future, context, windows)

    def passes(
        self, seats: Any, totals: Totals | None, prompts: Prompts | None, windows: tuple[Windows, ...]
    ) -> Iterable[Pass]:
        """One target pass: a token of each sequence and its drafts, all of them to the head."""
        return one_pass.passes(seats, totals, prompts, windows)
