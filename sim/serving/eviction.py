"""Which cached block goes first when room is needed: one small class for each rule, all of the same four verbs."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Protocol

__all__ = ["RULES", "Shelf"]


class Shelf(Protocol):
    """Blocks that may go. ``born`` numbers blocks in the order in which they came in, ``uses`` counts their hits."""

    def put(self, number: int, born: int, uses: int) -> None:
        """A block may go from now on."""

    def remove(self, number: int) -> None:
        """It may not go any more."""

    def pop(self) -> int:
        """The block that goes first leaves; there must be one."""

    def __len__(self) -> int:
        """How many there are."""


class Lru:
    """Least recently used: whoever was put here first goes first. A chain is put tail first (sim/serving/prefix.py)."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, None] = OrderedDict()  # a plain dictionary finds its first key ever more slowly

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, number: int, born: int, uses: int) -> None:
        """Behind all others."""
        self._kept[number] = None

    def remove(self, number: int) -> None:
        """From wherever it is."""
        del self._kept[number]

    def pop(self) -> int:
        """The one that has been here longest."""
        return self._kept.popitem(last=False)[0]


Rank = tuple[int, int]


class Ranked:
    """The lowest rank goes first. What has been removed stays in the heap until it comes up, or there is too much."""

    def __init__(self, rank: Callable[[int, int, int], Rank]) -> None:
        self._rank, self._order = rank, 0
        self._kept: dict[int, Rank] = {}
        self._heap: list[tuple[Rank, int]] = []

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, number: int, born: int, uses: int) -> None:
        """At its rank among the others."""
        self._order += 1
        rank = self._rank(self._order, born, uses)
        self._kept[number] = rank
        heapq.heappush(self._heap, (rank, number))
        if len(self._heap) > 2 * len(self._kept) + 1024:
            self._heap = [(kept, block) for block, kept in self._kept.items()]
            heapq.heapify(self._heap)

    def remove(self, number: int) -> None:
        """Forget its rank."""
        del self._kept[number]

    def pop(self) -> int:
        """The lowest."""
        while True:
            rank, number = heapq.heappop(self._heap)
            if self._kept.get(number) == rank:
                del self._kept[number]
                return number


def _fifo() -> Shelf:
    """First in, first out, however often a block is used."""
    return Ranked(lambda order, born, uses: (born, order))


def _lfu() -> Shelf:
    """Least frequently used; among equals the least recently used."""
    return Ranked(lambda order, born, uses: (uses, order))


RULES: Mapping[str, Callable[[], Shelf]] = {"lru": Lru, "fifo": _fifo, "lfu": _lfu}
