"""Speculative decoding: a draft model proposes gamma tokens, the target verifies them in one pass.

Leviathan, Kalman and Matias 2023 (arXiv 2211.17192); Chen et al. 2023 (arXiv 2302.01318). A round is gamma draft passes
over one token each and one target pass over gamma + 1; it emits the accepted prefix and one token of the target's own.
After a round that accepts everything, the draft has not yet seen its last token: its next first pass takes two.

DistillSpec (Zhou et al. 2023, arXiv 2310.08461) is the same with a draft trained on the target's outputs: nothing but
``acceptance`` changes. ``lenience`` l accepts x with probability min(1, p(x) / (l q(x))) (Leviathan et al., appendix
A.5): more is kept, and the output is no longer the target's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.analytic.work import Work, pairs_of, reads_of
from sim.policies import NO_PROMPTS, Draws, Future, IntArray, Model, Pass, Prompts, Totals, Windows
from sim.policies.acceptance import Walk, at_lenience, by_context, kept_under, survival_vector, walk
from sim.policies.by_context import ByContext
from sim.policies.checks import number, whole
from sim.policies.drafting import model_of, shares_kv
from sim.quality import LOSSLESS, Quality

LENIENT = Quality(
    None, "no token is likelier than 1/lenience times what the target gives it", "arXiv 2211.17192, appendix A.5"
)


class _Course(NamedTuple):
    """Rounds of neighbouring requests, unclipped; each of shape [requests, rounds]."""

    kept: IntArray
    gains: IntArray
    total: IntArray
    offsets: IntArray
    behind: IntArray
    drafted: IntArray


@dataclass(frozen=True)
class Speculative:
    """``draft``: a model by name or path, ``auto`` for the smallest shipped one with the target's vocabulary, or any
    model with variants (sim/policies/drafting.py); ``gamma``: drafted tokens a round; ``acceptance``: see
    acceptance.py; ``lenience``: 1 is lossless, less needs an acceptance measured with it (kind ``lenient``).
    """

    name: ClassVar[str] = "speculative"
    linear: ClassVar[bool] = True
    draft: Any = "auto"
    gamma: int = 4
    acceptance: Any = field(default=0.8)
    lenience: float = 1.0

    def __post_init__(self) -> None:
        _ = self.drafts
        whole(self.gamma, "policy.gamma", 1, 64)
        number(self.lenience, "policy.lenience", 0.001, 1.0)
        _ = self.survival

    @cached_property
    def survival(self) -> NDArray[np.float64]:
        """P(at least k drafted tokens are kept), k = 1..gamma; shape [gamma], not increasing."""
        return survival_vector(self._accepted, self.gamma)

    @cached_property
    def walk(self) -> Walk | ByContext | None:
        """What a sequence walks along where acceptance depends on the place in a text or on the context; else None."""
        return walk(self._accepted, self.gamma) or by_context(self._accepted, self.gamma)

    @cached_property
    def _accepted(self) -> Any:
        spec = at_lenience(self.acceptance, self.lenience)
        if self.lenience < 1.0 and walk(spec, self.gamma):
            raise ValueError("policy.acceptance.kind: 'empirical' replays the target's own text; lenience must be 1")
        return spec

    def settled(self, context: int) -> Speculative:
        """The same with the acceptance of this context."""
        if not isinstance(self.walk, ByContext):
            return self
        here: Any = {"kind": "survival", "vector": self.walk.at(context).tolist()}
        if self.lenience < 1.0:
            here = {"kind": "lenient", "measured": [{"lenience": self.lenience, "acceptance": here}]}
        return replace(self, acceptance=here)

    @property
    def quality(self) -> Quality:
        """Lossless unless lenient; then a bound is known and no loss."""
        return LOSSLESS if self.lenience == 1.0 else LENIENT

    @property
    def tokens_per_round(self) -> int:
        """The target verifies gamma drafts and continues after them."""
        return self.gamma + 1

    @property
    def drafts(self) -> tuple[str | Model, ...]:
        """One draft model."""
        return (model_of(self.draft),)

    @cached_property
    def shares_kv(self) -> bool:
        """The draft works on the target's cache: it reads no prompts, and has never anything to catch up."""
        return shares_kv(self.drafts)

    @property
    def expected_tokens(self) -> float:
        """Tokens a round, E = 1 + sum of the survival vector (Leviathan et al., equation 1 when it is geometric)."""
        return 1.0 + float(self.survival.sum())

    def future(self, draws: Draws, start: int, remaining: int) -> Future:
        """One uniform a round against the survival vector; the last gain is clipped to what is left."""
        if self.walk is not None:
            return self._walked(self.walk, draws, start, remaining)
        courses, row, rounds = draws.from_tile("acceptance", self._course)
        if start or courses.total[row, -1] < remaining:
            row, courses = 0, self._long_course(draws, start, remaining)
        total = courses.total[row]
        rounds = int(total.searchsorted(remaining)) + 1
        offsets = courses.offsets[row, :rounds]
        gains = courses.gains[row, :rounds].copy()
        gains[-1] = remaining - int(offsets[-1])
        kept, drafted, behind = (c[row, :rounds] for c in (courses.kept, courses.drafted, courses.behind))
        return Future(gains, offsets, kept, drafted, behind)

    def _course(self, u: NDArray[np.float64]) -> _Course:
        """What every round would keep and gain, and the running total; shapes [requests, rounds] like the draws."""
        kept = kept_under(self.survival, u)
        gains = kept + 1
        total = gains.cumsum(axis=1)
        return _Course(kept, gains, total, total - gains, self._behind(kept), np.full_like(kept, self.gamma))

    def _behind(self, kept: IntArray) -> IntArray:
        """1 in rounds after one that kept every draft: the draft model has not seen its last token; shape kept."""
        behind = np.zeros_like(kept)
        if self.shares_kv:
            return behind
        np.equal(kept[..., :-1], self.gamma, out=behind[..., 1:], casting="unsafe")
        return behind

    def _long_course(self, draws: Draws, start: int, remaining: int) -> _Course:
        guess = min(max(8, int(1.3 * remaining / self.expected_tokens)), remaining)
        while True:
            course = self._course(draws.uniforms("acceptance", start, guess)[None, :])
            if course.total[0, -1] >= remaining:
                return course
            guess = min(2 * guess, remaining)

    def _walked(self, along: Walk | ByContext, draws: Draws, start: int, remaining: int) -> Future:
        """The same along a text or a growing context, walked from the sequence's first round whatever ``start`` is."""
        offset = along.first(draws)
        guess = start + min(max(8, int(1.3 * remaining / self.expected_tokens)), remaining)
        while True:
            kept = np.array(along.kept(offset, draws.uniforms("acceptance", 0, guess).tolist()), dtype=np.int64)[start:]
            total = (kept + 1).cumsum()
            if total[-1] >= remaining:
                break
            guess = start + min(2 * (guess - start), remaining)
        rounds = int(total.searchsorted(remaining)) + 1
        gains = kept[:rounds] + 1
        offsets = total[:rounds] - gains
        gains[-1] -= int(total[rounds - 1]) - remaining
        return Future(gains, offsets, kept[:rounds], np.full(rounds, self.gamma))

    def channels(self, windows: tuple[Windows, ...]) -> int:
        """Context, catch-up positions and their context, and for windows what depends on each one's own length."""
        target, draft = windows
        return 3 + 2 * _windowed(target) + 2 * self.gamma * _windowed(draft)

    def rows(self, future: Future, context: int, windows: tuple[Windows, ...]) -> tuple[IntArray, ...]:
        """Context before each round; 1 where the draft must catch up; windowed reads and pairs where kinds differ."""
        before = future.offsets + context
        behind = self._behind(future.kept) if future.noted is None else future.noted
        rows: list[IntArray] = [before, behind, behind * before]
        for window in windows[0]:
            if window is not None:
                rows += [reads_of(before, window), pairs_of(self.gamma + 1, before, window)]
        for window in windows[1]:
            if window is not None:
                rows += _draft_rows(before, behind, self.gamma, window)
        return tuple(rows)

    def passes(
        self, seats: Any, totals: Totals | None, prompts: Prompts | None, windows: tuple[Windows, ...]
    ) -> Iterable[Pass]:
        """gamma draft passes, then verification; prompts are prefilled by both models."""
        yield from self._draft_passes(seats, totals, prompts, windows)
        part = prompts.part(windows[0]) if prompts else NO_PROMPTS
        new = seats * (self.gamma + 1)
        pairs, reads = (None, None) if totals is None else self._target_attention(seats, totals, windows[0])
        yield Pass(0, Work(part.tokens + new, part.rows + new, pairs, reads, part.pairs, part.reads, part.tokens))

    def _target_attention(self, seats: Any, totals: Totals, windows: Windows) -> tuple[Any, Any]:
        extra = iter(totals[3:])
        new = self.gamma + 1
        reads, pairs = [], []
        for window in windows:
            full = window is None
            reads.append(totals[0] if full else next(extra))
            pairs.append(new * totals[0] + seats * (new * (new + 1) // 2) if full else next(extra))
        return tuple(pairs), tuple(reads)

    def _draft_passes(
        self, seats: Any, totals: Totals | None, prompts: Prompts | None, windows: tuple[Windows, ...]
    ) -> Iterable[Pass]:
        part = prompts.part(windows[1]) if prompts and not self.shares_kv else NO_PROMPTS
        if totals is None and self.shares_kv:
            return
        if totals is None:
            yield Pass(1, Work(part.tokens, 0, None, None, part.pairs, part.reads, part.tokens))
            return
        context, behind, behind_context = totals[:3]
        steps = _StepTotals(totals[3 + 2 * _windowed(windows[0]) :], self.gamma, windows[1])
        first_reads = steps.at(0, 0, context - behind)
        first_pairs = steps.at(0, 1, context + behind_context + seats)
        tokens = part.tokens + seats + behind
        yield Pass(1, Work(tokens, seats, first_pairs, first_reads, part.pairs, part.reads, part.tokens))
        if isinstance(totals, list):  # one round: plain numbers are cheaper than arrays of one
            for step in range(1, self.gamma):
                reads = context + step * seats
                yield Pass(1, Work(seats, seats, steps.at(step, 1, reads + seats), steps.at(step, 0, reads)))
        elif self.gamma > 1:
            later = context + np.arange(1, self.gamma)[:, None] * seats
            yield Pass(1, Work(seats, seats, steps.rest(1, later + seats), steps.rest(0, later)))


class _StepTotals(NamedTuple):
    """Reads and pairs of the draft passes by attention kind: derived from the context, or windowed channels."""

    totals: Totals
    gamma: int
    windows: Windows

    def at(self, step: int, what: int, full: Any) -> tuple[Any, ...]:
        """Of draft pass ``step``; ``what`` 0: reads, 1: pairs."""
        if len(self.totals) == 0:  # no windowed kind
            return (full,) * len(self.windows)
        return tuple(full if at is None else self.totals[at + 2 * step + what] for at in self._places())

    def rest(self, what: int, full: IntArray) -> tuple[IntArray, ...]:
        """Of draft passes 1.., shape [gamma - 1, rounds]."""
        last, steps = 2 * self.gamma, (self.gamma - 1, -1)
        return tuple(
            full if at is None else np.reshape(self.totals[at + 2 + what : at + last : 2], steps)
            for at in self._places()
        )

    def _places(self) -> Iterable[int | None]:
        at = 0
        for window in self.windows:
            yield None if window is None else at
            at += 0 if window is None else 2 * self.gamma


def _windowed(windows: Windows) -> int:
    return sum(w is not None for w in windows)


def _draft_rows(before: IntArray, behind: IntArray, gamma: int, window: int) -> list[IntArray]:
    """Reads and pairs of draft pass 0, 1, ...; the first one catches up where it is behind."""
    late = np.where(behind, pairs_of(2, before - 1, window), pairs_of(1, before, window))
    rows = [reads_of(before - behind, window), late]
    for step in range(1, gamma):
        rows += [reads_of(before + step, window), pairs_of(1, before + step, window)]
    return rows
