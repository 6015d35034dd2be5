"""Arrivals, a router and replicas on one SimPy clock of whole nanoseconds.

An open trace arrives when it says; a closed loop keeps ``concurrency`` users, each of which thinks and asks again when
its answer is complete. User u sends requests u, u + concurrency, ...: which request comes next never depends on who
finished first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import simpy
from simpy.core import EmptySchedule

from sim.request import Request
from sim.routers import Router
from sim.serving.clock import ARRIVAL, DISPATCH, Clock, Moment
from sim.serving.record import Recorder
from sim.serving.replica import Replica, Setup

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
    """Replicas of one setup behind a router. ``run`` returns when everything has ended, or when ``stop`` was called."""

    def __init__(
        self,
        setup: Setup,
        replicas: int,
        router: Router,
        arrivals: Iterator[Request] | ClosedLoop,
        progress: Done | None = None,
    ) -> None:
        self.env = Clock(0)
        if isinstance(arrivals, ClosedLoop):
            setup = replace(setup, prompt_ends=True)
        self.setup, self.router, self.progress = setup, router, progress
        self.recorder = Recorder(setup.policy.channels(setup.windows), replicas)
        self.replicas = [Replica(self.env, i, setup, self.recorder, self._finished) for i in range(replicas)]
        self.loop = arrivals if isinstance(arrivals, ClosedLoop) else None
        self.trace = iter(()) if isinstance(arrivals, ClosedLoop) else arrivals
        self.pending: list[Request] = []
        self.arrived = self.finished = self.events = 0
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
        return self.recorder

    def stop(self) -> None:
        """End after the present event; what is unfinished is recorded as partial."""
        self.running = False

    def _next_arrival(self) -> None:
        request = next(self.trace, None)
        if request is not None:
            assert request.arrival_ns >= self.env.now, "the clock never goes back"

            def arrive(_: simpy.Event, request: Request = request) -> None:
                self._route(request)
                self._next_arrival()

            Moment(self.env, request.arrival_ns - self.env.now, ARRIVAL, arrive)

    def _route(self, request: Request) -> None:
        states = [r.state_at(self.env.now) for r in self.replicas] if self.router.needs_state else ()
        index = self.router.pick(request, len(self.replicas), states)
        self.arrived += 1
        self.replicas[index].arrive(request)
        if self.progress is not None:
            self.progress(self.arrived)

    def _finished(self, request: Request) -> None:
        self.finished += 1
        if self.loop is None:
            return
        number = request.id + self.loop.concurrency
        if number < len(self.loop.requests):
            self._arrive_after(self.loop.requests[number], self._think_ns(number))

    def _think_ns(self, number: int) -> int:
        assert self.loop is not None
        think_s = self.loop.think_s
        if self.loop.exponential:
            think_s *= -math.log1p(-float(self.setup.luck.of(number).uniforms("think", 0, 1)[0]))
        return round(think_s * 1e9)

    def _arrive_after(self, request: Request, delay_ns: int) -> None:
        """Users who ask in the same nanosecond are routed in the order of their requests' numbers."""
        assert self.loop is not None
        r = request
        due = Request(r.id, self.env.now + delay_ns, r.prompt, r.output, r.samples, r.priority, r.session)

        def arrive(_: simpy.Event) -> None:
            if not self.pending:
                Moment(self.env, 0, DISPATCH, self._dispatch)
            self.pending.append(due)

        Moment(self.env, delay_ns, ARRIVAL, arrive)

    def _dispatch(self, _: simpy.Event) -> None:
        pending, self.pending = sorted(self.pending, key=lambda r: r.id), []
        for request in pending:
            self._route(request)
