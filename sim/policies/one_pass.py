"""Rounds that are one target pass: each sequence's last token and whatever was drafted for it, at no cost of a model.

What n-gram, table and copied drafts share: the futures of rounds drawn or walked, and the work of chains whose length
differs from sequence to sequence and from round to round, nothing at all included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from sim.analytic.work import Work, pairs_of, reads_of
from sim.policies import NO_PROMPTS, Draws, Future, IntArray, Pass, Prompts, Totals, Windows

__all__ = ["channels", "clipped", "passes", "rows", "steady", "walked"]


def clipped(kept: IntArray, drafted: IntArray, remaining: int) -> Future:
    """The future of rounds that keep and draft so much, as long as it takes to emit ``remaining`` tokens.

    ``kept`` and ``drafted`` have shape [rounds] and hold enough rounds; the last gain is clipped to what is left.
    """
    total = (kept + 1).cumsum()
    rounds = int(total.searchsorted(remaining)) + 1
    gains = kept[:rounds] + 1
    offsets = total[:rounds] - gains
    gains[-1] -= int(total[rounds - 1]) - remaining
    return Future(gains, offsets, kept[:rounds], drafted[:rounds])


def walked(
    rounds: Callable[[int], tuple[IntArray, IntArray]], start: int, remaining: int, tokens_per_round: float
) -> Future:
    """The future from own round ``start`` on of a policy that says what its first n rounds keep and draft.

    For policies whose past matters: the walk begins at the sequence's first round, whatever ``start`` is.
    """
    count = min(max(8, int(1.3 * remaining / tokens_per_round)), remaining)
    while True:
        kept, drafted = (column[start:] for column in rounds(start + count))
        if count + kept.sum() >= remaining:
            return clipped(kept, drafted, remaining)
        count = min(2 * count, remaining)


def steady(
    draws: Draws, kept_by: Callable[[Any], IntArray], gamma: int, start: int, remaining: int, tokens_per_round: float
) -> Future:
    """The future of rounds that draft ``gamma`` tokens each and keep what ``kept_by`` makes of one uniform a round."""
    if start == 0:
        tile, row, rounds = draws.from_tile("acceptance", kept_by)
        if rounds + int(tile[row].sum()) >= remaining:
            return clipped(tile[row], np.full_like(tile[row], gamma), remaining)

    def first(count: int) -> tuple[IntArray, IntArray]:
        kept = kept_by(draws.uniforms("acceptance", 0, count))
        return kept, np.full_like(kept, gamma)

    return walked(first, start, remaining, tokens_per_round)


def channels(windows: tuple[Windows, ...]) -> int:
    """Drafted tokens, then reads and pairs by attention kind: a product of two sums would not do."""
    return 1 + 2 * len(windows[0])


def rows(future: Future, context: int, windows: tuple[Windows, ...]) -> tuple[IntArray, ...]:
    """Of whatever was drafted in each round, nothing included; ``context`` tokens are cached before the first one."""
    before, new = future.offsets + context, future.drafted + 1
    found: list[IntArray] = [future.drafted]
    for window in windows[0]:
        found += [reads_of(before, window), pairs_of(new, before, window)]
    return tuple(found)


def passes(seats: Any, totals: Totals | None, prompts: Prompts | None, windows: tuple[Windows, ...]) -> Iterable[Pass]:
    """One target pass: a token of each sequence and its drafts, all of them to the head."""
    part = prompts.part(windows[0]) if prompts else NO_PROMPTS
    new, pairs, reads = seats, None, None
    if totals is not None:
        new, reads, pairs = seats + totals[0], tuple(totals[1::2]), tuple(totals[2::2])
    yield Pass(0, Work(part.tokens + new, part.rows + new, pairs, reads, part.pairs, part.reads, part.tokens))
