"""The waiting line of a replica, kept in order of admission."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator
from itertools import islice
from operator import itemgetter

from sim.request import Sequence

Key = tuple[int, int, int, int]


class WaitingLine:
    """Sequences by (preempted first, queue order, arrival, request id); a list with a moving head."""

    def __init__(self, order: str) -> None:
        self.order = order
        self._items: list[tuple[Key, Sequence]] = []
        self._head = 0

    def __len__(self) -> int:
        return len(self._items) - self._head

    def __iter__(self) -> Iterator[Sequence]:
        return map(_second, islice(self._items, self._head, None))

    def key(self, sequence: Sequence) -> Key:
        """Lower is sooner: preempted sequences first, then the queue order, then who came first, then by number."""
        request = sequence.request
        rank = 0
        if self.order != "fcfs":
            rank = request.prompt if self.order == "shortest_prompt" else -request.priority
        return (-1 if sequence.preemptions else 0, rank, request.arrival_ns, request.id)

    def push(self, sequence: Sequence) -> None:
        """Take a place in the line."""
        item = (self.key(sequence), sequence)
        if len(self._items) == self._head or self._items[-1][0] <= item[0]:
            self._items.append(item)
        else:
            insort(self._items, item, lo=self._head, key=_first)

    def pop(self) -> Sequence:
        """The head leaves."""
        sequence = self._items[self._head][1]
        self._head += 1
        if self._head > 1024 and 2 * self._head > len(self._items):
            del self._items[: self._head]
            self._head = 0
        return sequence

    def is_head(self, sequence: Sequence) -> bool:
        """Whether nobody is before this one."""
        return self._items[self._head][1] is sequence


_first: Callable[[tuple[Key, Sequence]], Key] = itemgetter(0)
_second: Callable[[tuple[Key, Sequence]], Sequence] = itemgetter(1)
