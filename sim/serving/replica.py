"""One replica: an engine that plans, leaps over decode rounds nobody disturbs, and settles what came out of them.

A plan is asked for once and comes after everything else of its nanosecond (sim/serving/clock.py has the order).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray

from sim.policies import Chunk, Chunks, Future, Policy, Windows, ones
from sim.request import Member, Request, Sequence
from sim.routers import ReplicaState
from sim.schedulers import Plan, Scheduler
from sim.serving.clock import ARRIVAL, LANDED, PLAN, ROUND, Clock, Moment
from sim.serving.governor import Governor, Power, whole_nJ
from sim.serving.horizon import Entry, Horizon, Rows
from sim.serving.kv import KvBudget
from sim.serving.luck import Luck
from sim.serving.prefix import Offers, Prefix, PrefixStore
from sim.serving.queue import WaitingLine
from sim.serving.record import Recorder
from sim.serving.rounds import Rounds

REACH = (32, 512)  # fewest and most rounds that a leap through ends looks ahead


@dataclass(slots=True)
class Leap:
    """Rounds under way: nanoseconds of each, and from the start to its end, 0 for the start itself first.

    ``stop`` of them will run, ``done`` are booked. ``joins``: who decodes from the second round on, because the first
    one reads the rest of their prompts; the plan is then that of the first round until it is booked.
    """

    start_ns: int
    ns: NDArray[np.int64]
    stop: int
    plan: Plan
    joins: list[Entry]
    done: int = 0
    after: list[int] = field(init=False)

    def __post_init__(self) -> None:
        """Look-ups in a list cost a tenth of those in an array."""
        self.after = [0, *(np.add.accumulate(self.ns) if len(self.ns) > 1 else self.ns).tolist()]

    @property
    def after_ns(self) -> NDArray[np.int64]:
        """Nanoseconds from the start to the end of each round."""
        return np.array(self.after[1:], dtype=np.int64)

    def ends_after(self, rounds: int) -> int:
        """The instant when so many rounds are over."""
        return self.start_ns + self.after[rounds]

    def over_at(self, now_ns: int) -> int:
        """Rounds that ended at or before an instant."""
        return bisect_right(self.after, now_ns - self.start_ns) - 1

    @property
    def reading(self) -> bool:
        """Whether its first round, not booked yet, reads prompts whose sequences decode in the next ones."""
        return bool(self.joins) and not self.done

    def under_way(self, now_ns: int) -> int:
        """Rounds until the end of the one under way, which may end at this very instant; at least 1."""
        return max(1, bisect_left(self.after, now_ns - self.start_ns))


@dataclass(frozen=True)
class Setup:
    """What replicas of one pool have in common.

    ``stepping``: one event a round. ``prompt_ends``: the end of a request is an event of its own, because somebody
    outside waits for it (a closed loop); otherwise a leap runs through ends that nobody queues behind. ``power``: what
    governs the clock; None where it is fixed. ``prefix``: the prefix cache; None where there is none.
    ``metered``: joules are counted round by round, as they are anyway where a clock is governed.
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
    power: Power | None = None
    prefix: Prefix | None = None
    metered: bool = False


