"""The gateway: what comes in is refused, held, or sent to the replica that the router picks.

A request that arrives is refused where its tenant sends too fast. It is held where too many are out (of all, or of its
tenant), where nobody who could ever serve it is up, where the router picks nobody, or where others stand in the line
already. Whenever something changes (a request ends, a replica comes, a poll), the line is looked at, once an instant,
after all that arrives then: the first of the line is sent, and the next, until the router picks nobody. Those whose
tenant has enough out, or whom nobody who is up could serve, let others pass. Whoever was on a replica that went stands
in the line like others, but is not refused any more.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Ordered

import simpy

from sim.request import Request, Sequence
from sim.routers import Router
from sim.serving.admission import FULL, NEVER, QUEUE, RATE, Admission, Books, Line
from sim.serving.clock import LINE, Clock, Moment
from sim.serving.luck import Luck
from sim.serving.record import REJECTED, Recorder
from sim.serving.sight import Place, Polls, Sight

__all__ = ["Gateway"]

SENT, BLOCKED, PASSED, ASIDE = range(4)  # where an attempt ended: sent; nobody may go; nobody of the lane; not this one


class Gateway:
    """One router, one line and the books. ``places``: who is up and could ever serve a request."""

    def __init__(
        self,
        env: Clock,
        router: Router,
        luck: Luck,
        recorder: Recorder,
        places: Callable[[Request], Ordered[Place]],
        finished: Callable[[Request], None],
        stale_ns: int = 0,
        admission: Admission | None = None,
    ) -> None:
        self.env, self.router, self.recorder, self.places, self.finished = env, router, recorder, places, finished
        self.up: list[Place] = []
        assert not (router.pulls and stale_ns), "replicas come to a router that pulls: there is nothing to poll"
        self.polls = Polls(env, stale_ns, lambda: self.up) if stale_ns else None
        if self.polls is not None:
            self.polls.after = self.look
        self.sight = Sight(luck, self.polls)
        self.books = None if admission is None else Books(admission)
        self.line = Line() if admission is None else Line(admission.by_tenant, admission.fair)
        self.asked = False
        self.newcomers: set[int] = set()
        self.since_ns: dict[int, int] = {}

    # --- what comes in ---------------------------------------------------------------------------------------------

    def arrive(self, sequence: Sequence) -> None:
        """A request comes from outside."""
        if self.books is not None and not self.books.within_rate(sequence.request, self.env.now):
            self._refuse(sequence, RATE)
        elif len(self.line) or self._try(sequence) != SENT:
            self._hold(sequence)

    def again(self, sequence: Sequence) -> None:
        """A request comes back from a replica that is gone."""
        if len(self.line) or self._try(sequence) != SENT:
            self._join(sequence)

    def left(self, request: Request) -> None:
        """A request has ended, or its replica is gone: there may be room for another."""
        if self.books is not None:
            self.books.leave(request)
        self.look()

    def look(self) -> None:
        """Look at the line, once everything that arrives at this instant has."""
        if len(self.line) and not self.asked:
            self.asked = True
            Moment(self.env, 0, LINE, self._dispatch)

    # --- sent, held or refused ---------------------------------------------------------------------------------------

    def _try(self, sequence: Sequence) -> int:
        """Send a request if it may go and the router picks somebody; says how that ended."""
        books, request = self.books, sequence.request
        if books is not None and books.full():
            return BLOCKED
        if books is not None and books.tenant_full(request.tenant):
            return PASSED
        places = self.places(request)
        if not places:
            return ASIDE
        picked = self.router.pick(request, self.sight.of(sequence, places))
        if picked is None:
            return BLOCKED
        if books is not None:
            books.enter(request)
        if self.polls is not None:
            self.polls.touch()
        if self.since_ns:  # somebody has been held
            self.newcomers.discard(request.id)
            self._count_held(request.id)
        places[picked].replica.arrive(sequence)
        return SENT

    def _dispatch(self, _: simpy.Event | None) -> None:
        self.asked = False
        passed: set[int] = set()
        aside: list[Sequence] = []
        running = {} if self.books is None else self.books.by_tenant
        while self.up and (sequence := self.line.first(passed, running)) is not None:
            ended = self._try(sequence)
            if ended == BLOCKED:
                break
            if ended == PASSED:
                passed.add(self.line.lane(sequence.request))
            else:
                self.line.take(sequence.request.id)
                aside += [sequence] if ended == ASIDE else []
        for sequence in aside:
            self.line.push(sequence)

    def _hold(self, sequence: Sequence) -> None:
        said = None if self.books is None else self.books.said
        if said is not None and (said.queue_ns == 0 or said.max_held == len(self.line)):
            self._refuse(sequence, FULL)
            return
        self._join(sequence)
        if said is not None and said.queue_ns is not None:
            number = sequence.request.id
            self.newcomers.add(number)
            Moment(self.env, said.queue_ns, LINE, lambda _: self._too_long(number))

    def _join(self, sequence: Sequence) -> None:
        self.line.push(sequence)
        self.since_ns[sequence.request.id] = self.env.now
        self.look()

    def _count_held(self, number: int) -> None:
        self.recorder.held_ns += self.env.now - self.since_ns.pop(number, self.env.now)

    def _too_long(self, number: int) -> None:
        """Refused, unless it has been sent meanwhile, or at this very instant."""
        if self.asked:
            self._dispatch(None)
        if number in self.newcomers:
            self.newcomers.remove(number)
            self._count_held(number)
            self._refuse(self.line.take(number), QUEUE)

    def _refuse(self, sequence: Sequence, reason: int) -> None:
        self.recorder.refused.append((sequence.request.id, reason))
        self.recorder.ended(sequence, -1, REJECTED, self.env.now)
        self.finished(sequence.request)

    def give_up(self, status: int, end_ns: int) -> None:
        """The clock has stopped: whoever is still held ends with this status."""
        for sequence in self.line:
            self.recorder.ended(sequence, -1, status, end_ns)


assert NEVER == 0, "a rejection without a row says that a replica can never serve the request"
