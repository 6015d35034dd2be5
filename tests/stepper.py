"""The stepper: a slow second engine that leaping must equal bit for bit (docs/design.md, "The rules of a round").

It takes one round at a time, looks at every sequence in a plain loop, and counts every total again in every round. No
horizon, no SimPy, no event queue; of ``sim.serving`` it uses only the luck and the cost of a round. A sample's future
is never known here: the policy is asked for one round at a time, by the sample's own round number.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from slow_gateway import SlowGateway

from sim.policies import Chunk, Chunks, Future
from sim.request import Request
from sim.routers import GroupFacts, ReplicaState
from sim.schedulers import Plan

FINISHED, REJECTED = 0, 1


@dataclass(eq=False)
class Sample:
    """One sample: tokens out, own decode rounds done, and what it drew since it joined the decode batch."""

    number: int
    emitted: int = 0
    round: int = 0
    last_emit_ns: int = -1
    joined_context: int = 0
    drawn: list[tuple[int, int, int]] = field(default_factory=list)  # gain, kept, drafted


@dataclass(eq=False)
class Job:
    """A request in service. Schedulers read ``request``, ``seats``, ``prefill_tokens`` and ``prefilled``."""

    request: Request
    samples: list[Sample]
    prefill_tokens: int
    prefilled: int = 0
    admitted_ns: int = -1
    first_token_ns: int = -1
    preemptions: int = 0
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    held: tuple[int, ...] = ()  # tokens that each sample keeps room for from admission until it decodes

    @property
    def seats(self) -> int:
        return len(self.samples)


@dataclass
class Told:
    """What a run tells: one form for the engine and for the stepper, so that ``==`` is the comparison.

    ``requests``: the recorder's row by request id. ``round_ends``: by replica. ``emits``: by request id, the sorted
    ends of the decode rounds in which its samples emitted. ``gaps``: how often each inter-token gap was seen.
    ``chunks``: (replica, start of the round, request, cached, new, last). ``sums``: by replica, sequence-rounds and
    the sum of every channel. ``clocks``: by replica, MHz of every round, 0 where the clock is fixed. ``refused``:
    (request, reason) of those that the gateway refused.
    """

    requests: dict[int, tuple[int, ...]] = field(default_factory=dict)
    round_ends: list[list[int]] = field(default_factory=list)
    emits: dict[int, list[int]] = field(default_factory=dict)
    gaps: Counter[int] = field(default_factory=Counter)
    chunks: list[tuple[int, ...]] = field(default_factory=list)
    sums: list[list[int]] = field(default_factory=list)
    clocks: list[list[int]] = field(default_factory=list)
    refused: list[tuple[int, str]] = field(default_factory=list)


class SlowReplica:
    """One replica, one round at a time. It is its own scheduler's view."""

    def __init__(self, index: int, setup: Any, told: Told) -> None:
        self.index, self.setup, self.told = index, setup, told
        self.tokens_per_round = setup.policy.tokens_per_round
        self.most_decoding = setup.scheduler.decode_seats(self.tokens_per_round)
        self.line: list[Job] = []
        self.admitted: list[Job] = []
        self.prefilling: list[Job] = []
        self.ready: list[Job] = []
        self.decoding: list[Job] = []
        self.crowded = False
        self.tier = 0
        self.plan_now: Plan | None = None
        self.start_ns = self.end_ns = -1
        self.finished: list[Request] = []
        self.kv_at: dict[int, int] = {}
        self.delayed: list[tuple[int, Job]] = []  # when they enter
        self.unseen: list[tuple[int, Job]] = []  # when they entered
        self.held_since: int | None = None  # rounds begun before the plan that could have taken the first who waits
        self.starts: list[int] = []
        self.MHz = setup.power.clock.rated_MHz if setup.power else 0
        self.set_ns, self.drawn_nJ = 0, [0]
        told.clocks.append([])
        told.round_ends.append([])
        told.sums.append([0] * (1 + setup.policy.channels(setup.windows)))

    # --- the view of a scheduler

    @property
    def running_seats(self) -> int:
        return sum(job.seats for job in self.admitted)

    @property
    def decoding_seats(self) -> int:
        return sum(job.seats for job in self.decoding)

    def admissible(self, seats: int) -> Iterator[Job]:
        chosen: list[Job] = []
        for job in [] if self.crowded else sorted(self.line, key=self._place):
            taken = self.running_seats + sum(j.seats for j in chosen)
            left = self.setup.kv.capacity_bytes - self.held() - self.needed()
            left -= sum(self._hold(j) for j in [*chosen, job])
            keep = self.setup.kv.watermark_bytes if self.admitted or chosen else 0
            if taken + job.seats > seats or left < keep:
                return
            chosen.append(job)
            yield job

    def _place(self, job: Job) -> tuple[int, int, int, int]:
        request = job.request
        by_order = {"fcfs": 0, "shortest_prompt": request.prompt, "priority": -request.priority}
        return (0 if job.preemptions else 1, by_order[self.setup.scheduler.order], request.arrival_ns, request.id)

    # --- KV memory, counted from the bytes of a token

    def kv(self, tokens: int) -> int:
        """Bytes that one sequence of this many tokens holds, pool by pool."""
        book, total = self.setup.kv, 0
        if tokens == 0:
            return 0
        for span in book.spans:
            blocks = math.ceil((book.reserve_tokens if book.mode == "reserved" else tokens) / book.block_tokens)
            if span.window is not None:
                in_reach = span.window - 1 + self.tokens_per_round
                blocks = min(blocks, math.ceil(in_reach / book.block_tokens) + 1)
            total += blocks * book.block_tokens * span.token_bytes
        return total

    def group(self, prompt: int, tokens: Iterable[int]) -> int:
        """Samples of one prompt hold its full blocks once, where no window moves past them."""
        tokens, book = list(tokens), self.setup.kv
        if hasattr(book, "source_bytes"):  # the prompt lies apart, once for all; a decoder has a start token of its own
            held = book.reserve_tokens if book.mode == "reserved" else prompt
            source: int = math.ceil(held / book.block_tokens) * book.block_tokens * book.source_bytes
            copies = len(tokens) if book.mode == "reserved" else 1
            return copies * source + sum(self.kv(1 + t - prompt) for t in tokens)
        whole = prompt // book.block_tokens * book.block_tokens
        once = 0 if book.mode == "reserved" else sum(whole * s.token_bytes for s in book.spans if s.window is None)
        return sum(self.kv(t) for t in tokens) - (len(tokens) - 1) * once

    def _hold(self, job: Job) -> int:
        return self.group(job.request.prompt, job.held or [job.request.prompt + s.emitted for s in job.samples])

    def held(self) -> int:
        """Bytes of the admitted that do not decode yet."""
        return sum(self._hold(job) for job in self.admitted if job not in self.decoding)

    def needed(self) -> int:
        """Bytes that the next decode round needs, its look-ahead included."""
        return sum(
            self.group(j.request.prompt, [cached(j, s) + self.tokens_per_round for s in j.samples])
            for j in self.decoding
        )

    def state(self) -> ReplicaState:
        kv_bytes = self.held() + self.needed()
        waiting = len(self.line) + len(self.delayed) + len(self.unseen)
        return ReplicaState(waiting, self.running_seats, kv_bytes, self.setup.kv.capacity_bytes)

    # --- arrivals and plans

    @property
    def seats(self) -> int:
        return min(self.most_decoding, getattr(self.setup.scheduler, "max_sequences", self.most_decoding))

    def could_serve(self, request: Request) -> bool:
        last = request.prompt + request.output - 1 + self.tokens_per_round
        fits = self.group(request.prompt, [last] * request.samples) <= self.setup.kv.capacity_bytes
        return request.samples <= self.seats and request.prompt + request.output <= self.setup.max_context and fits

    def arrive(self, request: Request, now: int) -> None:
        job = Job(request, [Sample(i) for i in range(request.samples)], request.prompt)
        if not self.could_serve(request):
            self._tell(job, now, REJECTED)
        else:
            self.delayed.append((now + round(self.setup.rounds.engine.request_s * 1e9), job))
            self.enter(now)

    def enter(self, now: int) -> None:
        """What the engine does once a request is done: those whose time has come stand in the door."""
        self.unseen += [(now, job) for at, job in self.delayed if at == now]
        self.delayed = [(at, job) for at, job in self.delayed if at != now]

    def moments(self) -> list[int]:
        """When something happens here that is no end of a round."""
        return [at for at, _ in self.delayed]

    def _see(self) -> None:
        """A plan was made when the round ``plan_ahead`` rounds before it began: it knows who had entered by then."""
        ahead = self.setup.rounds.engine.plan_ahead
        seen = [job for at, job in self.unseen if ahead == 0 or at <= ([-1] * ahead + self.starts)[-ahead]]
        begun, since = len(self.starts), self.held_since
        if seen:
            self.held_since = since = begun if since is None else since
            seen = seen if begun >= since + getattr(self.setup.scheduler, "batch_wait", 0) else []
        if not seen and not self.admitted and not self.line:
            seen = [job for _, job in self.unseen]
        if seen:
            self.held_since = None
        self.line += seen
        self.unseen = [(at, job) for at, job in self.unseen if job not in seen]

    def plan(self, now: int) -> None:
        """Promote, make room, plan, and start the round."""
        self._see()
        while self.ready and self.decoding_seats + self.ready[0].seats <= self.most_decoding:
            self._join(self.ready.pop(0))
        self.crowded = False
        while self.needed() + self.held() > self.setup.kv.capacity_bytes:
            self._preempt(self.admitted[-1])
            self.crowded = True
        plan = self.setup.scheduler.plan(self)
        for job in sorted(self.line, key=self._place)[: plan.admit]:
            self._admit(job, now)
        self._start(plan, now)

    def _admit(self, job: Job, now: int) -> None:
        self.line.remove(job)
        self.admitted.append(job)
        self.prefilling.append(job)
        job.held = tuple(job.request.prompt + s.emitted for s in job.samples)
        job.admitted_ns = now if job.admitted_ns < 0 else job.admitted_ns

    def _join(self, job: Job) -> None:
        self.decoding.append(job)
        for sample in job.samples:
            sample.joined_context, sample.drawn = cached(job, sample), []

    def _preempt(self, job: Job) -> None:
        for place in (self.admitted, self.prefilling, self.ready, self.decoding):
            if job in place:
                place.remove(job)
        job.preemptions += 1
        job.prefilled, job.held = 0, ()
        job.prefill_tokens = job.request.prompt + sum(s.emitted for s in job.samples)
        self.line.append(job)

    # --- one round

    def _start(self, plan: Plan, now: int) -> None:
        chunks = [
            Chunk(j.prefilled, new, j.prefilled + new == j.prefill_tokens, j.request.prompt) for j, new in plan.chunks
        ]
        seats = self.decoding_seats if plan.decode else 0
        switch_ns = self._tier_for(seats) if seats else 0
        columns = [self._draw(j, s) for j in self.decoding for s in j.samples] if seats else []
        assert seats or chunks, "a replica with work must not fall asleep"
        totals = [sum(c) for c in zip(*columns, strict=True)]
        column = np.array(totals, dtype=np.int64).reshape(len(totals), 1) if seats else None
        rounds = self._rounds_now(now)
        ns = rounds.ns(seats, column, Chunks(chunks) if chunks else None, seats + len(chunks))
        assert ns.shape == (1,) and ns[0] >= 1
        if now != self.end_ns:  # the replica stood idle
            ns[0] += rounds.filling_ns(ns, Chunks(chunks) if chunks else None)
        self.plan_now, self.start_ns, self.end_ns = plan, now, now + int(ns[0]) + switch_ns
        self._draw_power(rounds, seats, column, Chunks(chunks) if chunks else None)
        self.starts.append(now)
        self.kv_at[now] = self.held() + self.needed()
        for place, amount in enumerate([seats, *totals]):
            self.told.sums[self.index][place] += amount
        for (job, new), chunk in zip(plan.chunks, chunks, strict=True):
            self.told.chunks.append((self.index, now, job.request.id, chunk.cached, new, int(chunk.last), chunk.prompt))

    def _rounds_now(self, now: int) -> Any:
        """Costs at the clock of the round that begins now, after the governor has looked at the window behind it."""
        power = self.setup.power
        if power is None:
            return self.setup.rounds
        clock, elapsed = power.clock, now - self.set_ns
        if elapsed >= clock.window_ns:
            steps = [*range(clock.base_MHz, clock.top_MHz + 1, clock.step_MHz)]
            drawn_W = sum(self.drawn_nJ) / (elapsed * power.devices)
            wanted = self.MHz * math.sqrt((clock.cap_W - power.idle_W) / drawn_W) if drawn_W else clock.top_MHz
            self.MHz = max([MHz for MHz in steps if MHz <= wanted], default=clock.base_MHz)
            self.set_ns, self.drawn_nJ = now, []
        return self.setup.rounds if self.MHz == clock.rated_MHz else power.at(self.MHz)

    def _draw_power(self, rounds: Any, seats: int, column: Any, prompts: Chunks | None) -> None:
        """Whole nanojoules of the round that has just been given its end."""
        self.told.clocks[self.index].append(self.MHz)
        power = self.setup.power
        if power is not None:
            joules = float(np.asarray(rounds.joules(seats, column, prompts)).reshape(-1)[0])
            share = self.MHz / power.clock.rated_MHz
            volts = max(self.MHz, power.clock.voltage_floor_MHz) / power.clock.rated_MHz
            running_W = power.clock.busy_W * (share * volts * volts) * power.devices
            self.drawn_nJ.append(round(joules * 1e9 + (self.end_ns - self.start_ns) * running_W))

    def _tier_for(self, seats: int) -> int:
        """Where gamma or model follows the load: the tier of a round of so many seats; what a change costs, ns."""
        policy, before = self.setup.policy, self.tier
        if not hasattr(policy, "ladder"):
            return 0
        if hasattr(policy, "follows"):
            seats = len(self.line)
        starts = [tier[0] for tier in policy.ladder]  # its batch, or its line
        reached = max(i for i, start in enumerate(starts) if start <= seats)
        kept = max(i for i, start in enumerate(starts) if i == 0 or seats + policy.hysteresis >= start)
        self.tier = max(reached, min(before, kept))
        return round(policy.switch_ms * 1e6) if self.tier != before else 0

    def _draw_in_tier(self, job: Job, sample: Sample, left: int) -> tuple[int, int, int]:
        """The same coin decides in every tier; it is compared with as many survival probabilities as are drafted."""
        policy = self.setup.policy
        if hasattr(policy, "follows"):
            return 1, 0, self.tier  # no draft: the tier itself is noted
        gamma = policy.ladder[self.tier].gamma
        coin = self.setup.luck.of(job.request.id, sample.number).uniforms("acceptance", sample.round, 1)[0]
        kept = sum(coin < alive for alive in policy.survival[:gamma].tolist())
        return min(kept + 1, left), kept, gamma

    def _draw(self, job: Job, sample: Sample) -> tuple[int, ...]:
        """Ask the policy for this one round; returns the sample's share of every channel in it."""
        policy, left = self.setup.policy, job.request.output - sample.emitted
        if hasattr(policy, "ladder"):
            gain, kept, drafted = self._draw_in_tier(job, sample, left)
        else:
            draws = self.setup.luck.of(job.request.id, sample.number, job.request.prompt)
            one = policy.future(draws, sample.round, left)
            gain, kept, drafted = int(one.gains[0]), int(one.kept[0]), int(one.drafted[0])
        assert 1 <= gain <= left and 0 <= kept <= drafted
        sample.drawn.append((gain, kept, drafted))
        gains, kepts, drafteds = (np.array(c, dtype=np.int64) for c in zip(*sample.drawn, strict=True))
        so_far = Future(gains, np.cumsum(gains) - gains, kepts, drafteds)
        policy = policy.reading(job.request.prompt) if hasattr(policy, "reading") else policy
        return tuple(int(row[-1]) for row in policy.rows(so_far, sample.joined_context, self.setup.windows))

    def settle(self, now: int) -> None:
        """The round has ended: decodes gain, then prompts advance in the order of the plan."""
        plan, self.plan_now = self.plan_now, None
        assert plan is not None and now == self.end_ns
        self.told.round_ends[self.index].append(now)
        for decoding in sorted(self.decoding, key=lambda j: j.request.id) if plan.decode else []:
            self._gain(decoding, now)
        chunks: list[tuple[Any, int]] = plan.chunks
        for job, new in chunks:
            job.prefilled += new
            if job.prefilled == job.prefill_tokens:
                self._prompt_read(job, now)

    def _gain(self, job: Job, now: int) -> None:
        for sample in job.samples:
            gain, kept, drafted = sample.drawn[-1]
            drafted = drafted if self.setup.policy.tokens_per_round > 1 else 0  # one row a round judges no draft
            sample.emitted, sample.round = sample.emitted + gain, sample.round + 1
            job.rounds, job.drafted, job.accepted = job.rounds + 1, job.drafted + drafted, job.accepted + kept
            self.told.emits.setdefault(job.request.id, []).append(now)
            self._emit(sample, now)
        self._drop_complete(job, now)

    def _prompt_read(self, job: Job, now: int) -> None:
        self.prefilling.remove(job)
        self.ready.append(job)
        job.first_token_ns = now if job.first_token_ns < 0 else job.first_token_ns
        for sample in job.samples:
            sample.emitted += 1
            self._emit(sample, now)
        self._drop_complete(job, now)

    def _emit(self, sample: Sample, now: int) -> None:
        if sample.last_emit_ns >= 0:
            self.told.gaps[now - sample.last_emit_ns] += 1
        sample.last_emit_ns = now

    def _drop_complete(self, job: Job, now: int) -> None:
        job.samples = [s for s in job.samples if s.emitted < job.request.output]
        if not job.samples:
            for place in (self.admitted, self.ready, self.decoding):
                if job in place:
                    place.remove(job)
            self._tell(job, now, FINISHED)

    def _tell(self, job: Job, now: int, status: int) -> None:
        r = job.request
        self.finished.append(r)
        self.told.requests[r.id] = (
            r.id, r.arrival_ns, job.admitted_ns, job.first_token_ns, now, r.prompt, r.output, r.samples, job.rounds,
            job.drafted, job.accepted, job.preemptions, self.index, status, r.priority, r.session, 0, r.tenant,
        )  # fmt: skip