@dataclass(frozen=True)
class Pooled:
    """What a replica of a prefill or decode pool asks of the pools (sim/serving/pools.py).

    Of a prefill pool, ``beyond`` is some replica that decodes and ``hand_over`` takes a sequence whose prompt is read.
    Of a decode pool, ``fetch`` moves the cache of a sequence that has been admitted here.
    """

    beyond: Replica | None = None
    hand_over: Callable[[Replica, Sequence], None] | None = None
    fetch: Callable[[Replica, Sequence], None] | None = None


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
        self.most_seats = min(self.decode_limit, getattr(setup.scheduler, "max_sequences", self.decode_limit))
        quick = getattr(setup.scheduler, "admits", None)  # what it says of a plan without making one
        self._would_admit: Callable[[Replica], int] = quick or (lambda view: setup.scheduler.plan(view).admit)
        channels = setup.policy.channels(setup.windows)
        self.horizon, self.no_sums = Horizon(2 + channels), [0] * channels
        self.padding = [0] * (recorder.channels - channels)
        self.waiting = WaitingLine(setup.scheduler.order)
        self.prefilling: list[Sequence] = []
        self.ready: list[Sequence] = []
        self.entries: dict[int, Entry] = {}
        self.admitted: dict[int, Sequence] = {}
        self.fresh: dict[int, tuple[int, int]] = {}
        self.running_seats = self.decoding_seats = self.held_bytes = 0
        self.decoded_ns, self.ended_ns = 0, -1
        self.tiers: Any = setup.policy if hasattr(setup.policy, "tier_of") else None
        self.by_line = getattr(setup.policy, "follows", "") == "waiting"
        self.tier = 0
        self.encoding: Any = setup.policy if hasattr(setup.policy, "reading") else None
        self.leap: Leap | None = None
        self.reach = REACH[1]
        self.plan_asked = self.crowded = self.closed = False
        engine = setup.rounds.engine
        self.request_ns, self.ahead = round(engine.request_s * 1e9), engine.plan_ahead
        self.batch_wait: int = getattr(setup.scheduler, "batch_wait", 0)
        self.coming: dict[int, Sequence] = {}
        self.later: list[tuple[int, Sequence]] = []
        self.rounds_over = 0
        self.governor = None if setup.power is None else Governor(setup.power)
        self.rounds = setup.rounds
        self.metered = self.governor is not None or setup.metered
        self.pooled: Pooled | None = None
        self.leaving: dict[int, int] = {}
        self.gone_bytes = 0  # since the round under way began
        self.landing: dict[int, Sequence] = {}
        self.store = None if setup.prefix is None else PrefixStore(setup.prefix)
        self.loading: dict[int, Sequence] = {}

    # --- what others ask -------------------------------------------------------------------------------------------

    def arrive(self, sequence: Sequence) -> None:
        """Take a sequence in; the scheduler hears of it when the engine has done what it does once a request."""
        request = sequence.request
        if not self.can_ever_serve(request):
            self.record(sequence, 1, self.env.now)
            self.finished(request)
        elif self.request_ns:
            self.coming[request.id] = sequence
            Moment(self.env, self.request_ns, ARRIVAL, lambda _: self._come(request.id))
        else:
            self._enter(sequence)

    def _come(self, number: int) -> None:
        if number in self.coming:
            self._enter(self.coming.pop(number))

    def close(self) -> None:
        """The replica is no more; whoever was in it has been taken out (sim/serving/evacuate.py)."""
        self.closed, self.leap = True, None
        self.horizon = Horizon(len(self.horizon.totals), 1)
        self.waiting = WaitingLine(self.setup.scheduler.order)
        for there in (self.coming, self.later, self.admitted, self.entries):
            there.clear()

    def _enter(self, sequence: Sequence) -> None:
        """Join the line; interrupt the leap under way if that could change the plan."""
        leap = self.leap
        if leap is not None:
            self._book_ends(leap)
        sequence.held_bytes, sequence.prefilled = self._hold(sequence), 0
        if self.ahead or self.batch_wait:
            self._enter_later(sequence)
            return
        self.waiting.push(sequence)
        if leap is not None and self.by_line and self.tiers.tier_of(self.tier, len(self.waiting)) != self.tier:
            self._stop_after(leap, leap.under_way(self.env.now))
        if leap is None:
            self._ask_plan()
        elif self.waiting.is_head(sequence) and self._would_admit(self):
            self._stop_after(leap, leap.under_way(self.env.now))
        elif leap.reading:
            self._stop_after(leap, 1)
        elif leap.plan.decode:
            self._stop_after(leap, leap.done + self.horizon.rounds_to_end())

    def _enter_later(self, sequence: Sequence) -> None:
        """The round under way and those already planned run first; then it waits for others, or joins who waits."""
        leap = self.leap
        due = self.rounds_over + self.ahead + (0 if leap is None else leap.under_way(self.env.now))
        company = self.later[-1][0] if self.later and self.batch_wait else 0
        due = company if company >= due else due + self.batch_wait
        self.later.append((due, sequence))
        if leap is None:
            self._ask_plan()
        else:
            self._stop_after(leap, due - self.rounds_over)

    def receive(self, sequence: Sequence) -> None:
        """Take in a sequence whose prompt another replica has read; its cache is fetched once it is admitted."""
        sequence.prefill_tokens = sequence.prefilled = 0
        self._enter(sequence)

    def release(self, number: int) -> None:
        """The cache of a request that was handed over has gone."""
        freed = self.leaving.pop(number)
        self.held_bytes -= freed
        if self.store is not None:
            freed += self.store.pinned_bytes
            self.store.release(number)
            freed -= self.store.pinned_bytes
        self.gone_bytes += freed if self.leap is not None else 0
        if self.leap is None and (self.admitted or len(self.waiting) or self.later):
            self._ask_plan()

    def landed(self, number: int) -> None:
        """The cache of an admitted sequence has come; it decodes from the next round on."""
        self.ready.append(self.landing.pop(number))
        self._plan_anew()

    def _plan_anew(self) -> None:
        """Something has come that a plan can use: the next one follows the round under way."""
        if self.leap is None:
            self._ask_plan()
        else:
            self._book_ends(self.leap)
            self._stop_after(self.leap, self.leap.under_way(self.env.now))

    def _let_in(self) -> None:
        """Whose turn has come joins the line; everybody, where there is nothing else to plan."""
        while self.later and self.later[0][0] <= self.rounds_over:
            self.waiting.push(self.later.pop(0)[1])
        if not self.admitted and not len(self.waiting):
            for _, sequence in self.later:
                self.waiting.push(sequence)
            self.later.clear()

    def state_at(self, now_ns: int) -> ReplicaState:
        """What a router sees: every round that ended at or before ``now_ns`` is included."""
        leap, begun = self.leap, 0
        if leap is not None and (leap.plan.decode or leap.joins):
            self._book_ends(leap)
            begun = leap.over_at(now_ns) - leap.done
        kv_bytes = self.held_bytes + int(self.horizon.window(begun + 1)[0, begun]) + self.pinned_bytes
        waiting = len(self.waiting) + len(self.later) + len(self.coming)
        return ReplicaState(waiting, self.running_seats, kv_bytes, self.setup.kv.capacity_bytes)

    @property
    def pinned_bytes(self) -> int:
        """Bytes of the prefix cache that running sequences share; those of their own are counted apart."""
        return 0 if self.store is None else self.store.pinned_bytes

    def cached_prefix(self, request: Request) -> int:
        """Tokens of a request that the prefix cache holds now, in memory or in a tier below; 0 without one."""
        store, leap, begun = self.store, self.leap, 0
        if store is None:
            return 0
        if leap is not None and (leap.plan.decode or leap.joins):
            self._book_ends(leap)
            begun = leap.over_at(self.env.now) - leap.done
        self._evict(int(self.horizon.window(begun + 1)[0, begun]))
        return store.tokens(request)

    def unfinished(self) -> Iterator[Sequence]:
        """Sequences in the house, waiting or running."""
        yield from self.admitted.values()
        yield from self.waiting
        yield from [sequence for _, sequence in self.later]
        yield from self.coming.values()

    def give_up(self) -> None:
        """Record whatever is unfinished as partial (the run was cut short)."""
        if self.leap is not None:
            self._book_ends(self.leap)
        for sequence in list(self.unfinished()):
            self.record(sequence, 3, self.env.now)
        for row in () if self.store is None else self.store.counts():
            self.recorder.levels.append((self.index, *row))

    def admissible(self, seats: int) -> Iterator[Sequence]:
        """Queue heads that fit into ``seats`` seats and free KV memory; nobody right after a preemption."""
        if self.crowded:
            return
        kv = self.setup.kv
        room = kv.capacity_bytes - self.held_bytes - self.horizon.next_bytes() - self.pinned_bytes
        offers = None if self.store is None else Offers(self.store, self.env.now)
        left = seats - self.running_seats
        empty = not self.admitted
        for sequence in self.waiting:
            left -= len(sequence.members)
            room -= sequence.held_bytes if offers is None else self._offered(offers, sequence)
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
        if self.closed:
            return
        if self.later:
            self._let_in()
        if self.ready:
            self._promote()
        self.crowded = self._make_room()
        plan = self.setup.scheduler.plan(self) if self.prefilling or len(self.waiting) else Plan()
        for _admitted in range(plan.admit):
            self._admit(self.waiting.pop())
        if self.store is not None:
            self._remember(self.store, plan)
        if self.landing or self.loading:  # nobody reads what has been read elsewhere, or has not come yet
            plan.chunks = [(sequence, new) for sequence, new in plan.chunks if new]
            plan.decode = plan.decode or not plan.chunks
        plan.decode = plan.decode and self.decoding_seats > 0
        switch_ns = self._choose_tier() if plan.decode and self.tiers is not None else 0
        if plan.chunks or plan.decode:
            self._launch(plan, switch_ns)
        moving = self.leaving or self.landing or self.loading
        idle = not (self.admitted or len(self.waiting) or self.later)
        assert self.leap or moving or idle, "a replica with work must not fall asleep"

    def _admit(self, sequence: Sequence) -> None:
        self.admitted[sequence.request.id] = sequence
        if sequence.prefill_tokens:
            self._read(sequence)
        else:
            assert self.pooled is not None and self.pooled.fetch is not None
            self.landing[sequence.request.id] = sequence
            self.pooled.fetch(self, sequence)
        self.running_seats += sequence.seats
        self.held_bytes += sequence.held_bytes
        if sequence.admitted_ns < 0:
            sequence.admitted_ns = self.env.now

    # --- the prefix cache --------------------------------------------------------------------------------------------

    def _offered(self, offers: Offers, sequence: Sequence) -> int:
        """Bytes that a head of the line would take; notes on it what it need not read: all, while it would have to
        wait for it.
        """
        found, waits, pinned_bytes = offers.tokens_bytes(sequence.request, sequence.prefill_tokens)
        sequence.prefilled = sequence.prefill_tokens if waits else found
        return sequence.held_bytes - found * offers.store.spec.token_bytes + pinned_bytes

    def _read(self, sequence: Sequence) -> None:
        """An admitted sequence reads its prompt, what is cached left out, as soon as that has come."""
        store, request, now = self.store, sequence.request, self.env.now
        ready_ns = now
        if store is not None:
            hit = store.take(request, sequence.prefill_tokens, now)
            ready_ns, sequence.prefilled = hit.ready_ns, hit.tokens
            sequence.held_bytes -= store.shared_bytes(request.id)
            for level, tokens, start_ns, end_ns in hit.levels:
                row = (self.index, request.id, sequence.preemptions, level, tokens, now, start_ns, end_ns)
                self.recorder.hits.append(row)
        if ready_ns > now:
            self.loading[request.id] = sequence
            Moment(self.env, ready_ns - now, LANDED, lambda _: self._loaded(request.id))
        else:
            self.prefilling.append(sequence)

    def _loaded(self, number: int) -> None:
        """What was found has come; the rest is read from the next round on."""
        if self.closed:
            return
        self.prefilling.append(self.loading.pop(number))
        self._plan_anew()

    def _remember(self, store: PrefixStore, plan: Plan) -> None:
        """What the planned round reads enters the cache with it, and idle blocks go where memory is short."""
        for sequence, new in plan.chunks:
            if new and sequence.request.id not in self.loading:
                moved_bytes = store.add(sequence.request, sequence.prefilled + new)
                sequence.held_bytes -= moved_bytes
                self.held_bytes -= moved_bytes
        self._evict(self.horizon.next_bytes())

    def _evict(self, decodes_bytes: int) -> None:
        """Make room for decodes of so many bytes, and for all that is held besides."""
        store = self.store
        if store is not None:
            store.shrink(self.setup.kv.capacity_bytes - self.held_bytes - store.pinned_bytes - decodes_bytes)

    def _hold(self, sequence: Sequence) -> int:
        """Bytes of KV from admission until the sequence decodes."""
        prompt, members = sequence.request.prompt, sequence.members
        if len(members) == 1:
            return self.setup.kv.bytes_of(prompt + members[0].emitted, prompt)
        return self.setup.kv.group_bytes(prompt, [prompt + m.emitted for m in members])

    def _promote(self) -> None:
        """Sequences whose prompt is read join the decode batch in order of admission while there are seats."""
        while self.ready and self.decoding_seats + self.ready[0].seats <= self.decode_limit:
            entry = self._entry(self.ready.pop(0))
            self.horizon.add(entry)
            self._join(entry)

    def _join(self, entry: Entry) -> None:
        """Somebody who is on the horizon begins to decode."""
        sequence = entry.sequence
        self.held_bytes -= sequence.held_bytes
        self.entries[sequence.request.id] = entry
        self.fresh[sequence.request.id] = (sequence.last_emit_ns, sequence.seats)
        self.decoding_seats += sequence.seats

    def _entry(self, sequence: Sequence) -> Entry:
        """Draw the future of every running sample and add up what the horizon will carry for them.

        Who is still reading the prompt joins after the next round, which emits one more token of every sample.
        """
        setup, request = self.setup, sequence.request
        ahead = int(sequence.prefilled < sequence.prefill_tokens)
        futures = []
        for member in sequence.members:
            draws = setup.luck.of(request.id, member.sample, request.prompt)
            remaining = request.output - member.emitted - ahead
            if self.tiers is None:
                future = setup.policy.future(draws, member.round, remaining)
            else:
                future = self.tiers.tier_future(self.tier, draws, member.round, remaining)
            futures.append((member, future))
        leap = self.recorder.leaps_of[self.index] + ahead
        return Entry(sequence, self.horizon.round + ahead, self._rows(sequence, futures, ahead), futures, leap)

    def _rows(self, sequence: Sequence, futures: list[tuple[Member, Future]], ahead: int) -> Rows:
        """What samples add to each round from the one on in which they join; ``ahead``: see :meth:`_entry`."""
        setup, request, parts = self.setup, sequence.request, []
        policy = setup.policy if self.encoding is None else self.encoding.reading(request.prompt)
        shared = cached = 0 if self.store is None else self.store.shared_bytes(request.id)
        if len(futures) > 1:
            shared = setup.kv.shared_bytes(request.prompt, len(futures))
        for member, future in futures:
            context = request.prompt + member.emitted + ahead - 1
            kv = setup.kv.bytes_along(future.offsets, context + self.tokens_per_round, request.prompt)
            kv = kv - shared if shared else kv
            parts.append((kv, ones(len(kv)), *policy.rows(future, context, setup.windows)))
        return parts[0] if len(parts) == 1 else _stack(parts, shared - cached)

    def _choose_tier(self) -> int:
        """Of a policy that follows the load: the tier of the round that begins now; returns nanoseconds of a switch.

        Rounds that have begun stay; all others are drawn anew, under the same luck.
        """
        tier = self.tiers.tier_of(self.tier, len(self.waiting) if self.by_line else self.decoding_seats)
        if tier == self.tier:
            return 0
        self.tier = tier
        pairs = [(entry, self._redrawn(entry)) for entry in self.entries.values()]
        self.horizon.swap(pairs)
        for _, entry in pairs:
            self.entries[entry.sequence.request.id] = entry
        switch_ns: int = self.tiers.switch_ns
        return switch_ns

    def _redrawn(self, entry: Entry) -> Entry:
        """An entry whose samples go on in the present tier."""
        sequence, done, futures = entry.sequence, self.horizon.round - entry.start, []
        request = sequence.request
        for member, future in entry.futures:
            if member in sequence.members:
                gained = int(future.offsets[done])
                draws = self.setup.luck.of(request.id, member.sample, request.prompt)
                left = request.output - member.emitted - gained
                rest = self.tiers.tier_future(self.tier, draws, member.round + done, left)
                futures.append((member, _continued(future, done, rest, gained)))
        return Entry(sequence, entry.start, self._rows(sequence, futures, 0), futures, entry.leap)

    def _make_room(self) -> bool:
        """Preempt the latest admitted until the next decode round fits; True if anybody had to go."""
        went = False
        if self.horizon.peak_bytes + self.held_bytes + self.pinned_bytes <= self.setup.kv.capacity_bytes:
            return went
        while self.horizon.next_bytes() + self.held_bytes + self.pinned_bytes > self.setup.kv.capacity_bytes:
            still = (s for n, s in reversed(self.admitted.items()) if n not in self.landing and n not in self.loading)
            self._preempt(next(still))
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
        if self.store is not None:
            self.store.release(number)
        sequence.restart()
        sequence.held_bytes = self._hold(sequence)
        self.waiting.push(sequence)

    # --- leaping ---------------------------------------------------------------------------------------------------

    def _launch(self, plan: Plan, switch_ns: int) -> None:
        """Cost the rounds of a plan and sleep until the last of them ends; ``switch_ns``: more for the first."""
        if self.governor is not None:
            self.governor.tick(self.env.now)
            self.rounds = self.governor.rounds
        seats = self.decoding_seats if plan.decode else 0
        rounds = self._rounds(plan) if plan.decode else 1
        if rounds > 1:
            ns = self.rounds.decode_ns(seats, self.horizon.window(rounds)[1:])
        else:
            ns = self._one_round_ns(plan, seats)
        ns[0] += switch_ns
        joins = self._joins(plan)
        if joins:
            ns = np.concatenate((ns, self._decodes_after_ns(seats, joins)))
        self.leap = Leap(self.env.now, ns, len(ns), plan, joins)
        self._curtail(self.leap)
        self._sleep(self.leap)

    def _curtail(self, leap: Leap) -> None:
        """A leap ends when the clock is set, and when somebody's turn to be planned for comes."""
        if self.governor is not None:
            leap.stop = min(leap.stop, max(1, bisect_left(leap.after, self.governor.due_ns - leap.start_ns)))
        if self.later:
            leap.stop = min(leap.stop, self.later[0][0] - self.rounds_over)

    def _joins(self, plan: Plan) -> list[Entry]:
        """Whoever decodes after this round if it reads the last of all prompts and nothing is in the way: the leap may
        then run on, for the plan that follows is known. They are put on the horizon behind this round.
        """
        setup, reading = self.setup, self.prefilling
        alone = plan.decode or not self.decoding_seats
        if not plan.chunks or not alone or setup.stepping or setup.prompt_ends or self.crowded:
            return []
        if self.ready or len(plan.chunks) < len(reading) or len(self.waiting) or self.later:
            return []
        if self.landing or (self.pooled is not None and self.pooled.hand_over is not None):
            return []
        seats = self.decoding_seats
        for sequence, new in plan.chunks:
            if not _completes(sequence, new):
                return []
            seats += len(sequence.members)
        if seats > self.decode_limit:
            return []
        if self.tiers is not None and self._tier_after(reading) != self.tier:
            return []
        entries, peak_bytes = [], self.horizon.peak_bytes
        for sequence, _ in plan.chunks:
            entries.append(self._entry(sequence))
            peak_bytes += entries[-1].peak_bytes
        if self.held_bytes + peak_bytes + self.pinned_bytes > setup.kv.capacity_bytes:
            return []
        for entry in entries:
            self.horizon.add(entry, ahead=1)
        return entries

    def _tier_after(self, joining: list[Sequence]) -> int:
        """The tier of the round after the next one, if these join then and nobody waits."""
        seats = 0 if self.by_line else self.horizon.seats_after(1) + sum([s.seats for s in joining])
        tier: int = self.tiers.tier_of(self.tier, seats)
        return tier

    def _decodes_after_ns(self, seats: int, joins: list[Entry]) -> NDArray[np.int64]:
        """Nanoseconds of the decode rounds after the one in which ``joins`` read their prompts."""
        rounds = min(self.horizon.last_end - self.horizon.round - 1, self.reach)
        if self.tier:
            rounds = self.horizon.rounds_with(self.tiers.least_seats(self.tier), 1, 1 + rounds) - 1
        for entry in joins:
            seats += len(entry.sequence.members)
        at = self.horizon.round - self.horizon.base + 1
        return self.rounds.decode_ns(seats, self.horizon.totals[1:, at : at + rounds])

    def _one_round_ns(self, plan: Plan, seats: int) -> NDArray[np.int64]:
        """Nanoseconds of a single round, with or without prompts, shape [1]."""
        totals = self.horizon.next_totals() if plan.decode else None
        prompts = _chunks(plan) if plan.chunks else None
        ns = self.rounds.ns(seats, totals, prompts, seats + len(plan.chunks))
        if self.ended_ns != self.env.now:  # it stood idle
            ns[0] += self.rounds.filling_ns(ns, prompts)
        return ns

    def _rounds(self, plan: Plan) -> int:
        """How many rounds the plan holds for: to the first end that somebody waits for, while memory lasts."""
        setup, horizon = self.setup, self.horizon
        if plan.chunks or self.crowded or setup.stepping:
            return 1
        if setup.prompt_ends or self.ready or self.prefilling or len(self.waiting):
            rounds = horizon.rounds_to_end()
        else:
            rounds = min(horizon.last_end - horizon.round, self.reach)
        if self.tier:
            rounds = horizon.rounds_with(self.tiers.least_seats(self.tier), 0, rounds)
        return horizon.rounds_that_fit(rounds, setup.kv.capacity_bytes - self.held_bytes - self.pinned_bytes)

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
        ahead = len(leap.joins) > 0
        if leap.stop - ahead >= self.reach:  # nobody disturbed it: look further ahead next time
            self.reach = min(2 * self.reach, REACH[1])
        elif leap.stop > ahead and 4 * (leap.stop - ahead) < len(leap.ns) - ahead:
            self.reach = max(self.reach // 2, REACH[0])
        self.leap, self.ended_ns, self.gone_bytes = None, self.env.now, 0
        self.rounds_over += leap.stop
        if not (self.admitted or len(self.waiting) or self.later):
            return
        if self.env.peek() > self.env.now and not self.plan_asked:
            self._on_plan(None)
        else:
            self._ask_plan()

    def _book_ends(self, leap: Leap) -> None:
        """Book the part of a leap up to the last end that lies in the past."""
        if leap.stop > 1 and (leap.plan.decode or leap.joins):
            over = leap.over_at(self.env.now)
            if over and leap.reading:
                self._book(leap, over)
            while leap.done < over and leap.done + self.horizon.rounds_to_end() <= over:
                self._book(leap, over)

    def _book(self, leap: Leap, stop: int) -> None:
        """Rounds up to ``stop`` or to the first end: record them, gaps, ends of sequences, progress of prompts."""
        if leap.plan.decode:
            rounds = 1 if leap.reading else min(stop - leap.done, self.horizon.rounds_to_end())
            self._record_leap(leap, rounds)
            self._record_gaps(leap, rounds)
            if self.store is not None:  # within a piece memory only fills
                self._evict(int(self.horizon.window(rounds)[0, rounds - 1]))
            leap.done += rounds
            for entry, member in self.horizon.advance(rounds):
                self._end_member(entry, member, self.decoded_ns)
        else:
            self._record_leap(leap, 1)
            leap.done += 1
            if leap.joins:
                self.horizon.advance(1)  # nobody is on it yet
        if leap.plan.chunks:
            self._book_chunks(leap, leap.ends_after(leap.done))

    def _book_chunks(self, leap: Leap, end_ns: int) -> None:
        """Progress of prompts at the end of a round; those who decode in the rest of the leap join."""
        for sequence, new in leap.plan.chunks:
            sequence.prefilled += new
            if sequence.prefilled == sequence.prefill_tokens:
                self._first_tokens(sequence, end_ns)
        if leap.joins:
            self.ready.clear()
            leap.plan = Plan()
        for entry in leap.joins:
            self._join(entry)

    # --- what comes out ----------------------------------------------------------------------------------------------

    def _first_tokens(self, sequence: Sequence, now: int) -> None:
        """The end of a prefill emits one token of every sample, the next one after a preemption."""
        members = sequence.members
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
        if sequence.members and self.pooled is not None and self.pooled.hand_over is not None:
            self.running_seats -= sequence.seats
            self.leaving[sequence.request.id] = sequence.held_bytes
            del self.admitted[sequence.request.id]
            self.pooled.hand_over(self, sequence)
        elif sequence.members:
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
                if done:
                    member.emitted += int(future.offsets[done - 1]) + int(future.gains[done - 1])
                member.round += done
                sequence.rounds += done
                if self.tokens_per_round > 1:  # else there is no room for a draft
                    sequence.drafted += sum(future.drafted[:done].tolist())
                    sequence.accepted += sum(future.kept[:done].tolist())
                self.recorder.stays.append((self.index, sequence.request.id, entry.leap, last, 1))

    def _finish(self, sequence: Sequence, end_ns: int) -> None:
        request = sequence.request
        del self.admitted[request.id]
        if self.store is not None:
            if request.samples == 1 and request.id in self.store.runs:
                self.store.add(request, request.prompt + request.output - 1)
            self.store.release(request.id)
        self.record(sequence, 0, end_ns)
        self.finished(sequence.request)

    def can_ever_serve(self, request: Request) -> bool:
        """Whether seats, context and KV memory allow it at all."""
        setup = self.setup
        if self.pooled is not None and self.pooled.beyond is not None:
            fits = self._hold(Sequence.of(request)) <= setup.kv.capacity_bytes
            return fits and request.samples <= self.most_seats and self.pooled.beyond.can_ever_serve(request)
        return (
            request.samples <= self.most_seats
            and request.prompt + request.output <= setup.max_context
            and setup.kv.most_bytes(request.prompt, request.output, request.samples) <= setup.kv.capacity_bytes
        )

    # --- the record --------------------------------------------------------------------------------------------------

    def record(self, s: Sequence, status: int, end_ns: int) -> None:
        """A request ends here; ``status`` as in ``sim.serving.record.STATUS``."""
        self.recorder.ended(s, self.index, status, end_ns)

    def _record_leap(self, leap: Leap, rounds: int) -> None:
        recorder, index, chunks = self.recorder, self.index, leap.plan.chunks
        next_bytes, sums = self.horizon.ahead(rounds)
        seats = self.decoding_seats if leap.plan.decode else 0
        begun, over = leap.after[leap.done], leap.after[leap.done + rounds]
        nJ = -1
        if self.metered:
            joules = self._joules(leap, rounds)
            nJ = whole_nJ(joules)
            if self.governor is not None:
                self.governor.spend(joules, leap.ns[leap.done : leap.done + rounds])
        recorder.leaps.append(
            (
                index, leap.start_ns + begun, over - begun, rounds, seats, len(chunks),
                len(self.waiting), self.running_seats,
                self.held_bytes + self.gone_bytes + next_bytes + (0 if self.store is None else self.pinned_bytes),
                0 if self.governor is None else self.governor.MHz, nJ,
                *(sums if seats else self.no_sums), *self.padding,
            )
        )  # fmt: skip
        number = recorder.leaps_of[index]
        for s, new in chunks:
            last = s.prefilled + new == s.prefill_tokens
            recorder.chunks.append((index, number, s.request.id, s.prefilled, new, int(last), s.request.prompt))
        recorder.leaps_of[index] += 1

    def _joules(self, leap: Leap, rounds: int) -> Any:
        """Dynamic joules of the next rounds to be booked, shape [rounds]; a number for a round of prompts alone."""
        prompts = _chunks(leap.plan) if leap.plan.chunks else None
        if not leap.plan.decode:
            return self.rounds.joules(0, None, prompts)
        totals = self.horizon.window(rounds)[1:]
        return self.rounds.joules(totals[0], totals[1:], prompts)

    def _record_gaps(self, leap: Leap, rounds: int) -> None:
        """Every running sample emits in every round; the first gap also holds what it waited for that round."""
        gaps, first, end = self.recorder.gaps, leap.done, leap.done + rounds
        start_ns = leap.start_ns + leap.after[first]
        if (self.fresh or start_ns > self.decoded_ns) and self._first_gaps(start_ns, int(leap.ns[first])):
            first += 1
        if end - first == 1:
            gaps.add_one(int(leap.ns[first]), self.decoding_seats)
        elif end > first:
            gaps.add(leap.ns[first:end], self.decoding_seats)
        self.decoded_ns = leap.start_ns + leap.after[end]

    def _first_gaps(self, start_ns: int, round_ns: int) -> bool:
        """Record the gap of the first round if somebody has waited for it, each with what it waited; whether so."""
        rest, waited, waits = self.decoding_seats, 0, []
        for emitted_ns, seats in self.fresh.values():
            waits.append((start_ns - emitted_ns, seats))
            waited += start_ns - emitted_ns
            rest -= seats
        self.fresh.clear()
        waits.append((start_ns - self.decoded_ns, rest))
        if not waited and not (rest and start_ns > self.decoded_ns):
            return False
        for wait, seats in waits:
            self.recorder.gaps.add_one(round_ns + wait, seats)
        return True


def _chunks(plan: Plan) -> Chunks:
    """The prompt chunks of a round that has not been booked yet."""
    return Chunks(
        [Chunk(s.prefilled, new, s.prefilled + new == s.prefill_tokens, s.request.prompt) for s, new in plan.chunks]
    )


def _completes(sequence: Sequence, new: int) -> bool:
    """Whether so many more prompt tokens are the last, and every sample then still has something to emit."""
    if len(sequence.members) == 1:
        left = sequence.request.output - sequence.members[0].emitted
        return left > 1 and sequence.prefilled + new == sequence.prefill_tokens
    most = max([member.emitted for member in sequence.members])
    return sequence.prefilled + new == sequence.prefill_tokens and most + 1 < sequence.request.output


def _continued(future: Future, done: int, rest: Future, gained: int) -> Future:
    """The first ``done`` rounds of a future, in which it gained so much, and then others."""
    columns = zip(future[:4], (rest.gains, rest.offsets + gained, rest.kept, rest.drafted), strict=True)
    return Future(*(np.concatenate((begun[:done], later)) for begun, later in columns))


def _stack(parts: list[Rows], shared_bytes: int) -> Rows:
    """Sum the rows of several samples, each ending in its own time; the shared prompt stays to the end."""
    length = max(len(part[0]) for part in parts)
    rows = tuple(np.zeros(length, dtype=np.int64) for _ in parts[0])
    for part in parts:
        for row, piece in zip(rows, part, strict=True):
            row[: len(piece)] += piece
    rows[0][:] += shared_bytes
    return rows
