"""Central queue: requests wait at the gateway, in order, and a replica takes one when it has a free slot.

Nobody waits behind a long answer while another replica is idle: with one slot a replica this is the M/G/c queue (Erlang
1917 for exponential service, Allen and Cunneen's approximation else).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sim.request import Request
from sim.routers import View, at_least, first_of_least


@dataclass(frozen=True)
class CentralQueue:
    """``slots``: requests that a replica takes at once; null: as many as it has seats."""

    slots: int | None = None
    name: ClassVar[str] = "central_queue"
    pulls: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the option. Raises ValueError."""
        if self.slots is not None:
            at_least(self.name, "slots", self.slots, 1, whole=True)

    def pick(self, request: Request, view: View) -> int | None:
        """The one with the most free slots, by share of them; None where there is no free slot."""
        slots = [self.slots or view.facts(i).seats for i in range(view.count)]
        taken = [view.outstanding(i) / n for i, n in enumerate(slots)]
        picked = first_of_least(taken, request, view.count)
        return picked if taken[picked] < 1 else None
