"""Arrivals, a router and replicas on one SimPy clock of whole nanoseconds.

An open trace arrives when it says; a closed loop keeps ``concurrency`` users, each of which thinks and asks again when
its answer is complete, as do those who hold a conversation (sim/serving/conversation.py). User u of a closed loop sends
requests u, u + concurrency, ...: which request comes next never depends on who finished first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Ordered
from dataclasses import dataclass, replace

import simpy
from simpy.core import EmptySchedule

from sim.request import Request, Sequence
from sim.routers import GroupFacts, Router
from sim.serving.admission import Admission
from sim.serving.clock import ARRIVAL, DISPATCH, Clock, Moment
from sim.serving.conversation import Conversations
from sim.serving.gateway import Gateway
from sim.serving.record import FAILED, PARTIAL, Recorder
from sim.serving.replica import Replica, Setup
from sim.serving.sight import Place

Done = Callable[[int], None]


@dataclass(frozen=True)
class ClosedLoop:
    """``concurrency`` users share ``requests`` numbered requests; ``think_s`` passes between answer and next question.

    ``exponential`` draws each think time from an exponential distribution with that mean.
    """

    requests: list[Request]
    concurrency: int
    think_s: float = 0.0
    exponential: bool = False


class Cluster:
    """Replicas of one setup behind a router. ``run`` returns when everything has ended, or when ``stop`` was called.

    ``stale_ns``: how often the router's view is polled, 0 where it sees the present. ``admission``: who may come in.
    """

    def __init__(
        self,
        setup: Setup,
        replicas: int,
        router: Router,
        arrivals: Iterator[Request] | ClosedLoop | Conversations,
        progress: Done | None = None,
        channels: int | None = None,
        *,
        stale_ns: int = 0,
        admission: Admission | None = None,
    ) -> None:
        self.env = Clock(0)
        awaited = router.pulls or (admission is not None and admission.waits_for_ends)
        if isinstance(arrivals, ClosedLoop | Conversations) or awaited:
            setup = replace(setup, prompt_ends=True)
        self.setup, self.router, self.progress = setup, router, progress
        self.recorder = Recorder(channels or setup.policy.channels(setup.windows), replicas)
        self.replicas = [Replica(self.env, i, setup, self.recorder, self._finished) for i in range(replicas)]
        self.gateway = Gateway(
            self.env, router, setup.luck, self.recorder, self._places, self._finished, stale_ns, admission
        )
        self.gateway.up = [placed(replica, replica.index) for replica in self.replicas]
        self.loop = arrivals if isinstance(arrivals, ClosedLoop) else None
        self.next_turn: dict[int, Request] = {}
        self.thinkers = arrivals if isinstance(arrivals, ClosedLoop | Conversations) else None
        if isinstance(arrivals, Conversations):
            self.trace = arrivals.firsts(self.next_turn)
        else:
            self.trace = iter(()) if isinstance(arrivals, ClosedLoop) else arrivals
        self.pending: list[Request] = []
        self.arrived = self.finished = self.events = 0
        self.due = 0  # arrivals that have been planned and have not come
        self.running = True

    def run(self) -> Recorder:
        """Let the clock run until nothing is left to happen."""
        if self.loop is not None:
            for request in self.loop.requests[: self.loop.concurrency]:
                self._arrive_after(request, 0)
        self._next_arrival()
        step = self.env.step
        try:
            while self.running:
                step()
        except EmptySchedule:
            pass
        self.events = self.env.scheduled
        for replica in self.replicas:
            replica.give_up()
        self.gateway.give_up(FAILED if self.running else PARTIAL, self.end_ns)
        return self.recorder

    @property
    def end_ns(self) -> int:
        """The instant at which the run ended."""
        now_ns: int = self.env.now
        return now_ns

    def stop(self) -> None:
        """End after the present event; what is unfinished is recorded as partial."""
        self.running = False

    @property
    def over(self) -> bool:
        """Whether everybody who came has ended and nobody is to come."""
        return not self.due and self.arrived == self.finished

    def _next_arrival(self) -> None:
        request = next(self.trace, None)
        if request is not None:
            self.due += 1
            assert request.arrival_ns >= self.env.now, "the clock never goes back"

            def arrive(_: simpy.Event, request: Request = request) -> None:
                self._route(request)
                self.due -= 1
                self._next_arrival()

            Moment(self.env, request.arrival_ns - self.env.now, ARRIVAL, arrive)

    def _route(self, request: Request) -> None:
        self.arrived += 1
        self.gateway.arrive(Sequence.of(request))
        if self.progress is not None:
            self.progress(self.arrived)

    def _places(self, request: Request) -> Ordered[Place]:
        """Who may serve a request: all are alike."""
        return self.gateway.up

    def _finished(self, request: Request) -> None:
        self.finished += 1
        self.gateway.left(request)
        if request.id in self.next_turn:
            turn = self.next_turn.pop(request.id)
            self._arrive_after(turn, self._think_ns(turn.id))
        if self.loop is None:
            return
        number = request.id + self.loop.concurrency
        if number < len(self.loop.requests):
            self._arrive_after(self.loop.requests[number], self._think_ns(number))

    def _think_ns(self, number: int) -> int:
        assert self.thinkers is not None
        think_s = self.thinkers.think_s
        if self.thinkers.exponential:
            think_s *= -math.log1p(-float(self.setup.luck.of(number).uniforms("think", 0, 1)[0]))
        return round(think_s * 1e9)

    def _arrive_after(self, request: Request, delay_ns: int) -> None:
        """Users who ask in the same nanosecond are routed in the order of their requests' numbers."""
        due = request._replace(arrival_ns=self.env.now + delay_ns)
        self.due += 1

        def arrive(_: simpy.Event) -> None:
            if not self.pending:
                Moment(self.env, 0, DISPATCH, self._dispatch)
            self.pending.append(due)

        Moment(self.env, delay_ns, ARRIVAL, arrive)

    def _dispatch(self, _: simpy.Event) -> None:
        pending, self.pending = sorted(self.pending, key=lambda r: r.id), []
        for request in pending:
            self._route(request)
        self.due -= len(pending)


def placed(replica: Replica, number: int, facts: GroupFacts | None = None) -> Place:
    """A replica as a router may pick it; of no group if none is told."""
    return Place(replica, number, facts or GroupFacts(seats=replica.most_seats))
