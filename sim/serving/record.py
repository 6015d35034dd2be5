"""Flat facts of a run, append-only: a row per request, leap, prompt chunk, stay in the decode batch, and token gap.

Nothing is derived here. Rows are Python tuples until a block is full and int64 columns afterwards, so that a million
requests stay well under a gigabyte.
"""

from __future__ import annotations

from collections.abc import Sequence as Ordered

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 15
STATUS = ("finished", "rejected", "failed", "partial")

REQUEST_COLUMNS = (
    "id arrival_ns admitted_ns first_token_ns finish_ns prompt output samples rounds drafted accepted preemptions "
    "replica status priority session"
).split()
LEAP_COLUMNS = "replica start_ns duration_ns rounds seats chunks waiting running kv_bytes".split()
CHUNK_COLUMNS = "replica leap request cached new last".split()
STAY_COLUMNS = "replica request first_leap last_leap seats".split()


class Table:
    """Rows of whole numbers under fixed column names."""

    def __init__(self, columns: Ordered[str]) -> None:
        self.columns = tuple(columns)
        self._rows: list[tuple[int, ...]] = []
        self._blocks: list[NDArray[np.int64]] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, row: tuple[int, ...]) -> None:
        """Add one row, in the order of the columns."""
        self._rows.append(row)
        self._count += 1
        if len(self._rows) >= BLOCK:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._blocks.append(np.array(self._rows, dtype=np.int64))
            self._rows.clear()

    def array(self) -> NDArray[np.int64]:
        """All rows, shape [rows, columns]."""
        self._flush()
        if len(self._blocks) > 1:
            self._blocks = [np.concatenate(self._blocks)]
        return self._blocks[0] if self._blocks else np.zeros((0, len(self.columns)), dtype=np.int64)

    def frame(self) -> dict[str, NDArray[np.int64]]:
        """Columns by name."""
        rows = self.array()
        return {name: rows[:, i] for i, name in enumerate(self.columns)}


class Gaps:
    """Inter-token gaps in nanoseconds with weights; equal gaps are merged whenever many have come together.

    Exact until more than ``limit`` distinct gaps remain; then they are rounded to whole microseconds, and
    ``quantum_ns`` says so.
    """

    def __init__(self, limit: int = 1 << 23) -> None:
        self.limit, self.quantum_ns = limit, 1
        self._gaps: list[NDArray[np.int64]] = []
        self._weights: list[int] = []
        self._pending = 0
        self._merged = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))

    def add(self, gaps_ns: NDArray[np.int64], weight: int) -> None:
        """``weight`` sequences each saw these gaps; shape [rounds]."""
        self._gaps.append(gaps_ns)
        self._weights.append(weight)
        self._pending += len(gaps_ns)
        if self._pending > 1 << 19:
            self._merge()

    def add_one(self, gap_ns: int, weight: int) -> None:
        """``weight`` sequences saw this gap."""
        self.add(np.array([gap_ns], dtype=np.int64), weight)

    def _merge(self) -> None:
        if not self._gaps:
            return
        lengths = [len(g) for g in self._gaps]
        gaps = np.concatenate((self._merged[0], *self._gaps))
        weights = np.concatenate((self._merged[1], np.repeat(np.array(self._weights, dtype=np.int64), lengths)))
        self._gaps, self._weights, self._pending = [], [], 0
        self._merged = self._unique(gaps, weights)
        if len(self._merged[0]) > self.limit and self.quantum_ns == 1:
            self.quantum_ns = 1000
            self._merged = self._unique(*self._merged)

    def _unique(
        self, gaps: NDArray[np.int64], weights: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self.quantum_ns > 1:
            gaps = (gaps + self.quantum_ns // 2) // self.quantum_ns * self.quantum_ns
        order = np.argsort(gaps, kind="stable")
        gaps, weights = gaps[order], weights[order]
        starts = np.flatnonzero(np.concatenate(([True], gaps[1:] != gaps[:-1])))
        return gaps[starts], np.add.reduceat(weights, starts)

    def weighted(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Distinct gaps in ascending order and how often each was seen."""
        self._merge()
        return self._merged


class Recorder:
    """Everything that happened, in tables. ``channels`` names the sums over a leap that its policy declares."""

    def __init__(self, channels: int, replicas: int) -> None:
        self.requests = Table(REQUEST_COLUMNS)
        self.leaps = Table([*LEAP_COLUMNS, *(f"sum_{i}" for i in range(channels))])
        self.chunks = Table(CHUNK_COLUMNS)
        self.stays = Table(STAY_COLUMNS)
        self.gaps = Gaps()
        self.leaps_of = [0] * replicas
