"""A rolling restart: slots drain and start again one after another, so that never more than a few are out for it."""

from __future__ import annotations

from dataclasses import dataclass

from sim.serving.fleet import Slot
from sim.serving.outages import Moves, Outage

__all__ = ["Restart"]


@dataclass(frozen=True)
class Restart:
    """At ``at_ns`` every slot that is there, of one group (None: of all), in order, ``at_once`` of them at a time."""

    at_ns: int
    outage: Outage
    place: int | None = None
    at_once: int = 1

    def begin(self, moves: Moves) -> None:
        """Plan it."""
        moves.after(self.at_ns, lambda: _Rolling(self, moves).go_on())


class _Rolling:
    """A restart under way: who is to come, and who is out."""

    def __init__(self, said: Restart, moves: Moves) -> None:
        self.said, self.moves = said, moves
        slots = moves.cluster.slots
        self.left = [s for s in slots if s.phase in ("starting", "up") and said.place in (None, s.place)]
        self.out: set[int] = set()
        moves.cluster.on_change.append(self._changed)
        moves.on_drop.append(self._done)

    def go_on(self) -> None:
        """Take the next ones out; whoever is down or goes by then for another reason is passed over."""
        while self.left and len(self.out) < self.said.at_once:
            slot = self.left.pop(0)
            if self.moves.take_out(slot, self.said.outage):
                self.out.add(slot.number)

    def _changed(self, slot: Slot) -> None:
        gone = slot.phase == "down" and slot.number not in self.moves.out
        if slot.phase == "up" or gone:
            self._done(slot)

    def _done(self, slot: Slot) -> None:
        if slot.number in self.out:
            self.out.remove(slot.number)
            self.moves.after(0, self.go_on)
