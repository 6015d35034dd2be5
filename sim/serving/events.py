"""What happens to a fleet while it serves: outages, rolling restarts, autoscaling, all at the faults' turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from sim.serving.fleet import FleetCluster
from sim.serving.outages import Moves

__all__ = ["NO_EVENTS", "Event", "Events"]


class Event(Protocol):
    """Something that moves slots."""

    def begin(self, moves: Moves) -> None:
        """Plan what is to happen."""
        ...


@dataclass(frozen=True)
class Events:
    """All of them; moves that fall into one nanosecond happen in the order in which they were planned."""

    all: tuple[Event, ...] = ()

    def attach(self, cluster: FleetCluster) -> None:
        """Before the clock starts. A fleet without events is left as it is."""
        if self.all:
            moves = Moves(cluster)
            for event in self.all:
                event.begin(moves)


NO_EVENTS = Events()
