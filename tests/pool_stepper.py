"""The stepper of pools: prefill and decode replicas that tests/stepper.py steps, and caches that move between them."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field, replace
from typing import Any

from engine_setup import Case, round_ends, told_by
from stepper import REJECTED, Job, Sample, SlowReplica, Told, _ask_again, _at

from sim.request import Request
from sim.schedulers import Plan
from sim.serving.pools import Mover, PooledCluster, Pools
from sim.serving.record import Recorder


@dataclass(frozen=True)
class PoolCase:
    """Two cases of tests/engine_setup.py, whose ``replicas`` are those of each pool; traffic is the first one's."""

    prefill: Case
    decode: Case
    mover: Mover


class SlowPrefill(SlowReplica):
    """Reads prompts; what has been read holds its memory until the cache has gone."""

    def __init__(self, index: int, setup: Any, told: Told, beyond: SlowReplica) -> None:
        super().__init__(index, setup, told)
        self.beyond, self.read, self.leaving = beyond, list[Job](), dict[int, int]()

    def arrive(self, request: Request, now: int) -> None:
        job = Job(request, [Sample(i) for i in range(request.samples)], request.prompt)
        before = len(self.beyond.delayed), len(self.beyond.unseen)
        self.beyond.arrive(request, now)  # it says whether it could ever serve the request
        taken = (len(self.beyond.delayed), len(self.beyond.unseen)) != before
        if taken:
            (self.beyond.delayed if len(self.beyond.delayed) > before[0] else self.beyond.unseen).pop()
        else:
            del self.told.requests[request.id]
            self.beyond.finished.pop()
        seats = min(self.most_decoding, getattr(self.setup.scheduler, "max_sequences", self.most_decoding))
        if not taken or request.samples > seats or self._hold(job) > self.setup.kv.capacity_bytes:
            self._tell(job, now, REJECTED)
        else:
            self.unseen.append((now, job))

    def _prompt_read(self, job: Job, now: int) -> None:
        held = self._hold(job)
        super()._prompt_read(job, now)
        if job in self.ready:
            self.ready.remove(job)
            self.admitted.remove(job)
            self.leaving[job.request.id] = held
            self.read.append(job)

    def held(self) -> int:
        return super().held() + sum(self.leaving.values())

    def plan(self, now: int) -> None:
        super().plan(now)

    def _start(self, plan: Plan, now: int) -> None:
        if plan.chunks:
            super()._start(plan, now)


class SlowDecode(SlowReplica):
    """Decodes what others have read; whoever is admitted waits for the cache before it may join."""

    def __init__(self, index: int, setup: Any, told: Told) -> None:
        super().__init__(index, setup, told)
        self.landing: list[Job] = []
        self.asked: list[Job] = []

    def take(self, job: Job, now: int) -> None:
        job.prefill_tokens, job.held = 0, ()
        job.prefilled = 0
        self.unseen.append((now, job))

    def _admit(self, job: Job, now: int) -> None:
        super()._admit(job, now)
        if job.prefill_tokens == 0:
            self.prefilling.remove(job)
            self.landing.append(job)
            self.asked.append(job)

    def plan(self, now: int) -> None:
        """Whoever is on the way can not be preempted: out of sight of the loop that looks for the last admitted."""
        on_the_way, waiting = [j for j in self.admitted if j in self.landing], self.admitted
        if on_the_way and on_the_way != waiting:
            self.admitted = [*on_the_way, *(j for j in waiting if j not in on_the_way)]
            order = {id(j): i for i, j in enumerate(waiting)}
            super().plan(now)
            self.admitted.sort(key=lambda j: order.get(id(j), len(order)))
        else:
            super().plan(now)

    def _start(self, plan: Plan, now: int) -> None:
        plan.chunks = [(job, new) for job, new in plan.chunks if new]
        plan.decode = bool(self.decoding) and (plan.decode or not plan.chunks)
        if plan.chunks or plan.decode:
            super()._start(plan, now)


