"""Variable model serving: one token a round, by a smaller form of the model the longer the line of those who wait.

Not a policy that a scenario names: ``sim/build.py`` makes it of ``switch``. The nested models of a MatFormer (Devvrit
et al., arXiv 2310.07707) are there for it; fewer bits or pruned blocks do the same with copies of their own. All tiers
work on one KV cache, so what one of them wrote another reads. A prompt is read by the model of the round's tier, and by
the whole model in a round without decodes.

The replica asks for the tier when it plans a round with decodes, from those who wait after its admissions: up as soon
as there are a tier's ``waiting``, down when they fall ``hysteresis`` below it and one more. A future keeps the tier of
each round in its column of drafted tokens, of which there are none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np

from sim.analytic.work import Work, reads_of
from sim.policies import NO_PROMPTS, Draws, Future, IntArray, Model, Pass, Prompts, Totals, Windows, ones, ramp, zeros
from sim.quality import LOSSLESS, Quality, losses

__all__ = ["Step", "Switching"]


FEW = 4


class Step(NamedTuple):
    """From ``waiting`` waiting sequences on, the model with these ``variants`` after its own ones."""

    waiting: int
    variants: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Switching:
    """``ladder``: tiers in order of their line, the first from 0 without variants; ``hysteresis``: sequences;
    ``switch_ms``: what a change of tier adds to the round that begins with it. Raises ValueError.
    """

    follows: ClassVar[str] = "waiting"
    tokens_per_round: ClassVar[int] = 1
    ladder: tuple[Step, ...]
    hysteresis: int = 0
    switch_ms: float = 0.0

    def __post_init__(self) -> None:
        """The line must be able to fall below every tier."""
        starts = [step.waiting for step in self.ladder]
        if len(starts) < 2 or starts[0] or any(a >= b for a, b in pairwise(starts)):
            raise ValueError(f"switch.tiers: waiting {starts}: must rise from 0, over two tiers or more")
        if self.ladder[0].variants:
            raise ValueError("switch.tiers[0].variants: the first tier is the model as the scenario has it; leave out")
        if not 0 <= self.hysteresis < starts[1]:
            raise ValueError(f"switch.hysteresis: {self.hysteresis}: must be below {starts[1]}, where tier 1 begins")

    @property
    def name(self) -> str:
        """Of how tokens come out."""
        return "autoregressive"

    @property
    def drafts(self) -> tuple[Model, ...]:
        """The model of each further tier, on the same cache."""
        return tuple(Model(None, step.variants, own_kv=False) for step in self.ladder[1:])

    @property
    def targets(self) -> range:
        """Models that write tokens: all of them."""
        return range(len(self.ladder))

    @property
    def quality(self) -> Quality:
        """Of the worst tier: lossless if all are, unknown if any is."""
        found = [losses(None, step.variants) for step in self.ladder]
        worst = max((one.percent for one in found), key=lambda percent: (percent != percent, percent))
        if all(not one.parts for one in found):
            return LOSSLESS
        return Quality(None if worst != worst else worst, "as if all tokens were of the worst tier", "its variants")

    @property
    def linear(self) -> bool:
        """Its decodes are; but from four passes on sim/serving/single.py would put all prompts on the same one."""
        return len(self.ladder) < FEW

    # -- tiers, by their number in the ladder

    @property
    def switch_ns(self) -> int:
        """What a change of tier adds to a round."""
        return round(self.switch_ms * 1e6)

    def tier_of(self, tier: int, waiting: int) -> int:
        """The tier of a round while so many wait, after one of tier ``tier``."""
        while tier + 1 < len(self.ladder) and waiting >= self.ladder[tier + 1].waiting:
            tier += 1
        while tier and waiting < self.ladder[tier].waiting - self.hysteresis:
            tier -= 1
        return tier

    def least_seats(self, tier: int) -> int:
        """Decoding sequences do not matter."""
        return 0

    def loaded(self, batch: int) -> Switching:
        """The policy as it is while nobody waits."""
        return self

    def tier_future(self, tier: int, draws: Draws, start: int, remaining: int) -> Future:
        """One token a round in this tier."""
        marks = zeros(remaining) if tier == 0 else np.full(remaining, tier, dtype=np.int64)
        return Future(ones(remaining), ramp(0, remaining), zeros(remaining), marks)

    # -- what the engine asks

    @property
    def expected_tokens(self) -> float:
        """Tokens a round."""
        return 1.0

    def future(self, draws: Draws, start: int, remaining: int) -> Future:
        """While nobody waits."""
        return self.tier_future(0, draws, start, remaining)

    def channels(self, windows: tuple[Windows, ...]) -> int:
        """Tokens read in the first tier by attention kind; of each other: sequences, then the same."""
        return sum(map(len, windows)) + len(windows) - 1

    def rows(self, future: Future, context: int, windows: tuple[Windows, ...]) -> tuple[IntArray, ...]:
        """Nothing in tiers other than that of the round."""
        along, found = ramp(context, len(future.gains)), list[IntArray]()
        for tier, kinds in enumerate(windows):
            live = (future.drafted == tier).astype(np.int64)
            found += [live] if tier else []
            found += [reads_of(along, window) * live for window in kinds]
        return tuple(found)

    def passes(
        self, seats: Any, totals: Totals | None, prompts: Prompts | None, windows: tuple[Windows, ...]
    ) -> Iterator[Pass]:
        """A pass of each tier; prompts ride on that of the tier in which anybody decodes."""
        if totals is None:
            part = prompts.part(windows[0]) if prompts else NO_PROMPTS
            yield Pass(0, Work(part.tokens + seats, part.rows, None, None, part.pairs, part.reads, part.tokens))
            return
        tiers = list(self._tiers(seats, totals, windows))
        smaller = sum((count > 0) * 1 for count, _, _ in tiers[1:])
        for tier, (count, pairs, reads) in enumerate(tiers):
            part = prompts.part(windows[tier]) if prompts else NO_PROMPTS
            mine = (count > 0) * 1 if tier else 1 - smaller
            new, rows = mine * part.tokens, mine * part.rows
            read = _of(mine, part.pairs), _of(mine, part.reads)
            yield Pass(tier, Work(count + new, count + rows, pairs, reads, read[0], read[1], new))

    def _tiers(self, seats: Any, totals: Totals, windows: tuple[Windows, ...]) -> Iterable[tuple[Any, Any, Any]]:
        """(sequences, pairs, reads) of each tier."""
        at = self.count_channels(windows)
        counts = [totals[i] for i in at]
        first = seats
        for count in counts:
            first = first - count
        for start, count, kinds in zip((-1, *at), (first, *counts), windows, strict=True):
            reads = tuple(totals[start + 1 + i] for i in range(len(kinds)))
            yield count, tuple(read + count for read in reads), reads

    def count_channels(self, windows: tuple[Windows, ...]) -> list[int]:
        """Channels that count the sequences of tiers 1, 2, ..."""
        at, found = len(windows[0]), []
        for kinds in windows[1:]:
            found.append(at)
            at += 1 + len(kinds)
        return found


def _of(mine: Any, amounts: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    """What prompts ask for, where they are this tier's."""
    return None if amounts is None else tuple(mine * amount for amount in amounts)
