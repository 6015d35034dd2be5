"""Schedulers: which prompts are read and whether decodes run in the next round. One per file, found by name.

A scheduler is a frozen dataclass with an ``order`` (how requests queue), a ``decode_seats`` limit and ``plan(view)``,
a pure function: planning again while nobody arrived or left gives the same plan.
``tests/test_conformance_schedulers.py`` says what every scheduler owes.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Ordered
from dataclasses import dataclass, field
from typing import Protocol

from sim.request import Sequence

ORDERS = ("fcfs", "shortest_prompt", "priority")
MOST = 1 << 20


@dataclass(slots=True)
class Plan:
    """The next round: how many heads of the queue are admitted, prompt chunks, and whether decodes run."""

    admit: int = 0
    chunks: list[tuple[Sequence, int]] = field(default_factory=list)
    decode: bool = True


class View(Protocol):
    """What a scheduler may know of a replica at a planning instant."""

    @property
    def prefilling(self) -> Ordered[Sequence]:
        """Admitted sequences whose prompt is not read yet, in order of admission."""
        ...

    running_seats: int
    decoding_seats: int
    tokens_per_round: int

    def admissible(self, seats: int) -> Iterator[Sequence]:
        """Queue heads, in order, that fit into ``seats`` seats in all and into free KV memory; stops at the first
        that does not. With a prefix cache, ``prefilled`` of their ``prefill_tokens`` need not be read: all of them,
        where what was found has to be waited for, so that a chunk of no tokens is right for those."""
        ...


class Scheduler(Protocol):
    """What the replica asks of a scheduler."""

    @property
    def order(self) -> str:
        """How requests queue: one of ORDERS."""
        ...

    def decode_seats(self, tokens_per_round: int) -> int:
        """How many sequences may decode in one round; the rest wait in order of admission."""
        ...

    def plan(self, view: View) -> Plan:
        """The next round."""
        ...


def check(scheduler: Scheduler) -> None:
    """Raise ValueError unless a scheduler's order is one of ORDERS and its limits are whole numbers."""
    if scheduler.order not in ORDERS:
        raise ValueError(f"scheduler.order: {scheduler.order!r} is not one of {', '.join(ORDERS)}")
    for key in ("token_budget", "max_sequences"):
        value = getattr(scheduler, key, 1)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST:
            raise ValueError(f"scheduler.{key}: {value!r} is not a whole number from 1 to {MOST}")