@dataclass
class Wires:
    """One move at a time out of each sender and into each receiver."""

    mover: Mover
    free_ns: dict[int, int] = field(default_factory=dict)
    under_way: list[tuple[int, SlowPrefill, SlowDecode, Job]] = field(default_factory=list)
    rows: list[tuple[int, ...]] = field(default_factory=list)

    def move(self, sender: SlowPrefill, receiver: SlowDecode, job: Job, now: int) -> None:
        """Begin when both wires are free."""
        tokens, start = job.request.prompt, now
        for wire in (sender.index, receiver.index):
            start = max(start, self.free_ns.get(wire, 0))
        moved = 0
        for span in self.mover.spans:
            moved += span.token_bytes * (tokens if span.window is None or tokens < span.window else span.window)
        end = start + max(1, round((self.mover.latency_s + moved / self.mover.link_Bps) * 1e9))
        self.free_ns[sender.index] = self.free_ns[receiver.index] = end
        self.under_way.append((end, sender, receiver, job))
        self.rows.append((job.request.id, sender.index, receiver.index, now, start, end, tokens, moved))

    def land(self, now: int, asleep: set[int]) -> None:
        """Moves that are over: memory is free at one end, the sequence ready at the other, and both plan again."""
        for end, sender, receiver, job in self.under_way:
            if end == now:
                asleep -= {sender.index, receiver.index}
                del sender.leaving[job.request.id]
                receiver.landing.remove(job)
                receiver.ready.append(job)
        self.under_way = [one for one in self.under_way if one[0] != now]


def step_pools(case: PoolCase) -> tuple[Told, list[SlowReplica], list[tuple[int, ...]]]:
    """Run a pooled case round by round; with the replicas, and the rows of all moves."""
    one, told, loop = case.prefill, Told(), case.prefill.closed_loop()
    first, last = one.replicas, one.replicas + case.decode.replicas
    later: list[SlowDecode] = []
    senders: list[SlowPrefill] = []
    decode_setup, prefill_setup = case.decode.setup(), one.setup()
    probe = SlowDecode(0, decode_setup, Told())
    senders = [SlowPrefill(i, prefill_setup, told, probe) for i in range(first)]
    later = [SlowDecode(i, decode_setup, told) for i in range(first, last)]
    probe.told = told
    everyone: list[SlowReplica] = [*senders, *later]
    wires, read_by = Wires(case.mover), dict[int, SlowPrefill]()
    known = loop.requests[: loop.concurrency] if loop else one.requests
    coming = [(0 if loop else r.arrival_ns, r.id, r) for r in known]
    asleep: set[int] = set()  # whoever found nothing to run plans again when it is disturbed
    heapq.heapify(coming)
    while times := [
        *(r.end_ns for r in everyone if r.plan_now), *(t for t, _, _ in coming[:1]), *(w[0] for w in wires.under_way)
    ]:  # fmt: skip
        now = min(times)
        for replica in everyone:
            if replica.plan_now and replica.end_ns == now:
                replica.settle(now)
        for sender in senders:
            for job in sender.read:
                read_by[job.request.id] = sender
                receiver = later[one.router.pick(job.request, len(later), ())]
                receiver.take(job, now)
                asleep.discard(receiver.index)
            sender.read.clear()
        wires.land(now, asleep)
        _ask_again(one, everyone, coming, now)
        while coming and coming[0][0] == now:
            request = _at(heapq.heappop(coming)[2], now)
            reader = senders[one.router.pick(request, len(senders), ())]
            reader.arrive(request, now)
            asleep.discard(reader.index)
            _ask_again(one, everyone, coming, now)
        for replica in everyone:
            if replica.plan_now is None and (replica.line or replica.admitted or replica.unseen):
                if replica.index not in asleep:
                    replica.plan(now)
                if replica.plan_now is None:
                    asleep.add(replica.index)
        for job, receiver in sorted(((j, r) for r in later for j in r.asked), key=lambda pair: pair[0].request.id):
            wires.move(read_by.pop(job.request.id), receiver, job, now)
        for receiver in later:
            receiver.asked.clear()
    told.chunks.sort()
    told.emits = {request: sorted(times) for request, times in told.emits.items()}
    return told, everyone, wires.rows


def run_pools(case: PoolCase, stepping: bool = False) -> tuple[Told, PooledCluster, Recorder]:
    """Run the real engine on it."""
    one, other = case.prefill, case.decode
    pools = Pools(one.setup(stepping), other.setup(stepping), one.replicas, other.replicas, case.mover)
    cluster = PooledCluster(pools, one.router, one.closed_loop() or iter(one.requests))
    with round_ends(one.replicas + other.replicas) as ends:
        recorder = cluster.run()
    return told_by(recorder, ends), cluster, recorder


def pooled(case: Case, replicas: tuple[int, int], mover: Mover, **decode: Any) -> PoolCase:
    """A case split over so many prefill and decode replicas; ``decode``: in what those differ."""
    return PoolCase(replace(case, replicas=replicas[0]), replace(case, replicas=replicas[1], **decode), mover)
