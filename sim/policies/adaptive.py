"""Adaptive draft length: a draft model goes on while a rule expects its tokens to be kept, at most ``gamma`` of them.

Tandem's router (arXiv 2402.08644, section 4: a small network on the drafter's entropy, top probabilities and their
embeddings), the confidence threshold of Hugging Face's assisted generation and of DISCO (arXiv 2405.04304), the entropy
bound of AdaEDL (arXiv 2410.18351). All are one law: how often the rule goes on and how well it knows
(sim/policies/predicted.py). Lossless as long as the rule does not look at which token was drawn before dropping it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.policies import Draws, Future, IntArray, Model, Pass, Prompts, Totals, Windows
from sim.policies.checks import probability, whole
from sim.policies.drafting import model_of, shares_kv
from sim.policies.guided import Guided
from sim.policies.predicted import Rule, Stopping, stopping
from sim.policies.ragged import Course, Ragged
from workloads.errors import shown

LAST = ("kept", "dropped")
SKILL = {"router": 1.0, "confidence": 0.6, "entropy": 0.45}
"""How well a rule knows: a trained router as an oracle, which Tandem's run counts are no worse than; the others as
measured on the shipped pair, greedy (docs/policies/adaptive.md; sampled at temperature 1 both are near 0.15)."""
TOKENS = {"kind": "tokens", "mean": 0.71, "concentration": 1.1}
"""First two moments of the acceptance probabilities of the shipped pair primary--drafter (5,080 tokens)."""


class Means(NamedTuple):
    """Of a round: ``tokens`` emitted, ``drafts`` offered to the target, ``passes`` that the draft runs."""

    tokens: float
    drafts: float
    passes: float


@dataclass(frozen=True)
class Adaptive:
    """``gamma``: longest draft; ``threshold``: predicted acceptance under which it stops; ``rule``: who predicts,
    which says how well unless ``skill`` does, 0 to 1; ``last``: whether the token that looked bad is verified too
    (``kept``) or not offered (``dropped``); ``acceptance``: see predicted.py, or ``empirical`` (guided.py).
    """

    name: ClassVar[str] = "adaptive"
    linear: ClassVar[bool] = True
    draft: Any = "auto"
    gamma: int = 10
    threshold: float = 0.5
    rule: str = "confidence"
    skill: float | None = None
    last: str = "kept"
    acceptance: Any = field(default_factory=lambda: dict(TOKENS))

    def __post_init__(self) -> None:
        whole(self.gamma, "policy.gamma", 1, 64)
        probability(self.threshold, "policy.threshold")
        for key, value, allowed in (("rule", self.rule, tuple(SKILL)), ("last", self.last, LAST)):
            if not isinstance(value, str) or value not in allowed:
                raise ValueError(f"policy.{key}: {shown(value)} is not one of {', '.join(allowed)}")
        if self.skill is not None:
            probability(self.skill, "policy.skill")
        _ = self.drafts, self.means

    # -- the law of a round

    @cached_property
    def _rule(self) -> Rule:
        skill = SKILL[self.rule] if self.skill is None else self.skill
        return Rule(self.gamma, self.threshold, skill, self.last == "dropped")

    @cached_property
    def walk(self) -> Guided | None:
        """Where acceptance depends on the place in a text (kind ``empirical``): that text; else None."""
        if isinstance(self.acceptance, Mapping) and self.acceptance.get("kind") == "empirical":
            return Guided.of(self.acceptance, self._rule)
        return None

    @cached_property
    def law(self) -> Stopping:
        """Where the rule stops and what is kept; of a text, over rounds that start anywhere in it."""
        return self.walk.stopping if self.walk is not None else stopping(self.acceptance, self._rule)

    @cached_property
    def means(self) -> Means:
        """Closed forms: sums over where the rule stops."""
        stops = self.law.stops
        s = np.arange(1, self.gamma + 2)
        offered, passes = self._offered(s), np.minimum(s, self.gamma)
        alive = self.law.keep * (np.arange(1, self.gamma + 1) <= offered[:, None])
        tokens = 1.0 + float(stops @ alive.sum(axis=1))
        return Means(tokens, float(stops @ offered), float(stops @ passes))

    @property
    def expected_tokens(self) -> float:
        """Tokens a round, E = 1 + sum over s of P(stop at s) sum over k <= offered(s) of P(k kept | s)."""
        return self.means.tokens

    def wall_time_factor(self, draft: float, verify: float = 1.0) -> float:
        """Speedup of one sequence alone: E / (passes * draft + verify), costs in steps of plain decoding."""
        return self.means.tokens / (self.means.passes * draft + verify)

    def _offered(self, stop: IntArray) -> IntArray:
        """Tokens offered to the target where the rule stops at token ``stop``, gamma + 1: never."""
        return stop - 1 if self.last == "dropped" else np.minimum(stop, self.gamma)

    # -- what the engine asks

    @property
    def tokens_per_round(self) -> int:
        """At most: gamma drafts and the target's own token."""
        return self.gamma + 1

    @property
    def drafts(self) -> tuple[str | Model, ...]:
        """One draft model."""
        return (model_of(self.draft),)

    @property
    def shares_kv(self) -> bool:
        """Whether the draft works on the target's cache."""
        return shares_kv(self.drafts)

    @cached_property
    def ragged(self) -> Ragged:
        """Passes of drafts of different length."""
        return Ragged(self.gamma, spare=self.last == "dropped", shared=self.shares_kv)

    def future(self, draws: Draws, start: int, remaining: int) -> Future:
        """A draw for where the rule stops and one for what is kept, each round; the last gain is clipped."""
        if self.walk is not None:
            return self._walked(self.walk, draws, start, remaining)
        courses, row, _ = draws.from_tile("acceptance", self._course, "draft_length")
        if courses.lasts(remaining, row, start):
            cut: Future = courses.cut(remaining, row, start)
            return cut
        guess = min(max(8, int(1.3 * remaining / self.expected_tokens)), remaining)
        while True:
            luck = (draws.uniforms(purpose, start, guess) for purpose in ("acceptance", "draft_length"))
            course = self._course(*luck)
            if course.total[-1] >= remaining:
                return course.cut(remaining)
            guess = min(2 * guess, remaining)

    def _course(self, coins: NDArray[np.float64], lengths: NDArray[np.float64]) -> Course:
        """Rounds from draws of the same shape, [..., rounds]."""
        stop = np.searchsorted(-self.law.go, -lengths, side="left") + 1
        offered = self._offered(stop)
        full = np.zeros_like(stop)
        for s, alive in enumerate(self.law.keep, 1):
            here = stop == s
            full[here] = np.searchsorted(-alive, -coins[here], side="left")
        return Course.of(np.minimum(full, offered), offered, self.ragged.runs(offered))

    def _walked(self, along: Guided, draws: Draws, start: int, remaining: int) -> Future:
        """The same along a text from an addressed place, which is walked from its first round whatever ``start`` is."""
        offset = int(draws.uniforms("offset", 0, 1)[0] * along.tokens)
        guess = start + min(max(8, int(1.3 * remaining / self.expected_tokens)), remaining)
        while True:
            luck = (draws.uniforms(purpose, 0, guess).tolist() for purpose in ("acceptance", "draft_length"))
            kept, offered = (np.array(c, dtype=np.int64)[start:] for c in along.rounds(offset, *luck))
            if len(kept) + kept.sum() >= remaining:
                course = Course.of(kept, offered, self.ragged.runs(offered))
                return course.cut(remaining)
            guess = start + min(2 * (guess - start), remaining)

    def channels(self, windows: tuple[Windows, ...]) -> int:
        """See ragged.py."""
        return self.ragged.channels(windows)

    def rows(self, future: Future, context: int, windows: tuple[Windows, ...]) -> tuple[IntArray, ...]:
        """Of drafts as long as they were in each round."""
        return self.ragged.rows(future, context, windows)

    def passes(
        self, seats: Any, totals: Totals | None, prompts: Prompts | None, windows: tuple[Windows, ...]
    ) -> Iterable[Pass]:
        """Draft pass j over the sequences that still draft, then verification of what each has."""
        return self.ragged.passes(seats, totals, prompts, windows)
