"""The stepper of pools: prefill and decode replicas that tests/stepper.py steps, and caches that move between them."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field, replace
from fractions import Fraction
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
    """One move at a time out of each sender and into each receiver.

    ``used``: by wire, until when what was asked for keeps it busy at best, and when the last of it is over.
    """

    mover: Mover
    used: dict[int, tuple[int, int]] = field(default_factory=dict)
    under_way: list[tuple[int, SlowPrefill, SlowDecode, Job]] = field(default_factory=list)
    arrived: list[Job] = field(default_factory=list)
    rows: list[tuple[int, ...]] = field(default_factory=list)

    def move(self, sender: SlowPrefill, receiver: SlowDecode, job: Job, now: int) -> None:
        """Begin when both wires are free; layer by layer, from the first one on, while the prompt is read."""
        tokens, start, behind = job.request.prompt, now, now
        layers = self.mover.layers or 1
        if self.mover.layers:
            start = math.ceil(job.admitted_ns + Fraction(now - job.admitted_ns, layers))
        for wire in (sender.index, receiver.index):
            busy, over = self.used.get(wire, (0, 0))
            start, behind = max(start, busy), max(behind, over)
        moved = 0
        for span in self.mover.spans:
            moved += span.token_bytes * (tokens if span.window is None or tokens < span.window else span.window)
        sent = start + max(1, round((self.mover.latency_s + moved / self.mover.link_Bps) * 1e9))
        tail = max(1, round((self.mover.latency_s + moved / layers / self.mover.link_Bps) * 1e9))
        end = max(sent, behind + tail)
        self.used[sender.index] = self.used[receiver.index] = (sent, end)
        self.under_way.append((end, sender, receiver, job))
        self.rows.append((job.request.id, sender.index, receiver.index, now, start, end, tokens, moved))

    def land(self, now: int, asleep: set[int]) -> None:
        """Moves that are over: memory is free at one end, the sequence ready at the other, and both plan again."""
        for end, sender, receiver, job in self.under_way:
            if end == now:
                asleep -= {sender.index, receiver.index}
                del sender.leaving[job.request.id]
                if job in receiver.landing:
                    receiver.landing.remove(job)
                    receiver.ready.append(job)
                else:
                    self.arrived.append(job)
        self.under_way = [one for one in self.under_way if one[0] != now]

    def claim(self, receiver: SlowDecode, now: int) -> None:
        """Whoever was let in after its cache had come is ready when the plan has been made; nobody runs: plan anew."""
        while there := [job for job in receiver.asked if job in self.arrived]:
            for job in there:
                self.arrived.remove(job)
                receiver.asked.remove(job)
                receiver.landing.remove(job)
                receiver.ready.append(job)
            if receiver.plan_now is None:
                receiver.plan(now)


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
    streamed = case.mover.layers is not None
    known = loop.requests[: loop.concurrency] if loop else one.requests
    coming = [(0 if loop else r.arrival_ns, r.id, r) for r in known]
    asleep: set[int] = set()  # whoever found nothing to run plans again when it is disturbed
    heapq.heapify(coming)
    while times := [
        *(r.end_ns for r in everyone if r.plan_now), *(t for t, _, _ in coming[:1]), *(w[0] for w in wires.under_way)
    ]:  # fmt: skip
        now, wanted = min(times), list[tuple[Job, SlowDecode]]()
        for replica in everyone:
            if replica.plan_now and replica.end_ns == now:
                replica.settle(now)
        for sender in senders:
            for job in sender.read:
                read_by[job.request.id] = sender
                receiver = later[job.request.id % len(later)]
                receiver.take(job, now)
                asleep.discard(receiver.index)
                if streamed:
                    wanted.append((job, receiver))
            sender.read.clear()
        wires.land(now, asleep)
        _ask_again(one, everyone, coming, now)
        while coming and coming[0][0] == now:
            request = _at(heapq.heappop(coming)[2], now)
            reader = senders[request.id % len(senders)]
            reader.arrive(request, now)
            asleep.discard(reader.index)
            _ask_again(one, everyone, coming, now)
        for replica in everyone:
            if replica.plan_now is None and (replica.line or replica.admitted or replica.unseen):
                if replica.index not in asleep:
                    replica.plan(now)
                if streamed and isinstance(replica, SlowDecode):
                    wires.claim(replica, now)
                if replica.plan_now is None:
                    asleep.add(replica.index)
        if not streamed:
            wanted = [(job, receiver) for receiver in later for job in receiver.asked]
        for job, receiver in sorted(wanted, key=lambda pair: pair[0].request.id):
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
