"""A fleet: groups of replicas that need not be alike, each of which comes, drains, goes down and may come back.

A *slot* is a place in a group that a replica can fill. Whoever fills it again after it was down is another replica,
with a number, a life in ``recorder.lives`` and empty memory of its own. A slot is

- *starting*: it takes nobody yet, and is paid for;
- *up*: the router may pick it;
- *draining*: it takes nobody any more and ends what it has;
- *down*: nobody is there, and nothing is paid.

What makes slots move is elsewhere (faults, restarts, reclaims, autoscalers): they call :meth:`FleetCluster.start`,
:meth:`FleetCluster.drain` and :meth:`FleetCluster.fail`. Requests that no replica takes are held at the gateway
(sim/serving/gateway.py) and sent when one comes up. Those of a replica that fails go on elsewhere, at most ``retries``
times: with what they have emitted (``resume``), or from the start.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Ordered
from dataclasses import dataclass, replace
from typing import Literal

import simpy

from sim.request import Request, Sequence
from sim.routers import GroupFacts, Router
from sim.serving.admission import Admission
from sim.serving.clock import FAULT, PLAN, Moment
from sim.serving.cluster import ClosedLoop, Cluster, placed
from sim.serving.conversation import Conversations
from sim.serving.evacuate import evacuate
from sim.serving.record import FAILED, LIFE_ENDS, Recorder
from sim.serving.replica import Replica, Setup
from sim.serving.sight import Place

__all__ = ["Fleet", "FleetCluster", "Group", "Slot"]

Phase = Literal["starting", "up", "draining", "down"]


@dataclass(frozen=True)
class Group:
    """Replicas of one setup: how many at the start, and what routers may know of them.

    ``usd_per_hour``: rent of one replica, all its devices. ``weight``: for routers that share by weight.
    ``parameters``: of its model.
    """

    name: str
    setup: Setup
    replicas: int
    weight: float = 1.0
    usd_per_hour: float | None = None
    parameters: int = 0

    def facts(self, place: int, seats: int) -> GroupFacts:
        """The same for routers; ``place``: its number among the groups."""
        return GroupFacts(self.name, place, self.weight, self.usd_per_hour, seats, self.parameters)


@dataclass(frozen=True)
class Fleet:
    """Groups, and what becomes of requests whose replica fails: ``retries`` more tries, with what they have emitted
    (``resume``) or from the start.
    """

    groups: tuple[Group, ...]
    retries: int = 3
    resume: bool = True


@dataclass(eq=False)
class Slot:
    """A place for a replica; ``number`` counts within the fleet. ``then``: what follows when it has drained."""

    number: int
    group: Group
    place: int
    phase: Phase = "down"
    replica: Replica | None = None
    up_ns: int = 0
    then: Callable[[], None] | None = None
    turn: int = 0
    """How often its phase has changed, so that what was planned for an earlier phase can see that it is late."""


class FleetCluster(Cluster):
    """The clock of a fleet. ``on_end`` and ``on_change`` are called after a request ends and after a phase changes."""

    def __init__(
        self,
        fleet: Fleet,
        router: Router,
        arrivals: Iterator[Request] | ClosedLoop | Conversations,
        progress: Callable[[int], None] | None = None,
        *,
        stale_ns: int = 0,
        admission: Admission | None = None,
    ) -> None:
        channels = max(g.setup.policy.channels(g.setup.windows) for g in fleet.groups)
        first = fleet.groups[0].setup
        super().__init__(first, 0, router, arrivals, progress, channels, stale_ns=stale_ns, admission=admission)
        ends = self.setup.prompt_ends
        groups = [replace(group, setup=replace(group.setup, prompt_ends=ends)) for group in fleet.groups]
        self.fleet = replace(fleet, groups=tuple(groups))
        self._probes = [Replica(self.env, -1, group.setup, self.recorder, self._finished) for group in groups]
        self.slots: list[Slot] = []
        self.lost: dict[int, int] = {}
        self.on_end: list[Callable[[Request], None]] = []
        self.on_change: list[Callable[[Slot], None]] = []
        self.draining = 0
        self.touched_ns = 0
        for place, group in enumerate(self.fleet.groups):
            for _ in range(group.replicas):
                self.start(self.add_slot(place))

    def run(self) -> Recorder:
        """Let the clock run until nothing is left to happen; who is held then has failed, or was cut short."""
        recorder = super().run()
        for slot in self.slots:
            if slot.replica is not None:
                self._live(slot, "end", self.end_ns)
        return recorder

    @property
    def end_ns(self) -> int:
        """When it was cut short, else the last instant of a request or a slot: events that nobody needs any more (of a
        replica that has failed) may come after it.
        """
        return self.touched_ns if self.running else self.env.now

    # --- phases of a slot --------------------------------------------------------------------------------------------

    def add_slot(self, place: int) -> Slot:
        """One more place in the group number ``place``, down."""
        slot = Slot(len(self.slots), self.fleet.groups[place], place)
        self.slots.append(slot)
        return slot

    def start(self, slot: Slot, start_ns: int = 0) -> None:
        """Fill a slot that is down; the replica takes requests ``start_ns`` from now, and is paid from now on."""
        assert slot.phase == "down", "only an empty slot is filled"
        self.recorder.leaps_of.append(0)
        slot.replica = Replica(self.env, len(self.replicas), slot.group.setup, self.recorder, self._finished)
        self.replicas.append(slot.replica)
        slot.up_ns = self.env.now
        turn = self._turn(slot, "starting")
        if start_ns:
            Moment(self.env, start_ns, FAULT, lambda _: self._up(slot, turn))
        else:
            self._up(slot, turn)

    def drain(self, slot: Slot, then: Callable[[], None] | None = None) -> None:
        """Take nobody any more; when the last request has gone the slot is down, and ``then`` is called."""
        assert slot.phase in ("starting", "up"), "only what is there can drain"
        slot.then = then
        self._turn(slot, "draining")
        self.draining += 1
        self._look()

    def fail(self, slot: Slot) -> None:
        """Gone at once: whoever was there is sent elsewhere or has failed for good."""
        assert slot.replica is not None, "there is nobody to fail"
        found = evacuate(slot.replica)
        self._down(slot, "failed")
        for sequence in found:
            self._again(sequence)

    def _up(self, slot: Slot, turn: int) -> None:
        if slot.turn == turn:
            self._turn(slot, "up")
            self.gateway.look()

    def _look(self) -> None:
        """Whether a draining slot has nothing left, once everything of this instant has ended and been sent."""
        Moment(self.env, 0, PLAN, self._close_empty)

    def _close_empty(self, _: simpy.Event) -> None:
        for slot in self.slots:
            if slot.phase == "draining" and slot.replica is not None and not list(slot.replica.unfinished()):
                slot.replica.close()
                then, slot.then = slot.then, None
                self._down(slot, "drained")
                if then is not None:
                    then()

    def _down(self, slot: Slot, end: str) -> None:
        self._live(slot, end, self.env.now)
        self.draining -= slot.phase == "draining"
        slot.replica = None
        self._turn(slot, "down")

    def _live(self, slot: Slot, end: str, end_ns: int) -> None:
        """Book the life of a replica."""
        assert slot.replica is not None
        life = (slot.replica.index, slot.place, slot.number, slot.up_ns, end_ns, LIFE_ENDS.index(end))
        self.recorder.lives.append(life)

    def _turn(self, slot: Slot, phase: Phase) -> int:
        slot.phase = phase
        slot.turn += 1
        self.touched_ns = self.env.now
        self._note_up(slot)
        for call in self.on_change:
            call(slot)
        return slot.turn

    def _note_up(self, slot: Slot) -> None:
        """Whether a slot may be picked, for the gateway; in order of slots."""
        up = self.gateway.up
        at = bisect_left(up, slot.number, key=lambda one: one.number)
        if slot.phase == "up" and slot.replica is not None:
            facts = slot.group.facts(slot.place, slot.replica.most_seats)
            up.insert(at, placed(slot.replica, slot.number, facts))
        elif at < len(up) and up[at].number == slot.number:
            del up[at]

    # --- requests ----------------------------------------------------------------------------------------------------

    @property
    def held(self) -> list[Sequence]:
        """Requests that stand in the gateway's line, by number."""
        return list(self.gateway.line)

    def _places(self, request: Request) -> Ordered[Place]:
        """Replicas that are up and could ever serve the request; all of them where nobody of the fleet could."""
        if len(self._probes) == 1:
            return self.gateway.up
        fits = [probe.can_ever_serve(request) for probe in self._probes]
        if all(fits) or not any(fits):
            return self.gateway.up
        return [one for one in self.gateway.up if fits[one.facts.place]]

    def _again(self, sequence: Sequence) -> None:
        """A request whose replica is gone."""
        number = sequence.request.id
        self.gateway.left(sequence.request)
        if sequence.retries > self.fleet.retries:
            self.recorder.ended(sequence, -1, FAILED, self.env.now)
            self._finished(sequence.request)
        elif self.fleet.resume or sequence.admitted_ns < 0:
            self.gateway.again(sequence)
        else:
            afresh = Sequence.of(sequence.request)
            afresh.retries = sequence.retries
            lost = sum(m.emitted for m in sequence.members) + self._complete(sequence)
            self.lost[number] = self.lost.get(number, 0) + lost
            self.recorder.lost_tokens += lost
            self.gateway.again(afresh)

    @staticmethod
    def _complete(sequence: Sequence) -> int:
        """Tokens of samples that had ended already, which go with the others."""
        return (sequence.request.samples - len(sequence.members)) * sequence.request.output

    def _route(self, request: Request) -> None:
        self.touched_ns = self.env.now
        super()._route(request)

    def _finished(self, request: Request) -> None:
        self.touched_ns = self.env.now
        super()._finished(request)
        if self.draining:
            self._look()
        for call in self.on_end:
            call(request)
