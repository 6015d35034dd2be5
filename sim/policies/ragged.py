"""Drafts of random length: what a round of draft passes and verification asks for when sequences draft differently.

No policy of its own: those whose draft lengths vary from round to round keep a :class:`Ragged` and hand ``rows`` and
``passes`` on to it. Model 1 drafts, model 0 verifies. Draft pass j runs over the sequences that run at least j of
them, and not at all where nobody does; the target verifies, of each sequence, its last token and what it drafted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from sim.analytic.work import Work, pairs_of, reads_of
from sim.policies import NO_PROMPTS, Future, IntArray, Pass, PromptPart, Prompts, Totals, Windows, zeros

__all__ = ["Course", "Ragged", "behind"]


class Course(NamedTuple):
    """Rounds of one sample or of neighbouring ones, unclipped; each of shape [..., rounds]."""

    kept: IntArray
    drafted: IntArray
    gains: IntArray
    total: IntArray
    offsets: IntArray
    behind: IntArray

    @classmethod
    def of(cls, kept: IntArray, drafted: IntArray, runs: IntArray) -> Course:
        """What follows from tokens kept, tokens offered and draft passes run in each round."""
        gains = kept + 1
        total = gains.cumsum(axis=-1)
        return cls(kept, drafted, gains, total, total - gains, behind(kept, runs))

    def lasts(self, remaining: int, row: Any = ..., start: int = 0) -> bool:
        """Whether there are rounds enough, from ``start`` on, to emit ``remaining`` tokens."""
        total = self.total[row]
        return start < len(total) and int(total[-1]) - (int(total[start - 1]) if start else 0) >= remaining

    def cut(self, remaining: int, row: Any = ..., start: int = 0) -> Future:
        """The future of one sample, row ``row``, from round ``start`` on until ``remaining`` tokens are out."""
        total = self.total[row]
        before = int(total[start - 1]) if start else 0
        here = slice(start, int(total.searchsorted(before + remaining)) + 1)
        gains, offsets = self.gains[row][here].copy(), self.offsets[row][here] - before
        gains[-1] = remaining - int(offsets[-1])
        noted = None if start else self.behind[row][here]
        return Future(gains, offsets, self.kept[row][here], self.drafted[row][here], noted)


@dataclass(frozen=True)
class Ragged:
    """At most ``most`` draft passes a round, of which a sequence that offers d tokens to the target runs d.

    ``spare``: one more, up to ``most``: the pass in which the draft decided to stop was run, its token is not offered.
    ``fed``: at least one, without logits where nothing is drafted: the draft reads along, so that its cache does not
    fall behind. Without it, whatever the draft has not read is read in the first pass that it runs again. ``shared``:
    it works on the target's cache: it reads no prompts and is never behind.
    """

    most: int
    spare: bool = False
    fed: bool = False
    shared: bool = False

    @cached_property
    def _steps(self) -> IntArray:
        return np.arange(1, self.most + 1)[:, None]

    def runs(self, drafted: IntArray) -> IntArray:
        """Draft passes of each round; shape kept."""
        if self.spare:
            return np.minimum(drafted + 1, self.most)
        return np.maximum(drafted, 1) if self.fed else drafted

    def channels(self, windows: tuple[Windows, ...]) -> int:
        """Drafted tokens and target attention; then of the draft: who runs pass j, catch-up, attention by kind."""
        target, draft = windows
        full = sum(window is None for window in draft)
        return 2 + 2 * len(target) + self.fed + self.most + full * (1 + self.most) + 2 * self.most * (len(draft) - full)

    def rows(self, future: Future, context: int, windows: tuple[Windows, ...]) -> tuple[IntArray, ...]:
        """Channels of one sample by round; ``noted`` of the future may be what :func:`behind` says of it."""
        before, drafted = future.offsets + context, future.drafted
        runs = self.runs(drafted)
        late = self._late(future, runs)
        rows: list[IntArray] = [drafted]
        for window in windows[0]:
            rows += [reads_of(before, window), pairs_of(drafted + 1, before, window)]
        live = np.greater_equal(runs, self._steps, out=np.empty((self.most, len(runs)), np.int64), casting="unsafe")
        rows += [*live, late if self._always else late * live[0]]
        if self.fed:
            rows.append(np.minimum(drafted, 1))
        for window in windows[1]:
            first = pairs_of(1 + late, before - late, window)
            first = first if self._always else live[0] * first
            if window is None:
                rows += [first, *(live * before)]
                continue
            later = before + self._steps[:-1]  # context of passes 2, 3, ...
            rows += [live[0] * reads_of(before - late, window), first]
            rows += [*(live[1:] * reads_of(later, window)), *(live[1:] * pairs_of(1, later, window))]
        return tuple(rows)

    @cached_property
    def _always(self) -> bool:
        """Whether every sequence runs the first pass of every round."""
        return self.spare or self.fed

    def _late(self, future: Future, runs: IntArray) -> IntArray:
        if self.shared:
            return zeros(len(runs))
        noted: IntArray | None = future.noted
        return behind(future.kept, runs) if noted is None else noted

    def passes(
        self, seats: Any, totals: Totals | None, prompts: Prompts | None, windows: tuple[Windows, ...]
    ) -> Iterator[Pass]:
        """Draft passes, then verification; prompts are read by both models. Linear in seats and totals."""
        yield from self.draft_passes(totals, prompts, windows)
        part = prompts.part(windows[0]) if prompts else NO_PROMPTS
        new, pairs, reads = seats, None, None
        if totals is not None:
            end = 1 + 2 * len(windows[0])
            new, reads, pairs = seats + totals[0], tuple(totals[1:end:2]), tuple(totals[2:end:2])
        yield Pass(0, Work(part.tokens + new, part.rows + new, pairs, reads, part.pairs, part.reads, part.tokens))

    def draft_passes(
        self, totals: Totals | None, prompts: Prompts | None, windows: tuple[Windows, ...]
    ) -> Iterator[Pass]:
        """Pass 1 catches up and carries the prompts; a pass in which nobody takes part has no work."""
        part: PromptPart = prompts.part(windows[1]) if prompts and not self.shared else NO_PROMPTS
        if totals is None and self.shared:
            return
        if totals is None:
            yield Pass(1, Work(part.tokens, 0, None, None, part.pairs, part.reads, part.tokens))
            return
        at = 1 + 2 * len(windows[0])
        live, late = totals[at : at + self.most], totals[at + self.most]
        asked = totals[at + self.most + 1] if self.fed else live[0]
        rest = totals[at + self.most + 1 + self.fed :]
        by_kind = list(self._attention(rest, live, late, windows[1]))
        for step, count in enumerate(live):
            reads, pairs = zip(*(steps[step] for steps in by_kind), strict=True)
            if step:
                yield Pass(1, Work(count, count, pairs, reads))
            else:
                tokens = part.tokens + count + late
                yield Pass(1, Work(tokens, asked, pairs, reads, part.pairs, part.reads, part.tokens))

    def _attention(self, totals: Totals, live: Totals, late: Any, windows: Windows) -> Iterable[list[tuple[Any, Any]]]:
        """(reads, pairs) of passes 1, 2, ... for each attention kind."""
        most, at = self.most, 0
        for window in windows:
            if window is None:
                first, context = totals[at], totals[at + 1 : at + 1 + most]
                later = [context[j] + j * live[j] for j in range(1, most)]
                yield [(context[0] - late, first), *((reads, reads + live[j]) for j, reads in enumerate(later, 1))]
                at += 1 + most
            else:
                reads, pairs = totals[at + 2 : at + 1 + most], totals[at + 1 + most : at + 2 * most]
                yield [(totals[at], totals[at + 1]), *zip(reads, pairs, strict=True)]
                at += 2 * most


def behind(kept: IntArray, runs: IntArray) -> IntArray:
    """Tokens that the draft lacks before each round beside the last one; shape [..., rounds], none before the first.

    A round that runs its passes leaves the draft with what they read, as far as it was kept: one token short of the
    target after a round that kept all of its drafts, none after others. A round without a pass adds what it emits.
    """
    gained = kept + 1
    ends = gained.cumsum(axis=-1)
    read = np.where(runs > 0, ends - np.maximum(gained - runs, 0), 0)
    lag: IntArray = np.zeros_like(ends)
    lag[..., 1:] = (ends - np.maximum.accumulate(read, axis=-1))[..., :-1]
    return lag