def cached(job: Job, sample: Sample) -> int:
    """Tokens of a sample in the cache before its next decode round."""
    return job.request.prompt + sample.emitted - 1


def step(case: Any, kind: Any = SlowReplica) -> tuple[Told, list[Any]]:
    """Run a case of tests/engine_setup.py round by round; the replicas come back for what they noted on the way."""
    told, loop, replicas, facts = Told(), case.closed_loop(), list[Any](), list[GroupFacts]()
    for place, one in enumerate([case, *case.others]):
        setup = one.setup()
        for _ in range(one.replicas):
            replicas.append(kind(len(replicas), setup, told))
            facts.append(one.facts(place, replicas[-1].seats))
    gateway = SlowGateway(case, replicas, facts, told)
    known = loop.requests[: loop.concurrency] if loop else case.requests
    coming = [(0 if loop else r.arrival_ns, r.id, r) for r in known]
    heapq.heapify(coming)
    while times := [
        *(r.end_ns for r in replicas if r.plan_now),
        *(t for t, _, _ in coming[:1]),
        *(t for r in replicas for t in r.moments()),
        *gateway.moments(),
    ]:
        now = min(times)
        gateway.poll(now, settled=False)
        for replica in replicas:
            if replica.plan_now and replica.end_ns == now:
                replica.settle(now)
        askers = [*replicas, gateway]
        _ask_again(case, askers, coming, now)
        gateway.poll(now, settled=True)
        for replica in replicas:
            replica.enter(now)
        looking = True
        while looking:
            while coming and coming[0][0] == now:
                gateway.arrive(_at(heapq.heappop(coming)[2], now), now)
                _ask_again(case, askers, coming, now)
            looking = gateway.dispatch(now)
            _ask_again(case, askers, coming, now)
        for replica in replicas:
            if replica.plan_now is None and (replica.line or replica.admitted or replica.unseen):
                replica.plan(now)
    told.chunks.sort()
    told.emits = {request: sorted(times) for request, times in told.emits.items()}
    most = max(len(sums) for sums in told.sums)
    told.sums = [sums + [0] * (most - len(sums)) for sums in told.sums]
    told.refused = sorted(gateway.refused)
    return told, replicas


def _at(r: Request, now: int) -> Request:
    return r._replace(arrival_ns=now)


def _ask_again(case: Any, replicas: list[Any], coming: list[tuple[int, int, Request]], now: int) -> None:
    """In a closed loop, a user whose request has ended thinks and sends the next one of its own."""
    loop = case.closed_loop()
    for replica in replicas:
        for request in replica.finished if loop else []:
            number = request.id + loop.concurrency
            if number < len(loop.requests):
                heapq.heappush(coming, (now + think_ns(case, loop, number), number, loop.requests[number]))
        replica.finished.clear()


def think_ns(case: Any, loop: Any, number: int) -> int:
    """Think time before request ``number``: fixed, or exponential by its own draw."""
    think_s: float = loop.think_s
    if loop.exponential:
        think_s *= -math.log1p(-float(case.setup().luck.of(number).uniforms("think", 0, 1)[0]))
    return round(think_s * 1e9)
