"""When slots go out of service: at random, or at stated instants. Failures are outages without notice, reclaims of
spot machines have some.

Luck is addressed: the n-th time that a slot is up it stays up as long as the n-th draw of (slot, entry) says, whatever
happens elsewhere. With mean time up M and mean time away R the share of time up tends to M / (M + R) (renewal-reward;
Barlow and Proschan, Mathematical Theory of Reliability, 1965).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

from sim.serving.fleet import Slot
from sim.serving.outages import Moves, Outage

__all__ = ["RandomOutages", "StatedOutages"]


@dataclass(frozen=True)
class RandomOutages:
    """Every slot of a group (None: of all) goes out a time after it came up that is exponential with mean ``mean_ns``.

    ``exponential``: so is the time that it is away, with the mean that the outage says. ``entry`` tells its luck from
    that of others.
    """

    mean_ns: float
    outage: Outage
    place: int | None = None
    exponential: bool = False
    entry: int = 0

    def begin(self, moves: Moves) -> None:
        """Watch slots come up."""
        times: Counter[int] = Counter()

        def changed(slot: Slot) -> None:
            if slot.phase == "up" and self.place in (None, slot.place):
                times[slot.number] += 1
                self._plan(moves, slot, times[slot.number] - 1)

        moves.cluster.on_change.append(changed)
        for slot in moves.cluster.slots:
            changed(slot)

    def _plan(self, moves: Moves, slot: Slot, time: int) -> None:
        replica, outage = slot.replica, self.outage
        if self.exponential and outage.away_ns is not None:
            outage = replace(outage, away_ns=self._drawn_ns(moves, slot, time, "repair", outage.away_ns))

        def go() -> None:
            if slot.replica is replica:
                moves.take_out(slot, outage)

        moves.after(self._drawn_ns(moves, slot, time, "fault", self.mean_ns), go)

    def _drawn_ns(self, moves: Moves, slot: Slot, time: int, purpose: str, mean_ns: float) -> int:
        draws = moves.cluster.setup.luck.of(slot.number, self.entry)
        return max(1, round(-math.log1p(-float(draws.uniforms(purpose, time, 1)[0])) * mean_ns))


@dataclass(frozen=True)
class StatedOutages:
    """At each of ``at_ns``, slot ``slot`` of a group goes out, or all that are there (None), of all groups (None)."""

    at_ns: tuple[int, ...]
    outage: Outage
    place: int | None = None
    slot: int | None = None

    def begin(self, moves: Moves) -> None:
        """Plan all of them."""
        for at_ns in self.at_ns:
            moves.after(at_ns, lambda: self._go(moves))

    def _go(self, moves: Moves) -> None:
        mine = [slot for slot in moves.cluster.slots if self.place in (None, slot.place)]
        for slot in mine if self.slot is None else mine[self.slot : self.slot + 1]:
            moves.take_out(slot, self.outage)
