"""Autoregressive decoding: one pass, one token a sequence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from sim.analytic.work import Work, reads_of
from sim.policies import NO_PROMPTS, Draws, Future, IntArray, Pass, Prompts, Totals, Windows, ones, ramp, zeros


@dataclass(frozen=True)
class Autoregressive:
    """Every round is one target pass over one new token of each sequence. No options, no luck."""

    name: ClassVar[str] = "autoregressive"
    tokens_per_round: ClassVar[int] = 1
    drafts: ClassVar[tuple[str, ...]] = ()
    linear: ClassVar[bool] = True

    def future(self, draws: Draws, start: int, remaining: int) -> Future:
        """One token in each of ``remaining`` rounds."""
        return Future(ones(remaining), ramp(0, remaining), zeros(remaining), zeros(remaining))

    def channels(self, windows: tuple[Windows, ...]) -> int:
        """Tokens read, by attention kind."""
        return len(windows[0])

    def rows(self, future: Future, context: int, windows: tuple[Windows, ...]) -> tuple[IntArray, ...]:
        """The context grows by one a round."""
        along = ramp(context, len(future.gains))
        return tuple(reads_of(along, w) for w in windows[0])

    def passes(
        self, seats: Any, totals: Totals | None, prompts: Prompts | None, windows: tuple[Windows, ...]
    ) -> Iterable[Pass]:
        """One pass; a query attends to what it reads and to itself."""
        part = prompts.part(windows[0]) if prompts else NO_PROMPTS
        reads = pairs = None
        if totals is not None:
            reads, pairs = tuple(totals), tuple(r + seats for r in totals)
        yield Pass(0, Work(part.tokens + seats, part.rows + seats, pairs, reads, part.pairs, part.reads, part.tokens))
