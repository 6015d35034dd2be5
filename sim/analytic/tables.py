"""Costs that depend on one small whole number, such as the tokens of a pass: computed once, then looked up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Table"]

Counts = Any  # an int, or an int64 array of shape [rounds]
Floats = NDArray[np.float64]
BLOCK = 1024
LIMIT = 1 << 22  # counts; two float64 columns of that length take 64 MiB


class Table:
    """Seconds and joules for every count 0, 1, 2 ..., grown in blocks up to the largest count asked for.

    ``build(counts)`` returns (seconds, joules) for an int64 array of counts; both must be elementwise functions, so
    that a value does not depend on the block it was built in.
    """

    def __init__(
        self, build: Callable[[NDArray[np.int64]], tuple[Any, Any]], buckets: tuple[int, ...] = ()
    ) -> None:
        """Start empty; nothing is built before the first look-up.

        ``buckets``: a count up to the largest takes as long as the next of them; its joules are its own.
        """
        self._build, self._buckets = build, np.array(buckets, dtype=np.int64)
        self.second_column: Floats = np.zeros(0)
        self.joule_column: Floats = np.zeros(0)
        self._second_list: list[float] = []

    def __len__(self) -> int:
        """How many counts have been built."""
        return len(self.second_column)

    def seconds(self, counts: Counts) -> Any:
        """Seconds at ``counts``: a float for an int, an array of the same shape for an array."""
        if type(counts) is int and 0 <= counts < len(self._second_list):
            return self._second_list[counts]  # the same bits, without NumPy's overhead for one number
        try:
            return self.second_column.take(counts)
        except IndexError:
            self._grow(counts)
            return self.second_column.take(counts)

    def joules(self, counts: Counts) -> Any:
        """Joules at ``counts``, likewise."""
        try:
            return self.joule_column.take(counts)
        except IndexError:
            self._grow(counts)
            return self.joule_column.take(counts)

    def _grow(self, counts: Counts) -> None:
        low, high = int(np.min(counts)), int(np.max(counts))
        if low < 0 or high >= LIMIT:
            raise ValueError(f"work: a pass of {low if low < 0 else high} tokens; allowed: 0 to {LIMIT - 1}")
        start, stop = len(self), (high // BLOCK + 1) * BLOCK
        counts = np.arange(start, stop, dtype=np.int64)
        seconds, joules = self._build(counts)
        if len(self._buckets):
            seconds, _ = self._build(self._padded(counts))
        self.second_column = np.concatenate([self.second_column, np.broadcast_to(seconds, stop - start)])
        self.joule_column = np.concatenate([self.joule_column, np.broadcast_to(joules, stop - start)])
        self._second_list = self.second_column.tolist()

    def _padded(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """The next bucket for each count; 0, and what is larger than all of them, stay."""
        places = np.searchsorted(self._buckets, counts)
        inside = (counts > 0) & (places < len(self._buckets))
        return np.where(inside, self._buckets[np.minimum(places, len(self._buckets) - 1)], counts)
