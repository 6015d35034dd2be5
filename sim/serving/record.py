"""Flat facts of a run, append-only: a row per request, leap, prompt chunk, stay in the decode batch, and token gap.

Nothing is derived here. Rows go into flat arrays of 64-bit integers at once, so that a million requests stay well under
a gigabyte.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Ordered

import numpy as np
from numpy.typing import NDArray

from sim.request import Sequence

FINISHED, REJECTED, FAILED, PARTIAL = range(4)
STATUS = ("finished", "rejected", "failed", "partial")

REQUEST_COLUMNS = (
    "id arrival_ns admitted_ns first_token_ns finish_ns prompt output samples rounds drafted accepted preemptions "
    "replica status priority session retries tenant"
).split()
LEAP_COLUMNS = "replica start_ns duration_ns rounds seats chunks waiting running kv_bytes clock_MHz nJ".split()
CHUNK_COLUMNS = "replica leap request cached new last prompt".split()
STAY_COLUMNS = "replica request first_leap last_leap seats".split()
LIFE_ENDS = ("end", "drained", "failed")
LIFE_COLUMNS = "replica group slot up_ns down_ns end".split()
HIT_COLUMNS = "replica request preemptions level tokens asked_ns start_ns end_ns".split()
LEVEL_COLUMNS = "replica level evicted_blocks kept_bytes".split()
REFUSED_COLUMNS = "request reason".split()
MOVE_COLUMNS = "request sender receiver asked_ns start_ns end_ns tokens bytes".split()


class Table:
    """Rows of whole numbers under fixed column names, kept as one flat array of 64-bit integers."""

    def __init__(self, columns: Ordered[str]) -> None:
        self.columns = tuple(columns)
        self._numbers = array("q")
        self.gone = 0  # rows that somebody took away
        self.append = self._numbers.extend
        """Add one row, a tuple in the order of the columns."""

    def __len__(self) -> int:
        return self.gone + len(self._numbers) // len(self.columns)

    def take(self) -> NDArray[np.int64]:
        """All rows that are still here, as :meth:`array`; they are forgotten, though ``len`` still counts them."""
        rows = self.array()
        del self._numbers[:]
        self.gone += len(rows)
        return rows

    def last(self) -> tuple[int, ...]:
        """The row that was added last."""
        return tuple(self._numbers[-len(self.columns) :])

    def array(self) -> NDArray[np.int64]:
        """All rows, shape [rows, columns]; a copy."""
        return np.array(self._numbers, dtype=np.int64).reshape(-1, len(self.columns))

    def frame(self) -> dict[str, NDArray[np.int64]]:
        """Columns by name."""
        rows = self.array()
        return {name: rows[:, i] for i, name in enumerate(self.columns)}


class Gaps:
    """Inter-token gaps in nanoseconds with weights: exact up to ``limit`` of them, then a histogram.

    The histogram has bins of ``quantum_ns`` (1 while exact); a gap is counted at the multiple nearest to it. The exact
    sum of all gaps is kept beside it.
    """

    QUANTUM_NS = 1000
    NEAR_BINS = 10_000_000

    def __init__(self, limit: int = 1 << 20) -> None:
        self.limit, self.quantum_ns, self._binned_ns = limit, 1, 0
        self._buffer: NDArray[np.int64] = np.empty(2 * limit, dtype=np.int64)
        self._used = 0
        self._counts: list[int] = []
        self._weights: list[int] = []
        self._bins: NDArray[np.float64] = np.zeros(0)
        self._far: dict[int, int] = {}

    def add(self, gaps_ns: NDArray[np.int64], weight: int) -> None:
        """``weight`` sequences each saw these gaps; shape [rounds], at most ``limit`` of them."""
        start, end = self._used, self._used + len(gaps_ns)
        self._buffer[start:end] = gaps_ns
        self._note(end - start, weight)

    def add_one(self, gap_ns: int, weight: int) -> None:
        """``weight`` sequences saw this gap."""
        if weight:
            self._buffer[self._used] = gap_ns
            self._note(1, weight)

    def _note(self, count: int, weight: int) -> None:
        self._used += count
        self._counts.append(count)
        self._weights.append(weight)
        if self._used > self.limit:
            self._bin()

    @property
    def total_ns(self) -> int:
        """The exact sum of all gaps."""
        gaps, weights = self._raw()
        return self._binned_ns + int(gaps @ weights)

    def weighted(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Distinct gaps in ascending order and how often each was seen."""
        if self.quantum_ns == 1:
            gaps, weights = self._raw()
            distinct, where = np.unique(gaps, return_inverse=True)
            return distinct, np.bincount(where, weights=weights, minlength=len(distinct)).astype(np.int64)
        self._bin()
        near = np.flatnonzero(self._bins)
        far = np.array(sorted(self._far), dtype=np.int64)
        rare = np.array([self._far[number] for number in far.tolist()], dtype=np.int64)
        weights = np.concatenate((self._bins[near].astype(np.int64), rare))
        return np.concatenate((near, far)) * self.QUANTUM_NS, weights

    @classmethod
    def joined(cls, parts: Ordered[Gaps]) -> Gaps:
        """All gaps of several records, as one would hold them that had seen them all; the parts are used up."""
        whole = cls(parts[0].limit)
        for part in parts:
            whole._counts += part._counts
            whole._weights += part._weights
        used = [part._buffer[: part._used] for part in parts]
        whole._used = sum(map(len, used))
        whole._buffer = np.concatenate([*used, np.empty(2 * whole.limit, dtype=np.int64)])
        if whole._used > whole.limit or any(part.quantum_ns > 1 for part in parts):
            whole._bin()
        for part in parts:
            whole._take(part)
        return whole

    def _take(self, other: Gaps) -> None:
        """What another record has binned."""
        self._binned_ns += other._binned_ns
        for number, weight in other._far.items():
            self._far[number] = self._far.get(number, 0) + weight
        counts = np.zeros(max(len(self._bins), len(other._bins)))
        counts[: len(self._bins)] = self._bins
        counts[: len(other._bins)] += other._bins
        self._bins = counts

    def _raw(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What has not been binned yet."""
        return self._buffer[: self._used], np.repeat(np.array(self._weights, dtype=np.int64), self._counts)

    def _bin(self) -> None:
        """Move raw gaps into the histogram; those of ten seconds and more into a dictionary."""
        gaps, weights = self._raw()
        self._counts, self._weights, self._used = [], [], 0
        self._binned_ns += int(gaps @ weights)
        self.quantum_ns = self.QUANTUM_NS
        bins = (gaps + self.QUANTUM_NS // 2) // self.QUANTUM_NS
        near = bins < self.NEAR_BINS
        for number, weight in zip(bins[~near].tolist(), weights[~near].tolist(), strict=True):
            self._far[number] = self._far.get(number, 0) + weight
        size = max(len(self._bins), int(bins[near].max(initial=-1)) + 1)
        counts = np.zeros(size)
        counts[: len(self._bins)] = self._bins
        self._bins = counts + np.bincount(bins[near], weights=weights[near], minlength=size)


class Recorder:
    """Everything that happened, in tables. ``channels`` names the sums over a leap that its policy declares."""

    def __init__(self, channels: int, replicas: int) -> None:
        self.channels = channels
        self.requests = Table(REQUEST_COLUMNS)
        self.leaps = Table([*LEAP_COLUMNS, *(f"sum_{i}" for i in range(channels))])
        self.chunks = Table(CHUNK_COLUMNS)
        self.stays = Table(STAY_COLUMNS)
        self.moves = Table(MOVE_COLUMNS)
        self.hits = Table(HIT_COLUMNS)
        self.levels = Table(LEVEL_COLUMNS)
        self.lives = Table(LIFE_COLUMNS)
        self.refused = Table(REFUSED_COLUMNS)
        self.held_ns = self.lost_tokens = 0  # in the gateway's line; emitted and asked for anew
        self.gaps = Gaps()
        self.leaps_of = [0] * replicas

    def ended(self, s: Sequence, replica: int, status: int, end_ns: int) -> None:
        """A request ends; ``status`` as in STATUS, ``replica`` -1 for one that no replica had."""
        r = s.request
        self.requests.append(
            (
                r.id, r.arrival_ns, s.admitted_ns, s.first_token_ns, end_ns, r.prompt, r.output, r.samples, s.rounds,
                s.drafted, s.accepted, s.preemptions, replica, status, r.priority, r.session, s.retries,
                r.tenant,
            )
        )  # fmt: skip
