"""One replica: an engine that plans, leaps over decode rounds nobody disturbs, and settles what came out of them.

Order at one instant: ends of rounds, faults and repairs, arrivals, then plans. The priorities below are SimPy's, lower
first; a plan is asked for once and comes after everything else of its nanosecond.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import simpy
from numpy.typing import NDArray

from sim.policies import Chunk, Chunks, Future, Policy, Windows
from sim.request import Member, Request, Sequence
from sim.routers import ReplicaState
from sim.schedulers import Plan, Scheduler
from sim.serving.horizon import Entry, Horizon
from sim.serving.kv import KvBudget
from sim.serving.luck import Luck
from sim.serving.queue import WaitingLine
from sim.serving.record import Recorder
from sim.serving.rounds import Rounds

ROUND, FAULT, ARRIVAL, DISPATCH, PLAN = range(5)


class Moment(simpy.Event):
    """A callback after ``delay_ns``, in the order of ``priority`` within that nanosecond."""

    def __init__(
        self, env: simpy.Environment, delay_ns: int, priority: int, call: Callable[[simpy.Event], None]
    ) -> None:
        self.env, self.callbacks, self._value, self._ok = env, [call], None, True
        env.schedule(self, priority, delay_ns)  # type: ignore[arg-type]


@dataclass(slots=True)
class Leap:
    """Rounds under way: nanoseconds and end of each, of which the first ``stop`` will run; the plan they carry out."""

    start_ns: int
    ns: NDArray[np.int64]
    ends_ns: NDArray[np.int64]
    stop: int
    plan: Plan
    seats: int
    kv_bytes: int


@dataclass(frozen=True)
class Setup:
    """What replicas of one pool have in common."""

    rounds: Rounds
    policy: Policy
    windows: tuple[Windows, ...]
    scheduler: Scheduler
    kv: KvBudget
    luck: Luck
    max_context: int
    stepping: bool = False


class Replica:
    """Serves requests one round after another. It is also the view that its scheduler plans on."""

    def __init__(
        self,
        env: simpy.Environment,
        index: int,
        setup: Setup,
        recorder: Recorder,
        finished: Callable[[Request], None],
    ) -> None:
        self.env, self.index, self.setup, self.recorder, self.finished = env, index, setup, recorder, finished
        self.tokens_per_round = setup.policy.tokens_per_round
        self.decode_limit = setup.scheduler.decode_seats(self.tokens_per_round)
        channels = setup.policy.channels(setup.windows)
        self.horizon, self.no_sums = Horizon(1 + channels), [0] * channels
        self.waiting = WaitingLine(setup.scheduler.order)
        self.prefilling: list[Sequence] = []
        self.ready: list[Sequence] = []
        self.entries: dict[int, Entry] = {}
        self.admitted: dict[int, Sequence] = {}
        self.fresh: dict[int, tuple[int, int]] = {}
        self.running_seats = self.decoding_seats = self.held_bytes = 0
        self.decoded_ns = 0
        self.leap: Leap | None = None
        self.plan_asked = self.crowded = False

    # --- what others ask -------------------------------------------------------------------------------------------

    def arrive(self, request: Request) -> None:
        """Take a request in; interrupt the leap under way if it could change the plan."""
        if not self._can_ever_serve(request):
            self._record(Sequence.of(request), status=1)
            self.finished(request)
            return
        sequence = Sequence.of(request)
        self.waiting.push(sequence)
        if self.leap is None:
            self._ask_plan()
        elif self.waiting.is_head(sequence) and self.setup.scheduler.plan(self).admit:
            self._interrupt(self.leap)

    def state_at(self, now_ns: int) -> ReplicaState:
        """What a router sees: every round that ended at or before ``now_ns`` is included."""
        leap, done = self.leap, 0
        if leap is not None and leap.seats:
            done = int(np.searchsorted(leap.ends_ns, now_ns, side="right"))
        kv_bytes = self.held_bytes + int(self.horizon.window(done + 1)[0, done])
        return ReplicaState(len(self.waiting), self.running_seats, kv_bytes, self.setup.kv.capacity_bytes)

    def unfinished(self) -> Iterator[Sequence]:
        """Sequences in the house, waiting or running."""
        yield from self.admitted.values()
        yield from self.waiting

    def give_up(self) -> None:
        """Record whatever is unfinished as partial (the run was cut short)."""
        for sequence in list(self.unfinished()):
            self._record(sequence, status=3)

    def admissible(self, seats: int) -> Iterator[Sequence]:
        """Queue heads that fit into ``seats`` seats and free KV memory; nobody right after a preemption."""
        if self.crowded:
            return
        kv = self.setup.kv
        room = kv.capacity_bytes - self.held_bytes - self.horizon.next_bytes()
        left = seats - self.running_seats
        empty = not self.admitted
        for sequence in self.waiting:
            need = self._hold(sequence)
            left -= sequence.seats
            room -= need
            if left < 0 or room < (0 if empty else kv.watermark_bytes):
                return
            empty = False
            yield sequence

    # --- planning --------------------------------------------------------------------------------------------------

    def _ask_plan(self) -> None:
        """Plan once everything else of this nanosecond is over."""
        if not self.plan_asked:
            self.plan_asked = True
            Moment(self.env, 0, PLAN, self._on_plan)

    def _on_plan(self, _: simpy.Event | None) -> None:
        self.plan_asked = False
        self._promote()
        self.crowded = self._make_room()
        plan = self.setup.scheduler.plan(self)
        for _admitted in range(plan.admit):
            self._admit(self.waiting.pop())
        if plan.chunks or (plan.decode and self.decoding_seats):
            self._launch(plan)
        assert self.leap or not (self.admitted or len(self.waiting)), "a replica with work must not fall asleep"

    def _admit(self, sequence: Sequence) -> None:
        self.admitted[sequence.request.id] = sequence
        self.prefilling.append(sequence)
        self.running_seats += sequence.seats
        sequence.held_bytes = self._hold(sequence)
        self.held_bytes += sequence.held_bytes
        if sequence.admitted_ns < 0:
            sequence.admitted_ns = self.env.now

    def _hold(self, sequence: Sequence) -> int:
        prompt = sequence.request.prompt
        return self.setup.kv.group_bytes(prompt, [prompt + m.emitted for m in sequence.members])

    def _promote(self) -> None:
        """Sequences whose prompt is read join the decode batch in order of admission while there are seats."""
        while self.ready and self.decoding_seats + self.ready[0].seats <= self.decode_limit:
            sequence = self.ready.pop(0)
            self.held_bytes -= sequence.held_bytes
            entry = self._entry(sequence)
            self.entries[sequence.request.id] = entry
            self.fresh[sequence.request.id] = (sequence.last_emit_ns, sequence.seats)
            self.decoding_seats += sequence.seats
            self.horizon.add(entry)

    def _entry(self, sequence: Sequence) -> Entry:
        """Draw the future of every running sample and add up what the horizon will carry for them."""
        setup, request = self.setup, sequence.request
        futures, parts = [], []
        shared = setup.kv.bytes_of(setup.kv.shared_tokens(request.prompt, sequence.seats))
        for member in sequence.members:
            draws = setup.luck.of(request.id, member.sample)
            future = setup.policy.future(draws, member.round, request.output - member.emitted)
            context = request.prompt + member.emitted - 1
            kv = setup.kv.bytes_along(future.offsets + (context + self.tokens_per_round))
            futures.append((member, future))
            parts.append(((kv - shared) if shared else kv, *setup.policy.rows(future, context, setup.windows)))
        rows = parts[0] if len(parts) == 1 else _stack(parts, shared)
        return Entry(sequence, self.horizon.round, rows, futures, self.recorder.leaps_of[self.index])

    def _make_room(self) -> bool:
        """Preempt the latest admitted until the next decode round fits; True if anybody had to go."""
        went = False
        while self.horizon.next_bytes() + self.held_bytes > self.setup.kv.capacity_bytes:
            self._preempt(self.admitted[next(reversed(self.admitted))])
            went = True
        return went

    def _preempt(self, sequence: Sequence) -> None:
        """Give up a sequence's KV; it queues first and will prefill all it had (recomputation)."""
        number = sequence.request.id
        entry = self.entries.pop(number, None)
        if entry is None:
            self.held_bytes -= sequence.held_bytes
            (self.prefilling if sequence in self.prefilling else self.ready).remove(sequence)
        else:
            self._leave(entry, entry.futures)
            self.horizon.remove(entry)
            self.decoding_seats -= sequence.seats
            if self.fresh.pop(number, None) is None:
                sequence.last_emit_ns = self.decoded_ns
        self.running_seats -= sequence.seats
        del self.admitted[number]
        sequence.restart()
        self.waiting.push(sequence)

    # --- leaping ---------------------------------------------------------------------------------------------------

    def _launch(self, plan: Plan) -> None:
        """Cost the rounds of a plan and sleep until the last of them ends."""
        seats = self.decoding_seats if plan.decode else 0
        rounds = self._rounds(plan) if seats else 1
        totals = self.horizon.window(rounds)[1:] if seats else None
        prompts = None
        if plan.chunks:
            prompts = Chunks([Chunk(s.prefilled, new, s.prefilled + new == s.prefill_tokens) for s, new in plan.chunks])
        ns = self.setup.rounds.ns(seats, totals, prompts, seats + len(plan.chunks))
        now = self.env.now
        kv_bytes = self.held_bytes + self.horizon.next_bytes()
        self.leap = Leap(now, ns, ns.cumsum() + now, rounds, plan, seats, kv_bytes)
        self._sleep(self.leap)

    def _rounds(self, plan: Plan) -> int:
        if plan.chunks or self.crowded or self.setup.stepping:
            return 1
        return self.horizon.rounds_that_fit(
            self.horizon.rounds_to_end(), self.setup.kv.capacity_bytes - self.held_bytes
        )

    def _sleep(self, leap: Leap) -> None:
        stop = leap.stop

        def wake(_: simpy.Event) -> None:
            if self.leap is leap and leap.stop == stop:
                self._settle(leap)

        Moment(self.env, int(leap.ends_ns[stop - 1]) - self.env.now, ROUND, wake)

    def _interrupt(self, leap: Leap) -> None:
        """Let the round under way be the last of the leap."""
        under_way = int(np.searchsorted(leap.ends_ns, self.env.now, side="left"))
        if under_way + 1 < leap.stop:
            leap.stop = under_way + 1
            self._sleep(leap)

    def _settle(self, leap: Leap) -> None:
        """Book the rounds that have run: gaps, ends of sequences, progress of prompts; then plan.

        A plan comes after everything else of its nanosecond; if nothing else is to come, that is now.
        """
        self._record_leap(leap)
        self.leap = None
        if leap.seats:
            self._record_gaps(leap)
            for entry, member in self.horizon.advance(leap.stop):
                self._end_member(entry, member)
        for sequence, new in leap.plan.chunks:
            sequence.prefilled += new
            if sequence.prefilled == sequence.prefill_tokens:
                self._first_tokens(sequence)
        if not (self.admitted or len(self.waiting)):
            return
        if self.env.peek() > self.env.now and not self.plan_asked:
            self._on_plan(None)
        else:
            self._ask_plan()

    # --- what comes out ----------------------------------------------------------------------------------------------

    def _first_tokens(self, sequence: Sequence) -> None:
        """The end of a prefill emits one token of every sample, the next one after a preemption."""
        now, members = self.env.now, sequence.members
        self.prefilling.remove(sequence)
        if sequence.first_token_ns < 0:
            sequence.first_token_ns = now
        else:
            self.recorder.gaps.add_one(now - sequence.last_emit_ns, len(members))
        sequence.last_emit_ns = now
        for member in members:
            member.emitted += 1
        sequence.members = [m for m in members if m.emitted < sequence.request.output]
        self.running_seats -= len(members) - len(sequence.members)
        if sequence.members:
            self.ready.append(sequence)
        else:
            self.held_bytes -= sequence.held_bytes
            self._finish(sequence)

    def _end_member(self, entry: Entry, member: Member) -> None:
        """A sample has emitted its last token."""
        sequence = entry.sequence
        self._leave(entry, [f for f in entry.futures if f[0] is member])
        sequence.members.remove(member)
        self.running_seats -= 1
        self.decoding_seats -= 1
        if not sequence.members:
            del self.entries[sequence.request.id]
            self.horizon.close(entry)
            self._finish(sequence)

    def _leave(self, entry: Entry, futures: list[tuple[Member, Future]]) -> None:
        """Credit the rounds that these samples have run since they joined."""
        sequence, last = entry.sequence, self.recorder.leaps_of[self.index]
        done = self.horizon.round - entry.start
        for member, future in futures:
            if member in sequence.members:
                member.emitted += int(future.gains[:done].sum())
                member.round += done
                sequence.rounds += done
                sequence.drafted += int(future.drafted[:done].sum())
                sequence.accepted += int(future.kept[:done].sum())
                self.recorder.stays.append((self.index, sequence.request.id, entry.leap, last, 1))

    def _finish(self, sequence: Sequence) -> None:
        del self.admitted[sequence.request.id]
        self._record(sequence, status=0)
        self.finished(sequence.request)

    def _can_ever_serve(self, request: Request) -> bool:
        setup = self.setup
        seats = min(self.decode_limit, getattr(setup.scheduler, "max_sequences", self.decode_limit))
        return (
            request.samples <= seats
            and request.prompt + request.output <= setup.max_context
            and setup.kv.most_bytes(request.prompt, request.output, request.samples) <= setup.kv.capacity_bytes
        )

    # --- the record --------------------------------------------------------------------------------------------------

    def _record(self, s: Sequence, status: int) -> None:
        r, now = s.request, self.env.now
        self.recorder.requests.append(
            (
                r.id, r.arrival_ns, s.admitted_ns, s.first_token_ns, now, r.prompt, r.output, r.samples, s.rounds,
                s.drafted, s.accepted, s.preemptions, self.index, status, r.priority, r.session,
            )
        )  # fmt: skip

    def _record_leap(self, leap: Leap) -> None:
        recorder, index = self.recorder, self.index
        duration = int(leap.ends_ns[leap.stop - 1]) - leap.start_ns
        sums = self.horizon.sums(leap.stop) if leap.seats else self.no_sums
        number = recorder.leaps_of[index]
        chunks = leap.plan.chunks
        recorder.leaps.append(
            (
                index, leap.start_ns, duration, leap.stop, leap.seats, len(chunks), len(self.waiting),
                self.running_seats, leap.kv_bytes, *sums,
            )
        )  # fmt: skip
        for s, new in chunks:
            last = s.prefilled + new == s.prefill_tokens
            recorder.chunks.append((index, number, s.request.id, s.prefilled, new, int(last)))
        recorder.leaps_of[index] += 1

    def _record_gaps(self, leap: Leap) -> None:
        """Every running sample emits in every round; the first gap also holds what it waited for that round."""
        gaps, ns = self.recorder.gaps, leap.ns[: leap.stop]
        if self.fresh or leap.start_ns > self.decoded_ns:
            ns = self._first_gaps(leap, ns)
        gaps.add(ns, leap.seats)
        self.decoded_ns = int(leap.ends_ns[leap.stop - 1])

    def _first_gaps(self, leap: Leap, ns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Record the first gap of everybody who has waited; returns the gaps that are left to record."""
        waits = [(leap.start_ns - emitted, seats) for emitted, seats in self.fresh.values()]
        waits.append((leap.start_ns - self.decoded_ns, leap.seats - sum(seats for _, seats in waits)))
        self.fresh.clear()
        if not any(wait and seats for wait, seats in waits):
            return ns
        for wait, seats in waits:
            self.recorder.gaps.add_one(int(ns[0]) + wait, seats)
        return ns[1:]


def _stack(parts: list[tuple[NDArray[np.int64], ...]], shared_bytes: int) -> tuple[NDArray[np.int64], ...]:
    """Sum the rows of several samples, each ending in its own time; the shared prompt stays to the end."""
    length = max(len(part[0]) for part in parts)
    rows = tuple(np.zeros(length, dtype=np.int64) for _ in parts[0])
    for part in parts:
        for row, piece in zip(rows, part, strict=True):
            row[: len(piece)] += piece
    rows[0][:] += shared_bytes
    return rows
