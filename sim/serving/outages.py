"""Slots that go out of service and come back: what failures, reclaims and restarts share, and when moves are over.

An *outage* takes a slot down, at once or after it has drained, and brings it back. While it lasts the slot belongs to
it: a second outage finds nobody to take, an autoscaler leaves it alone. A failure while it drains takes the replica at
once, and it comes back as the outage says. A slot that an autoscaler drains goes for good, however it ends.

Moves could go on for ever (random failures, looks of an autoscaler). The clock stops at the instant when the last
request has ended and none is to come, and also when requests are held that nobody has got any nearer to serving in
``MOST_IDLE`` moves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import simpy
from simpy.core import EmptySchedule

from sim.request import Request
from sim.serving.clock import CLOSE, FAULT, Moment
from sim.serving.fleet import FleetCluster, Slot

__all__ = ["MOST_IDLE", "Moves", "Outage"]

MOST_IDLE = 100_000


@dataclass(frozen=True)
class Outage:
    """A slot drains for at most ``notice_ns`` (None: as long as it takes; 0: it fails at once), is down for ``away_ns``
    (None: for good) and takes requests ``start_ns`` after that.
    """

    notice_ns: int | None = 0
    away_ns: int | None = 0
    start_ns: int = 0


class Moves:
    """Everything that moves slots of one cluster goes through here. ``may_return``: asked before a slot comes back."""

    def __init__(self, cluster: FleetCluster) -> None:
        self.cluster = cluster
        self.out: dict[int, Outage] = {}
        self.may_return: list[Callable[[Slot], bool]] = []
        self.on_drop: list[Callable[[Slot], None]] = []
        self.idle = 0
        cluster.on_end.append(self._ended)
        cluster.on_change.append(self._changed)

    def after(self, delay_ns: int, call: Callable[[], None]) -> None:
        """Call so much later, unless there is nothing left to serve by then."""
        Moment(self.cluster.env, delay_ns, FAULT, lambda _: self._move(call))

    def take_out(self, slot: Slot, outage: Outage) -> bool:
        """Begin an outage; False where the slot is down, or goes already (a failure then takes it at once)."""
        fails = outage.notice_ns == 0
        free = slot.phase in ("starting", "up")
        if free:
            self.out[slot.number] = outage
        if fails and slot.replica is not None:
            self.cluster.fail(slot)
        elif free:
            self.cluster.drain(slot)
            self._close_after(slot, outage.notice_ns)
        return free

    def _close_after(self, slot: Slot, notice_ns: int | None) -> None:
        replica = slot.replica
        if notice_ns is not None:
            self.after(notice_ns, lambda: self.cluster.fail(slot) if slot.replica is replica else None)

    def _changed(self, slot: Slot) -> None:
        outage = self.out.get(slot.number)
        if outage is not None and slot.phase == "down" and outage.away_ns is not None:
            self.after(outage.away_ns, lambda: self._back(slot))

    def _back(self, slot: Slot) -> None:
        outage = self.out.pop(slot.number)
        if all([may(slot) for may in self.may_return]):
            self.cluster.start(slot, outage.start_ns)
        else:
            for call in self.on_drop:
                call(slot)

    # --- the end -----------------------------------------------------------------------------------------------------

    def _move(self, call: Callable[[], None]) -> None:
        if self.cluster.over:
            return
        self.idle += 1
        if self.idle > MOST_IDLE and not self._serving():
            raise EmptySchedule  # requests are held that nobody will ever take
        call()

    def _serving(self) -> bool:
        """Whether somebody has requests, or some are to come."""
        self.idle = 0
        replicas = [slot.replica for slot in self.cluster.slots if slot.replica is not None]
        return self.cluster.due > 0 or any(True for replica in replicas for _ in replica.unfinished())

    def _ended(self, _: Request) -> None:
        self.idle = 0
        if self.cluster.arrived == self.cluster.finished:  # perhaps nobody else comes
            Moment(self.cluster.env, 0, CLOSE, self._close)

    def _close(self, _: simpy.Event) -> None:
        if self.cluster.over:
            raise EmptySchedule  # what is still planned would find nobody
