"""One replica: an engine that plans, leaps over decode rounds nobody disturbs, and settles what came out of them.

A plan is asked for once and comes after everything else of its nanosecond (sim/serving/clock.py has the order).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray

from sim.policies import Chunk, Chunks, Future, Policy, Totals, Windows, ones
from sim.request import Member, Request, Sequence
from sim.routers import ReplicaState
from sim.schedulers import Plan, Scheduler
from sim.serving.clock import PLAN, ROUND, Clock, Moment
from sim.serving.horizon import Entry, Horizon
from sim.serving.kv import KvBudget
from sim.serving.luck import Luck
from sim.serving.queue import WaitingLine
from sim.serving.record import Recorder
from sim.serving.rounds import Rounds

REACH = (32, 512)  # fewest and most rounds that a leap through ends looks ahead


@dataclass(slots=True)
class Leap:
    """Rounds under way: nanoseconds of each, and from the start to its end.

    ``stop`` of them will run, ``done`` are booked.
    """

    start_ns: int
    ns: NDArray[np.int64]
    after_ns: NDArray[np.int64]
    stop: int
    plan: Plan
    done: int = 0

    def ends_after(self, rounds: int) -> int:
        """The instant when so many rounds are over."""
        return self.start_ns + int(self.after_ns[rounds - 1]) if rounds else self.start_ns

    def over_at(self, now_ns: int) -> int:
        """Rounds that ended at or before an instant."""
        return int(self.after_ns.searchsorted(now_ns - self.start_ns, side="right"))


@dataclass(frozen=True)
class Setup:
    """What replicas of one pool have in common.

    ``stepping``: one event a round. ``prompt_ends``: the end of a request is an event of its own, because somebody
    outside waits for it (a closed loop); otherwise a leap runs through ends that nobody queues behind.
    """

    rounds: Rounds
    policy: Policy
    windows: tuple[Windows, ...]
    scheduler: Scheduler
    kv: KvBudget
    luck: Luck
    max_context: int
    stepping: bool = False
    prompt_ends: bool = False


class Replica:
    """Serves requests one round after another. It is also the view that its scheduler plans on."""

    def __init__(
        self,
        env: Clock,
        index: int,
        setup: Setup,
        recorder: Recorder,
        finished: Callable[[Request], None],
    ) -> None:
        self.env, self.index, self.setup, self.recorder, self.finished = env, index, setup, recorder, finished
        self.tokens_per_round = setup.policy.tokens_per_round
        self.decode_limit = setup.scheduler.decode_seats(self.tokens_per_round)
        channels = setup.policy.channels(setup.windows)
        self.horizon, self.no_sums = Horizon(2 + channels), [0] * channels
        self.waiting = WaitingLine(setup.scheduler.order)
        self.prefilling: list[Sequence] = []
        self.ready: list[Sequence] = []
        self.entries: dict[int, Entry] = {}
        self.admitted: dict[int, Sequence] = {}
        self.fresh: dict[int, tuple[int, int]] = {}
        self.running_seats = self.decoding_seats = self.held_bytes = 0
        self.decoded_ns = 0
        self.leap: Leap | None = None
        self.reach = REACH[1]
        self.plan_asked = self.crowded = False

    # --- what others ask -------------------------------------------------------------------------------------------

    def arrive(self, request: Request) -> None:
        """Take a request in; interrupt the leap under way if it could change the plan."""
        if not self._can_ever_serve(request):
            self._record(Sequence.of(request), 1, self.env.now)
            self.finished(request)
            return
        sequence = Sequence.of(request)
        leap = self.leap
        if leap is not None:
            self._book_ends(leap)
        self.waiting.push(sequence)
        if leap is None:
            self._ask_plan()
        elif self.waiting.is_head(sequence) and self.setup.scheduler.plan(self).admit:
            self._stop_after(leap, int(leap.after_ns.searchsorted(self.env.now - leap.start_ns, side="left")) + 1)
        elif leap.plan.decode:
            self._stop_after(leap, leap.done + self.horizon.rounds_to_end())

    def state_at(self, now_ns: int) -> ReplicaState:
        """What a router sees: every round that ended at or before ``now_ns`` is included."""
        leap, begun = self.leap, 0
        if leap is not None and leap.plan.decode:
            self._book_ends(leap)
            begun = leap.over_at(now_ns) - leap.done
        kv_bytes = self.held_bytes + int(self.horizon.window(begun + 1)[0, begun])
        return ReplicaState(len(self.waiting), self.running_seats, kv_bytes, self.setup.kv.capacity_bytes)

    def unfinished(self) -> Iterator[Sequence]:
        """Sequences in the house, waiting or running."""
        yield from self.admitted.values()
        yield from self.waiting

    def give_up(self) -> None:
        """Record whatever is unfinished as partial (the run was cut short)."""
        if self.leap is not None:
            self._book_ends(self.leap)
        for sequence in list(self.unfinished()):
            self._record(sequence, 3, self.env.now)

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
        plan = self.setup.scheduler.plan(self) if self.prefilling or len(self.waiting) else Plan()
        for _admitted in range(plan.admit):
            self._admit(self.waiting.pop())
        plan.decode = plan.decode and self.decoding_seats > 0
        if plan.chunks or plan.decode:
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
        shared = setup.kv.shared_bytes(request.prompt, sequence.seats)
        for member in sequence.members:
            draws = setup.luck.of(request.id, member.sample)
            future = setup.policy.future(draws, member.round, request.output - member.emitted)
            context = request.prompt + member.emitted - 1
            kv = setup.kv.bytes_along(future.offsets + (context + self.tokens_per_round))
            futures.append((member, future))
            kv = kv - shared if shared else kv
            parts.append((kv, ones(len(kv)), *setup.policy.rows(future, context, setup.windows)))
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
        seats: Any = 0
        totals: Totals | None = None
        rounds, prompts = 1, None
        if plan.decode:
            seats, rounds = self.decoding_seats, self._rounds(plan)
            window = self.horizon.window(rounds)
            totals = window[2:] if rounds > 1 else window[2:, 0].tolist()
            if rounds > self.horizon.rounds_to_end():
                seats = window[1]
        if plan.chunks:
            prompts = Chunks([Chunk(s.prefilled, new, s.prefilled + new == s.prefill_tokens) for s, new in plan.chunks])
        ns = self.setup.rounds.ns(seats, totals, prompts, seats + len(plan.chunks))
        self.leap = Leap(self.env.now, ns, ns.cumsum(), rounds, plan)
        self._sleep(self.leap)

    def _rounds(self, plan: Plan) -> int:
        """How many rounds the plan holds for: to the first end that somebody waits for, while memory lasts."""
        setup, horizon = self.setup, self.horizon
        if plan.chunks or self.crowded or setup.stepping:
            return 1
        if setup.prompt_ends or self.ready or self.prefilling or len(self.waiting):
            rounds = horizon.rounds_to_end()
        else:
            rounds = min(horizon.last_end - horizon.round, self.reach)
        return horizon.rounds_that_fit(rounds, setup.kv.capacity_bytes - self.held_bytes)

    def _sleep(self, leap: Leap) -> None:
        stop = leap.stop

        def wake(_: simpy.Event) -> None:
            if self.leap is leap and leap.stop == stop:
                self._settle(leap)

        Moment(self.env, leap.ends_after(stop) - self.env.now, ROUND, wake)

    def _stop_after(self, leap: Leap, rounds: int) -> None:
        """Let a leap end early, with the round under way or with the next end."""
        if rounds < leap.stop:
            leap.stop = rounds
            self._sleep(leap)

    def _settle(self, leap: Leap) -> None:
        """Book what is left of a leap, then plan.

        A plan comes after everything else of its nanosecond; if nothing else is to come, that is now.
        """
        while leap.done < leap.stop:
            self._book(leap, leap.stop)
        if leap.stop >= self.reach:  # nobody disturbed it: look further ahead next time
            self.reach = min(2 * self.reach, REACH[1])
        elif 4 * leap.stop < len(leap.ns):
            self.reach = max(self.reach // 2, REACH[0])
        self.leap = None
        if not (self.admitted or len(self.waiting)):
            return
        if self.env.peek() > self.env.now and not self.plan_asked:
            self._on_plan(None)
        else:
            self._ask_plan()

    def _book_ends(self, leap: Leap) -> None:
        """Book the part of a leap up to the last end that lies in the past."""
        if leap.plan.decode and leap.stop > 1:
            over = leap.over_at(self.env.now)
            while leap.done < over and leap.done + self.horizon.rounds_to_end() <= over:
                self._book(leap, over)

    def _book(self, leap: Leap, stop: int) -> None:
        """Rounds up to ``stop`` or to the first end: record them, gaps, ends of sequences, progress of prompts."""
        rounds = 1
        if leap.plan.decode:
            rounds = min(stop - leap.done, self.horizon.rounds_to_end())
        self._record_leap(leap, rounds)
        if leap.plan.decode:
            self._record_gaps(leap, rounds)
        leap.done += rounds
        end_ns = leap.ends_after(leap.done)
        if leap.plan.decode:
            for entry, member in self.horizon.advance(rounds):
                self._end_member(entry, member, end_ns)
        for sequence, new in leap.plan.chunks:
            sequence.prefilled += new
            if sequence.prefilled == sequence.prefill_tokens:
                self._first_tokens(sequence)

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
            self._finish(sequence, now)

    def _end_member(self, entry: Entry, member: Member, end_ns: int) -> None:
        """A sample has emitted its last token."""
        sequence = entry.sequence
        self._leave(entry, [f for f in entry.futures if f[0] is member])
        sequence.members.remove(member)
        self.running_seats -= 1
        self.decoding_seats -= 1
        if not sequence.members:
            del self.entries[sequence.request.id]
            self.horizon.close(entry)
            self._finish(sequence, end_ns)

    def _leave(self, entry: Entry, futures: list[tuple[Member, Future]]) -> None:
        """Credit the rounds that these samples have run since they joined."""
        sequence, last = entry.sequence, self.recorder.leaps_of[self.index]
        done = self.horizon.round - entry.start
        for member, future in futures:
            if member in sequence.members:
                member.emitted += int(np.add.reduce(future.gains[:done]))
                member.round += done
                sequence.rounds += done
                sequence.drafted += int(np.add.reduce(future.drafted[:done]))
                sequence.accepted += int(np.add.reduce(future.kept[:done]))
                self.recorder.stays.append((self.index, sequence.request.id, entry.leap, last, 1))

    def _finish(self, sequence: Sequence, end_ns: int) -> None:
        del self.admitted[sequence.request.id]
        self._record(sequence, 0, end_ns)
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

    def _record(self, s: Sequence, status: int, end_ns: int) -> None:
        r = s.request
        self.recorder.requests.append(
            (
                r.id, r.arrival_ns, s.admitted_ns, s.first_token_ns, end_ns, r.prompt, r.output, r.samples, s.rounds,
                s.drafted, s.accepted, s.preemptions, self.index, status, r.priority, r.session,
            )
        )  # fmt: skip

    def _record_leap(self, leap: Leap, rounds: int) -> None:
        recorder, index, chunks = self.recorder, self.index, leap.plan.chunks
        seats, sums = 0, self.no_sums
        if leap.plan.decode:
            seats, sums = self.decoding_seats, self.horizon.sums(rounds)
        start_ns = leap.ends_after(leap.done)
        recorder.leaps.append(
            (
                index, start_ns, leap.ends_after(leap.done + rounds) - start_ns, rounds, seats, len(chunks),
                len(self.waiting), self.running_seats, self.held_bytes + self.horizon.next_bytes(), *sums,
            )
        )  # fmt: skip
        number = recorder.leaps_of[index]
        for s, new in chunks:
            last = s.prefilled + new == s.prefill_tokens
            recorder.chunks.append((index, number, s.request.id, s.prefilled, new, int(last)))
        recorder.leaps_of[index] += 1

    def _record_gaps(self, leap: Leap, rounds: int) -> None:
        """Every running sample emits in every round; the first gap also holds what it waited for that round."""
        ns, start_ns = leap.ns[leap.done : leap.done + rounds], leap.ends_after(leap.done)
        if self.fresh or start_ns > self.decoded_ns:
            ns = self._first_gaps(start_ns, ns)
        self.recorder.gaps.add(ns, self.decoding_seats)
        self.decoded_ns = leap.ends_after(leap.done + rounds)

    def _first_gaps(self, start_ns: int, ns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Record the first gap of everybody who has waited; returns the gaps that are left to record."""
        waits = [(start_ns - emitted, seats) for emitted, seats in self.fresh.values()]
        waits.append((start_ns - self.decoded_ns, self.decoding_seats - sum(seats for _, seats in waits)))
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
