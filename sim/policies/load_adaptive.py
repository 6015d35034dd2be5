"""Speculative decoding whose gamma follows the load: long drafts for few sequences, short ones for many, or none.

vLLM's ``num_speculative_tokens_per_batch_size`` (PR 32374), SGLang's tiers with hysteresis (PRs 13376, 21599). Drafts
pay while the target waits for its weights; with many sequences the tokens verified in vain cost what they weigh.

The replica asks for the tier when it plans a round with decodes, from the sequences that decode in it: up as soon as
they reach a tier's ``batch``, down when they fall ``hysteresis`` below it and one more. A change redraws no round that
has begun, and under the same luck: a tier keeps min(kept, gamma) of what the longest draft keeps. KV memory and seats
are set aside for the longest draft throughout.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.policies import Draws, Future, IntArray, Model, Pass, Prompts, Totals, Windows
from sim.policies.acceptance import SAME, kept_under, survival_vector
from sim.policies.checks import number, whole
from sim.policies.drafting import model_of, shares_kv
from sim.policies.ragged import Course, Ragged
from workloads.errors import shown

OFF = ("fed", "idle")
MOST_BATCH = 1 << 20
TIERS = ({"batch": 1, "gamma": 3}, {"batch": 64, "gamma": 2}, {"batch": 256, "gamma": 0})


class Tier(NamedTuple):
    """From ``batch`` decoding sequences on, ``gamma`` drafted tokens a round; 0: no drafts."""

    batch: int
    gamma: int


@dataclass(frozen=True)
class LoadAdaptive:
    """``tiers``: list of ``{batch, gamma}``, the first from batch 1; ``hysteresis``: sequences; ``switch_ms``: what a
    change of tier costs the round that begins with it (another captured graph); ``off``: while gamma is 0 the draft is
    ``fed`` what is emitted, one pass a round without logits, or ``idle`` and reads all that it has missed when drafts
    come back; ``acceptance``: as for speculative, the kinds that are the same everywhere, for the longest draft.
    """

    name: ClassVar[str] = "load_adaptive"
    linear: ClassVar[bool] = True
    draft: Any = "auto"
    tiers: Any = field(default_factory=lambda: [dict(tier) for tier in TIERS])
    hysteresis: int = 0
    switch_ms: float = 0.0
    off: str = "fed"
    acceptance: Any = field(default=0.8)

    def __post_init__(self) -> None:
        _ = self.drafts, self.survival
        number(self.switch_ms, "policy.switch_ms", 0.0, 1e6)
        most = max(self.ladder[1].batch - 2, 0) if len(self.ladder) > 1 else 0
        whole(self.hysteresis, "policy.hysteresis", 0, most)  # more, and the first tier would never come back
        if not isinstance(self.off, str) or self.off not in OFF:
            raise ValueError(f"policy.off: {shown(self.off)} is not one of {', '.join(OFF)}")

    @cached_property
    def ladder(self) -> tuple[Tier, ...]:
        """The tiers in order of their batch."""
        said = self.tiers
        if not isinstance(said, list | tuple) or not 1 <= len(said) <= 64:
            raise ValueError(f"policy.tiers: {shown(said)} is not a list of 1 to 64 tiers {{batch, gamma}}")
        tiers = tuple(_tier(one, f"policy.tiers[{i}]") for i, one in enumerate(said))
        batches = [tier.batch for tier in tiers]
        if batches[0] != 1 or any(a >= b for a, b in pairwise(batches)):
            raise ValueError(f"policy.tiers: batches {batches} must rise, from 1")
        if not any(tier.gamma for tier in tiers):
            raise ValueError(f"policy.tiers: {shown(said)}: no tier drafts; use autoregressive")
        return tiers

    @cached_property
    def survival(self) -> NDArray[np.float64]:
        """P(at least k drafted tokens are kept), k up to the largest gamma."""
        return survival_vector(self.acceptance, self.most, kinds=SAME)

    @cached_property
    def most(self) -> int:
        """The largest gamma."""
        return max(tier.gamma for tier in self.ladder)

    # -- tiers, by their number in the ladder

    @property
    def switch_ns(self) -> int:
        """What a change of tier adds to a round."""
        return round(self.switch_ms * 1e6)

    def tier_of(self, tier: int, seats: int) -> int:
        """The tier of a round with so many decoding sequences, after one of tier ``tier``."""
        ladder = self.ladder
        while tier + 1 < len(ladder) and seats >= ladder[tier + 1].batch:
            tier += 1
        while seats < self.least_seats(tier):
            tier -= 1
        return tier

    def least_seats(self, tier: int) -> int:
        """Fewest decoding sequences with which a tier stays."""
        return self.ladder[tier].batch - self.hysteresis if tier else 0

    def loaded(self, batch: int) -> LoadAdaptive:
        """The policy as it is while so many sequences decode, come to from below: always the gamma of their tier."""
        gamma = self.ladder[self.tier_of(0, batch)].gamma
        tiers = [{"batch": 1, "gamma": gamma}, {"batch": MOST_BATCH, "gamma": self.most}]
        return replace(self, tiers=tiers, hysteresis=0)

    def tier_future(self, tier: int, draws: Draws, start: int, remaining: int) -> Future:
        """Rounds from own round ``start`` on if the load never leaves this tier."""
        courses, row, _ = draws.from_tile("acceptance", self._courses[tier])
        if courses.lasts(remaining, row, start):
            cut: Future = courses.cut(remaining, row, start)
            return cut
        guess = min(max(8, int(1.3 * remaining / self.tokens_at(tier))), remaining)
        while True:
            course = self._course(draws.uniforms("acceptance", start, guess), self.ladder[tier].gamma)
            if course.total[-1] >= remaining:
                return course.cut(remaining)
            guess = min(2 * guess, remaining)

    def tokens_at(self, tier: int) -> float:
        """Tokens a round in a tier: E = 1 + sum of the survival vector up to its gamma."""
        return 1.0 + float(self.survival[: self.ladder[tier].gamma].sum())

    @cached_property
    def _courses(self) -> tuple[Any, ...]:
        """One builder a tier: tiles are kept by what built them."""
        return tuple(_Builder(self, tier.gamma).course for tier in self.ladder)

    def _course(self, u: NDArray[np.float64], gamma: int) -> Course:
        kept = np.minimum(kept_under(self.survival, u), gamma)
        drafted = np.full_like(kept, gamma)
        return Course.of(kept, drafted, self.ragged.runs(drafted))

    # -- what the engine asks

    @property
    def tokens_per_round(self) -> int:
        """At most: the longest draft and the target's own token."""
        return self.most + 1

    @property
    def drafts(self) -> tuple[str | Model, ...]:
        """One draft model."""
        return (model_of(self.draft),)

    @property
    def expected_tokens(self) -> float:
        """Tokens a round of a sequence alone."""
        return self.tokens_at(0)

    @property
    def shares_kv(self) -> bool:
        """Whether the draft works on the target's cache."""
        return shares_kv(self.drafts)

    @cached_property
    def ragged(self) -> Ragged:
        """Passes of drafts of different length."""
        return Ragged(self.most, fed=self.off == "fed" and not self.shares_kv, shared=self.shares_kv)

    def future(self, draws: Draws, start: int, remaining: int) -> Future:
        """Of a sequence alone; :meth:`tier_future` where others decode too."""
        return self.tier_future(0, draws, start, remaining)

    def channels(self, windows: tuple[Windows, ...]) -> int:
        """See ragged.py."""
        return self.ragged.channels(windows)

    def rows(self, future: Future, context: int, windows: tuple[Windows, ...]) -> tuple[IntArray, ...]:
        """Of whatever was drafted in each round, whichever tiers that was in."""
        return self.ragged.rows(future, context, windows)

    def passes(
        self, seats: Any, totals: Totals | None, prompts: Prompts | None, windows: tuple[Windows, ...]
    ) -> Iterable[Pass]:
        """As many draft passes as the tier has, then verification."""
        return self.ragged.passes(seats, totals, prompts, windows)


class _Builder(NamedTuple):
    """Makes the courses of one gamma from draws."""

    policy: LoadAdaptive
    gamma: int

    def course(self, u: NDArray[np.float64]) -> Course:
        """Of neighbouring requests."""
        return self.policy._course(u, self.gamma)


def _tier(said: Any, key: str) -> Tier:
    if not isinstance(said, Mapping) or set(said) != {"batch", "gamma"}:
        raise ValueError(f"{key}: {shown(said)} is not {{batch, gamma}}")
    return Tier(whole(said["batch"], f"{key}.batch", 1, MOST_BATCH), whole(said["gamma"], f"{key}.gamma", 0, 64))
