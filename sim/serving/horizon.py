"""What the running batch will hold at every future decode round.

A buffer of integer totals, one row per channel: bytes of KV cache, decoding seats, then what the policy declares
(tokens read, pairs, catch-up positions ...). Admission adds a sequence's arrays, preemption takes the rest back.
Rounds are counted from the start of the replica and only decode rounds count.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.policies import Future
from sim.request import Member, Sequence

Rows = tuple[NDArray[np.int64], ...]
SHORT = 96  # numbers


@dataclass(slots=True, eq=False)
class Entry:
    """A sequence's place on the horizon: its rows from round ``start`` on, and the future of each running sample."""

    sequence: Sequence
    start: int
    rows: Rows
    futures: list[tuple[Member, Future]]
    leap: int
    peak_bytes: int = 0
    live: bool = True

    def __post_init__(self) -> None:
        """A lone sample's blocks only grow; a group's shrink as samples end."""
        self.peak_bytes = int(self.rows[0][-1] if len(self.futures) == 1 else self.rows[0].max())


class Horizon:
    """Totals of the running batch for every decode round to come, and the rounds in which samples end."""

    def __init__(self, channels: int, length: int = 4096) -> None:
        self.totals = np.zeros((channels, length), dtype=np.int64)
        self.base = 0
        self.round = 0
        self.last_end = 0
        self.peak_bytes = 0
        self.ends: list[tuple[int, int, int, Entry, Member]] = []
        self._ticket = 0

    def add(self, entry: Entry, ahead: int = 0) -> None:
        """Put a sequence's future on the horizon; its first round is the next one, or comes ``ahead`` rounds later."""
        assert entry.start == self.round + ahead, "a sequence joins at the next round"
        self._put(entry, entry.rows, entry.start)

    def _put(self, entry: Entry, rows: Rows, start: int) -> None:
        """Add rows from round ``start`` on, and the ends of an entry."""
        self._reserve(start - self.round + len(rows[0]))
        at = start - self.base
        for total, row in zip(self.totals[:, at : at + len(rows[0])], rows, strict=True):
            np.add(total, row, out=total)
        self.peak_bytes += entry.peak_bytes
        for member, future in entry.futures:
            self._ticket += 1
            end = entry.start + len(future.gains)
            heapq.heappush(self.ends, (end, entry.sequence.request.id, self._ticket, entry, member))
            if end > self.last_end:
                self.last_end = end

    def remove(self, entry: Entry) -> None:
        """Take back what a sequence would still have added; its ends are forgotten as they come up."""
        self._take(entry)
        self.last_end = self._latest()

    def swap(self, pairs: list[tuple[Entry, Entry]]) -> None:
        """Futures are drawn anew: of each old entry its rounds to come are replaced by those of the new one.

        Both begin at the same round; what lies behind is not looked at.
        """
        for old, _ in pairs:
            self._take(old)
        self.last_end = self._latest()
        for _, new in pairs:
            done = self.round - new.start
            self._put(new, tuple(row[done:] for row in new.rows), self.round)

    def _take(self, entry: Entry) -> None:
        done = self.round - entry.start
        at = self.round - self.base
        for total, row in zip(self.totals, entry.rows, strict=True):
            rest = row[done:]
            total[at : at + len(rest)] -= rest
        self.close(entry)

    def _latest(self) -> int:
        return max((end for end, _, _, entry, _ in self.ends if entry.live), default=self.round)

    def close(self, entry: Entry) -> None:
        """A sequence leaves: its last sample has ended (its rows lie behind), or its rows were taken back."""
        entry.live = False
        self.peak_bytes -= entry.peak_bytes

    def window(self, rounds: int) -> NDArray[np.int64]:
        """Totals of the next ``rounds`` rounds, shape [channels, rounds]; a view."""
        at = self.round - self.base
        return self.totals[:, at : at + rounds]

    def next_totals(self) -> list[int]:
        """The policy's channels in the next round."""
        return self.totals[2:, self.round - self.base].tolist()  # type: ignore[no-any-return]

    def sums(self, rounds: int) -> list[int]:
        """Totals of the policy's channels over the next ``rounds`` rounds."""
        at = self.round - self.base
        if rounds == 1:
            return self.next_totals()
        part = self.totals[2:, at : at + rounds]
        if part.size <= SHORT:  # cheaper than NumPy's overhead, and as exact
            return [sum(row) for row in part.tolist()]
        return np.add.reduce(part, axis=1).tolist()  # type: ignore[no-any-return]

    def ahead(self, rounds: int) -> tuple[int, list[int]]:
        """:meth:`next_bytes` and :meth:`sums` in one look."""
        at = self.round - self.base
        if rounds == 1:
            first, _, *sums = self.totals[:, at].tolist()
            return first, sums
        return int(self.totals[0, at]), self.sums(rounds)

    def next_bytes(self) -> int:
        """Bytes of KV that the next decode round needs, its look-ahead included."""
        return int(self.totals[0, self.round - self.base])

    def rounds_to_end(self) -> int:
        """Decode rounds until the first sample ends; at least 1. Somebody must be running."""
        while not self.ends[0][3].live:
            heapq.heappop(self.ends)
        return self.ends[0][0] - self.round

    def seats_after(self, rounds: int) -> int:
        """Decoding seats of the round that comes after so many more."""
        return int(self.totals[1, self.round - self.base + rounds])

    def rounds_with(self, seats: int, first: int, rounds: int) -> int:
        """How many of the first ``rounds`` rounds, from round ``first`` of them on, have at least so many seats.

        Nobody joins in them, so that seats only become fewer.
        """
        along = self.window(rounds)[1, first:]
        return rounds if along[-1] >= seats else first + int((along < seats).argmax())

    def rounds_that_fit(self, rounds: int, budget_bytes: int) -> int:
        """How many of the next ``rounds`` rounds find their KV bytes within the budget."""
        if self.peak_bytes <= budget_bytes:
            return rounds
        over = self.window(rounds)[0] > budget_bytes
        first = int(over.argmax())
        return first if over[first] else rounds

    def advance(self, rounds: int) -> list[tuple[Entry, Member]]:
        """Pass ``rounds`` rounds; returns the samples that ended in the last of them, by request id."""
        self.round += rounds
        ended = []
        while self.ends and self.ends[0][0] <= self.round:
            _, _, _, entry, member = heapq.heappop(self.ends)
            if entry.live:
                ended.append((entry, member))
        if self.round - self.base > self.totals.shape[1] // 2:
            self._shift()
        return ended

    def _reserve(self, rounds: int) -> None:
        need = self.round - self.base + rounds + 1
        if need > self.totals.shape[1]:
            grown = np.zeros((self.totals.shape[0], 2 * need), dtype=np.int64)
            grown[:, : self.totals.shape[1]] = self.totals
            self.totals = grown

    def _shift(self) -> None:
        keep = self.totals[:, self.round - self.base :].copy()
        self.totals[:, : keep.shape[1]] = keep
        self.totals[:, keep.shape[1] :] = 0
        self.base = self.round
