"""Exact percentiles of more numbers than memory holds: read several times, narrowing on the order statistics asked for.

A number >= 0 and its 64 bits, read as a whole number, have the same order. The first reading counts numbers by their
upper 20 bits; the next ones look only into the cells where the ranks lie, 22 bits finer each, until a cell is a number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from analysis.latency import PERCENTILES, Statistics

__all__ = ["SHIFTS", "Order"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
SHIFTS = (44, 22, 0)


@dataclass
class Order:
    """Mean, standard deviation, maximum and percentiles of numbers >= 0 that come in blocks, SHIFTS times over.

    Call :meth:`add` with every block and then :meth:`turn`, once for each of SHIFTS. ``percentiles``: of 0 to 100.
    """

    percentiles: tuple[float, ...] = PERCENTILES
    count: int = 0
    reading: int = 0
    _sum: float = 0.0
    _squares: float = 0.0
    _max: float = 0.0
    _counts: dict[int, int] = field(default_factory=dict)
    _cells: dict[int, int] = field(default_factory=dict)
    """Cells of the reading before in which a rank lies, and how many numbers lie below each."""
    _last: dict[int, int] = field(default_factory=dict)

    def add(self, values: Floats) -> None:
        """One more block of the present reading."""
        if not len(values):
            return
        if self.reading == 0:
            self.count += len(values)
            self._sum += float(values.sum())
            self._max = max(self._max, float(values.max()))
        elif self.reading == 1:
            self._squares += float(((values - self.mean) ** 2).sum())
        keys = (np.ascontiguousarray(values) + 0.0).view(np.int64)
        if self.reading:
            wanted = np.array(list(self._cells), dtype=np.int64)
            keys = keys[np.isin(keys >> SHIFTS[self.reading - 1], wanted)]
        cells, counts = np.unique(keys >> SHIFTS[self.reading], return_counts=True)
        for cell, number in zip(cells.tolist(), counts.tolist(), strict=True):
            self._counts[cell] = self._counts.get(cell, 0) + number

    def turn(self) -> None:
        """A reading is over: keep the cells in which a rank lies."""
        found: dict[int, int] = {}
        step = SHIFTS[self.reading - 1] - SHIFTS[self.reading] if self.reading else 0
        for inside in self._grouped(step):
            below = self._cells.get(inside[0] >> step, 0) if self.reading else 0
            for cell in inside:
                if any(below <= rank < below + self._counts[cell] for rank in self._ranks()):
                    found[cell] = below
                below += self._counts[cell]
        self._last, self._cells, self._counts = self._counts, found, {}
        self.reading += 1

    def _grouped(self, step: int) -> Iterator[list[int]]:
        """Cells in order, those of one cell of the reading before together."""
        groups: dict[int, list[int]] = {}
        for cell in sorted(self._counts):
            groups.setdefault(cell >> step if self.reading else 0, []).append(cell)
        yield from groups.values()

    @property
    def mean(self) -> float:
        """After the first reading."""
        return self._sum / self.count

    def percentile(self, asked: float) -> float | None:
        """Linear between order statistics, as NumPy has it; None of nothing. One of ``percentiles``, or 100."""
        if not self.count:
            return None
        if asked == 100:
            return self._max
        place = (self.count - 1) * (asked / 100)
        low = int(place)
        below, above = self._value(low), self._value(min(low + 1, self.count - 1))
        share = place - low
        return below + (above - below) * share if share < 0.5 else above - (above - below) * (1 - share)

    def statistics(self) -> Statistics:
        """As ``analysis.latency.describe`` has them."""
        if not self.count:
            return dict.fromkeys(("mean", "std", "p50", "p90", "p99", "max"))
        points = {f"p{p:g}": self.percentile(p) for p in PERCENTILES}
        return {"mean": self.mean, "std": float(np.sqrt(self._squares / self.count)), **points, "max": self._max}

    def _ranks(self) -> Iterable[int]:
        lows = {int((self.count - 1) * (p / 100)) for p in self.percentiles}
        return lows | {min(low + 1, self.count - 1) for low in lows}

    def _value(self, rank: int) -> float:
        cell = next(c for c, below in self._cells.items() if below <= rank < below + self._last[c])
        return float(np.array([cell], dtype=np.int64).view(np.float64)[0])
