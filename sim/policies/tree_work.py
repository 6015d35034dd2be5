"""What a round of tree drafting and verification asks for: rows, pairs and reads, pass by pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sim.analytic.work import Work, pairs_of, reads_of
from sim.policies import NO_PROMPTS, IntArray, Pass, Prompts, Windows
from sim.policies.tree_draft import Drafting

__all__ = ["DraftWork", "TargetWork"]

Totals = Any  # a list of numbers, or an array of shape [channels, rounds]
Attended = tuple[tuple[Any, ...], tuple[Any, ...]]


@dataclass(frozen=True)
class TargetWork:
    """Verification: the root and all nodes, ``widths`` of them at depth 0, 1, ...; ``windows`` of the target."""

    widths: tuple[int, ...]
    windows: Windows

    @property
    def channels(self) -> int:
        """Reads and pairs of each windowed attention kind."""
        return 2 * sum(w is not None for w in self.windows)

    def rows(self, before: IntArray) -> list[IntArray]:
        """The channels of one sequence with ``before`` tokens cached; a node at depth d is at position before + d."""
        out: list[IntArray] = []
        for w in self.windows:
            if w is not None:
                pairs = sum(n * np.minimum(w, before + d + 1) for d, n in enumerate(self.widths))
                out += [reads_of(before, w), np.asarray(pairs, dtype=np.int64)]
        return out

    def attention(self, seats: Any, context: Any, totals: Totals) -> Attended:
        """(pairs, reads) by attention kind: each node attends to what is cached, its ancestors and itself."""
        own = iter(totals)
        among = sum(n * (d + 1) for d, n in enumerate(self.widths))
        rows, pairs, reads = sum(self.widths), [], []
        for w in self.windows:
            reads.append(context if w is None else next(own))
            pairs.append(rows * context + seats * among if w is None else next(own))
        return tuple(pairs), tuple(reads)


@dataclass(frozen=True)
class DraftWork:
    """The draft passes of a tree of ``depth`` levels; ``windows`` by model, target first."""

    drafting: Drafting
    depth: int
    windows: tuple[Windows, ...]

    @cached_property
    def _windows(self) -> Windows:
        return self.windows[self.drafting.layered] if self.drafting.levels else ()

    @property
    def _late(self) -> bool:
        return self.drafting.late != "none"

    @cached_property
    def _slots(self) -> tuple[int, ...]:
        """Nodes in the drafter's cache before the pass at depth 0, 1, ..., the root left out."""
        done = [0, 0]
        for rows, _ in self.drafting.levels[1:]:
            done.append(done[-1] + rows)
        return tuple(done[: len(self.drafting.levels)])

    @property
    def channels(self) -> int:
        """Tokens caught up and what they save in pairs, then reads and pairs of each pass and windowed kind."""
        passes = len(self.drafting.levels)
        return 2 * self._late + 2 * passes * sum(w is not None for w in self._windows)

    def rows(self, before: IntArray, kept: IntArray) -> list[IntArray]:
        """The channels of one sequence with ``before`` tokens cached and ``kept`` drafts in each round."""
        late = self._behind(kept)
        out: list[IntArray] = [late, late * before - late * (late - 1) // 2] if self._late else []
        for w in self._windows:
            if w is not None:
                out += [reads_of(before - late, w), pairs_of(late + 1, before - late, w)]
                for depth in range(1, len(self.drafting.levels)):
                    out += self._level_rows(before, depth, w)
        return out

    def _behind(self, kept: IntArray) -> IntArray:
        """Tokens that the drafter's first pass runs beside the root."""
        late = np.zeros_like(kept)
        if self.drafting.late == "all":
            late[1:] = kept[:-1]
        elif self.drafting.late == "last":
            np.equal(kept[:-1], self.depth, out=late[1:], casting="unsafe")
        return late

    def _level_rows(self, before: IntArray, depth: int, window: int) -> list[IntArray]:
        """Reads and pairs of the nodes at ``depth``: a token at position p is seen from p + window - 1 on."""
        levels = self.drafting.levels
        near = sum(levels[d][0] for d in range(max(1, depth - window + 1), depth))
        reads = np.minimum(before + 1, max(0, window - depth)) + near
        return [reads, levels[depth][0] * np.minimum(window, before + depth + 1)]

    def passes(self, seats: Any, totals: Totals | None, prompts: Prompts | None) -> Iterator[Pass]:
        """``totals``: context and this object's channels, None where nobody decodes."""
        d = self.drafting
        for model, rows in d.states:
            part = prompts.part(self.windows[model]) if prompts else NO_PROMPTS
            yield Pass(model, Work(part.tokens, seats * rows))
        if d.levels and (totals is not None or d.own_kv):
            yield from self._layered(seats, totals, prompts if d.own_kv else None)

    def _layered(self, seats: Any, totals: Totals | None, prompts: Prompts | None) -> Iterator[Pass]:
        model, (_, logits) = self.drafting.layered, self.drafting.levels[0]
        part = prompts.part(self.windows[model]) if prompts else NO_PROMPTS
        late = totals[1] if totals is not None and self._late else 0
        tokens = part.tokens + seats + late
        if self.drafting.fused:
            yield Pass(model + 1, Work(part.tokens, tokens))
        pairs, reads = (None, None) if totals is None else self._first(seats, totals)
        yield Pass(model, Work(tokens, seats * logits, pairs, reads, part.pairs, part.reads, part.tokens))
        for depth in range(1, len(self.drafting.levels)) if totals is not None else ():
            rows, logits = self.drafting.levels[depth]
            yield Pass(model, Work(seats * rows, seats * logits, *self._level(seats, totals, depth)))

    def _first(self, seats: Any, totals: Totals) -> Attended:
        late, late_pairs = (totals[1], totals[2]) if self._late else (0, 0)
        full = totals[0] + late_pairs + seats, totals[0] - late
        return self._attended(totals, 0, full)

    def _level(self, seats: Any, totals: Totals | None, depth: int) -> Attended:
        assert totals is not None
        rows, cached = self.drafting.levels[depth][0], totals[0]
        full = rows * (cached + seats * (depth + 1)), cached + seats * (1 + self._slots[depth])
        return self._attended(totals, depth, full)

    def _attended(self, totals: Totals, depth: int, full: tuple[Any, Any]) -> Attended:
        """(pairs, reads) by attention kind: ``full`` ones, or the channels of a windowed kind."""
        at, pairs, reads = 1 + 2 * self._late, [], []
        for w in self._windows:
            pairs.append(full[0] if w is None else totals[at + 2 * depth + 1])
            reads.append(full[1] if w is None else totals[at + 2 * depth])
            at += 0 if w is None else 2 * len(self.drafting.levels)
        return tuple(pairs), tuple(reads)
