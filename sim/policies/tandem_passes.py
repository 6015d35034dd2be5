"""The passes of a round of a tandem: the secondary's through the block, the primary's over it, then the projections.

Model 0 is the primary, 1 the secondary, 2 the projections. Blocks of one length are :class:`Blocks`; blocks of random
length are :class:`sim.policies.ragged.Ragged`. The secondary reads no prompts and never has anything to catch up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.analytic.work import Work, pairs_of, reads_of
from sim.policies import NO_PROMPTS, Future, IntArray, Pass, Prompts, Totals, Windows

__all__ = ["Blocks", "with_prompts"]


@dataclass(frozen=True)
class Blocks:
    """``gamma`` secondary passes over one token, and one of the primary over ``new`` tokens, ``rows`` of them to its
    head, for each sequence.
    """

    gamma: int
    new: int
    rows_each: int

    @property
    def _reading(self) -> tuple[tuple[int, int, int], ...]:
        """(model, new tokens, passes) of a sequence's round, the primary first."""
        return (0, self.new, 1), *([(1, 1, self.gamma)] if self.gamma else [])

    def channels(self, windows: tuple[Windows, ...]) -> int:
        """Context, and for windows what depends on each one's own length."""
        return 1 + 2 * sum(steps * sum(w is not None for w in windows[model]) for model, _, steps in self._reading)

    def rows(self, future: Future, context: int, windows: tuple[Windows, ...]) -> tuple[IntArray, ...]:
        """Context before each round; windowed reads and pairs of every pass."""
        before = future.offsets + context
        rows: list[IntArray] = [before]
        for model, new, steps in self._reading:
            for step in range(steps):
                for window in windows[model]:
                    if window is not None:
                        rows += [reads_of(before + step, window), pairs_of(new, before + step, window)]
        return tuple(rows)

    def passes(
        self, seats: Any, totals: Totals | None, prompts: Prompts | None, windows: tuple[Windows, ...]
    ) -> Iterator[Pass]:
        """The secondary's passes and the primary's, without prompts."""
        reads = pairs = None
        if totals is not None:
            (reads, pairs), *steps = self._attended(seats, totals, windows)
            yield from _steps(seats, steps, isinstance(totals, list))
        yield Pass(0, Work(seats * self.new, seats * self.rows_each, pairs, reads))

    def _attended(self, seats: Any, totals: Totals, windows: tuple[Windows, ...]) -> Iterator[tuple[Any, Any]]:
        """(reads, pairs) by attention kind: of the primary's pass, then of each of the secondary's."""
        context, own = totals[0], iter(totals[1:])
        for model, new, steps in self._reading:
            for step in range(steps):
                reads, pairs = [], []
                for window in windows[model]:
                    full = context + step * seats
                    reads.append(full if window is None else next(own))
                    pairs.append(new * full + seats * (new * (new + 1) // 2) if window is None else next(own))
                yield tuple(reads), tuple(pairs)


def with_prompts(
    passes: Iterable[Pass], prompts: Prompts | None, windows: tuple[Windows, ...], decoding: bool
) -> Iterator[Pass]:
    """The same with prompts read by the primary, and projections of all that it reads where there is a secondary."""
    part = prompts.part(windows[0]) if prompts else NO_PROMPTS
    for one in passes:
        if one.model:
            if decoding:
                yield one
            continue
        own = one.work
        tokens, rows = part.tokens + own.tokens, part.rows + own.logit_rows
        yield Pass(0, Work(tokens, rows, own.decode_pairs, own.decode_reads, part.pairs, part.reads, part.tokens))
        if len(windows) > 1:
            yield Pass(2, Work(tokens, 0))


def _steps(seats: Any, attended: list[tuple[Any, Any]], single: bool) -> Iterator[Pass]:
    """The secondary's passes: one by one for a single round in whole numbers, else all but the first in one."""
    alone = attended if single else attended[:1]
    yield from (Pass(1, Work(seats, seats, pairs, reads)) for reads, pairs in alone)
    if len(alone) < len(attended):
        sides = zip(*attended[1:], strict=True)
        reads, pairs = (tuple(np.stack(kind) for kind in zip(*side, strict=True)) for side in sides)
        yield Pass(1, Work(seats, seats, pairs, reads))
