"""The stepper with a prefix cache: plain dictionaries and lists, every byte counted again whenever it is asked for.

Of ``sim.serving.prefix`` it reads the options and nothing else (docs/design.md, "The rules of a prefix cache").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from stepper import FINISHED, Job, SlowReplica, Told

from sim.request import Request
from sim.schedulers import Plan
from sim.serving.prefix import Prefix


@dataclass
class Place:
    """One level: tokens by block id, blocks that may go in the order in which they came to that, hits, births."""

    kept: dict[int, int] = field(default_factory=dict)
    idle: list[int] = field(default_factory=list)
    uses: Counter[int] = field(default_factory=Counter)
    births: list[int] = field(default_factory=list)
    free_ns: int = 0
    evicted: int = 0

    def victim(self, rule: str) -> int:
        """Who goes first; takes it out."""
        places = [(self.idle.index(n), self.births.index(n), self.uses[n], n) for n in self.idle]
        ranks = {"lru": lambda p: p[0], "fifo": lambda p: p[1], "lfu": lambda p: (p[2], p[0])}
        number = min(places, key=ranks[rule])[3]
        self.idle.remove(number)
        self.births.remove(number)
        self.evicted += 1
        return number


class PrefixReplica(SlowReplica):
    """A slow replica that keeps blocks of prompts it has read."""

    def __init__(self, index: int, setup: Any, told: Told) -> None:
        super().__init__(index, setup, told)
        self.spec: Prefix = setup.prefix
        self.own = Place()
        self.below = [Place() for _ in self.spec.tiers]
        self.come_ns: dict[int, int] = {}  # when a block that was loaded is there
        self.sharing: dict[int, tuple[Request, int]] = {}  # running requests and how many of their tokens are shared
        self.loading: list[tuple[int, Job]] = []
        self.hits: list[tuple[int, ...]] = []
        self.seen: list[tuple[int, int]] = []
        self.touched = False

    # --- what there is

    def users(self, number: int) -> list[int]:
        """Running requests that share a block, once for each time that they name it."""
        size = self.spec.block_tokens
        return [r.id for r, n in self.sharing.values() for b in (r.blocks or ())[: -(-n // size)] if b == number]

    def pinned(self) -> int:
        used = {b for r, n in self.sharing.values() for b in (r.blocks or ())[: -(-n // self.spec.block_tokens)]}
        return sum(self.own.kept[b] for b in used) * self.spec.token_bytes

    def held(self) -> int:
        """What is not shared of those who do not decode, less what those who do share, and every shared block once."""
        return super().held() - sum(n for _, n in self.sharing.values()) * self.spec.token_bytes + self.pinned()

    def known(self, request: Request, tokens: int) -> int:
        """Of its first tokens, those whose content is told, in whole KV blocks."""
        blocks, size = request.blocks or (), self.spec.block_tokens
        answered = request.samples == 1 and len(blocks) * size >= request.prompt + size
        told = min(len(blocks) * size, request.prompt + (request.output if answered else 0))
        return min(told, tokens) // self.spec.kv_block_tokens * self.spec.kv_block_tokens

    def find(self, request: Request, tokens: int) -> list[tuple[int, int, int]]:
        """(Block, tokens, level) of the unbroken chain from the first block on."""
        found: list[tuple[int, int, int]] = []
        most = self.known(request, tokens - 1)
        for place, number in enumerate(request.blocks or ()):
            left = most - place * self.spec.block_tokens
            levels = [level for level, one in enumerate([self.own, *self.below]) if number in one.kept]
            if not levels or left <= 0:
                break
            held = [self.own, *self.below][levels[0]].kept[number]
            if held > min(left, self.spec.block_tokens):
                break
            found.append((number, held, levels[0]))
            if held < self.spec.block_tokens:
                break
        return found

    # --- admission

    def admissible(self, seats: int) -> Iterator[Job]:
        chosen = 0
        left = self.setup.kv.capacity_bytes - self.held() - self.needed()
        promised: set[int] = set()
        for job in [] if self.crowded else sorted(self.line, key=self._place):
            found = self.find(job.request, job.prefill_tokens)
            left -= self._hold(job) - sum(n for _, n, _ in found) * self.spec.token_bytes
            for number, tokens, _ in found:
                if not self.users(number) and number not in promised:
                    left -= tokens * self.spec.token_bytes
                promised.add(number)
            chosen += job.seats
            keep = self.setup.kv.watermark_bytes if self.admitted or chosen > job.seats else 0
            if self.running_seats + chosen > seats or left < keep:
                return
            waits = self._cost_ns(found) > 0 or any(at for *_, at in found)
            waits = waits or any(self.come_ns.get(number, 0) > self.now for number, *_ in found)
            job.prefilled = job.prefill_tokens if waits else sum(n for _, n, _ in found)
            yield job

    def _cost_ns(self, found: list[tuple[int, int, int]]) -> int:
        return round(sum(n for _, n, _ in found) * self.spec.token_s * 1e9)

    def plan(self, now: int) -> None:
        """Only when something has happened here: while all wait for loads, others' events are none of its business."""
        if self.touched:
            self.touched, self.now = False, now
            super().plan(now)

    def _admit(self, job: Job, now: int) -> None:
        super()._admit(job, now)
        found = self.find(job.request, job.prefill_tokens)
        job.prefilled = sum(n for _, n, _ in found)
        ready_ns = max([now, *(self.come_ns.get(number, 0) for number, *_ in found)])
        for level in sorted({at for *_, at in found}):
            tokens = sum(n for _, n, at in found if at == level)
            start_ns = end_ns = now
            if level:
                start_ns, end_ns = self._load(level - 1, tokens, now)
                self._bring([(number, n) for number, n, at in found if at == level], level - 1, end_ns)
            ready_ns = max(ready_ns, end_ns)
            self.hits.append((self.index, job.request.id, job.preemptions, level, tokens, now, start_ns, end_ns))
        self.own.births += [number for number, _, at in found if at]
        for number, *_ in found:
            self._use(number)
        self.sharing[job.request.id] = (job.request, job.prefilled)
        ready_ns += self._cost_ns(found)
        if ready_ns > now:
            self.prefilling.remove(job)
            self.loading.append((ready_ns, job))

    def _load(self, tier: int, tokens: int, now: int) -> tuple[int, int]:
        said, place = self.spec.tiers[tier], self.below[tier]
        start_ns = max(now, place.free_ns)
        lasts = max(1, round((said.latency_s + tokens * self.spec.token_bytes / said.Bps) * 1e9))
        place.free_ns = start_ns + lasts
        return start_ns, place.free_ns

    def _bring(self, blocks: list[tuple[int, int]], tier: int, end_ns: int) -> None:
        place = self.below[tier]
        for number, tokens in blocks:
            place.uses[number] += 1
            place.idle.remove(number)
            place.idle.append(number)
            self.own.kept[number], self.come_ns[number] = tokens, end_ns

    def _use(self, number: int) -> None:
        self.own.uses[number] += 1
        if number in self.own.idle:
            self.own.idle.remove(number)

    # --- blocks come and go

    def _share(self, request: Request, tokens: int) -> None:
        """What will have been read, up to ``tokens``, is shared from now on."""
        size, n = self.spec.block_tokens, self.sharing[request.id][1]
        while n < self.known(request, tokens):
            place = n // size
            number = (request.blocks or ())[place]
            wanted = min(size, self.known(request, tokens) - place * size)
            if self.own.kept.get(number, 0) > wanted:
                break
            if number not in self.own.kept:
                self.own.births.append(number)
                self.own.uses[number] = 0
            if number in self.own.idle:
                self.own.idle.remove(number)
            self.own.kept[number], n = wanted, place * size + wanted
            self.sharing[request.id] = (request, n)

    def _release(self, request: Request) -> None:
        _, n = self.sharing.pop(request.id)
        used = (request.blocks or ())[: -(-n // self.spec.block_tokens)]
        for number in reversed(used):
            if not self.users(number) and number not in self.own.idle:
                self.own.idle.append(number)

    def _evict(self) -> None:
        while self.own.idle:
            idle_bytes = sum(self.own.kept[number] for number in self.own.idle) * self.spec.token_bytes
            if idle_bytes + self.held() + self.needed() <= self.setup.kv.capacity_bytes:
                return
            number = self.own.victim(self.spec.evict)
            self.come_ns.pop(number, None)
            self._drop(number, self.own.kept.pop(number), self.own.uses.pop(number), 0)

    def _drop(self, number: int, tokens: int, uses: int, tier: int) -> None:
        if tier == len(self.below):
            return
        place, said = self.below[tier], self.spec.tiers[tier]
        if number in place.kept:
            place.idle.remove(number)
        else:
            place.births.append(number)
        place.idle.append(number)
        place.kept[number] = max(tokens, place.kept.get(number, 0))
        place.uses[number] = max(uses, place.uses[number])
        while sum(place.kept.values()) * self.spec.token_bytes > said.capacity_bytes:
            gone = place.victim(self.spec.evict)
            self._drop(gone, place.kept.pop(gone), place.uses.pop(gone), tier + 1)

    # --- where the slow replica asks

    def moments(self) -> list[int]:
        return super().moments() + [at for at, _ in self.loading]

    def settle(self, now: int) -> None:
        super().settle(now)
        self.touched = True

    def enter(self, now: int) -> None:
        self.touched = self.touched or now in self.moments()
        super().enter(now)
        self.prefilling += [job for at, job in self.loading if at == now]
        self.loading = [(at, job) for at, job in self.loading if at != now]

    def arrive(self, request: Request, now: int) -> None:
        self.seen.append((request.id, sum(n for _, n, _ in self.find(request, request.prompt))))
        super().arrive(request, now)

    def _preempt(self, job: Job) -> None:
        waiting = [job for _, job in self.loading]
        job = [one for one in self.admitted if one not in waiting][-1]
        self._release(job.request)
        super()._preempt(job)

    def _start(self, plan: Plan, now: int) -> None:
        waiting = [job for _, job in self.loading]
        plan.chunks = [(job, new) for job, new in plan.chunks if job not in waiting]  # type: ignore[comparison-overlap]
        if waiting:
            plan.decode = plan.decode or not plan.chunks
        for job, new in plan.chunks:
            self._share(job.request, job.prefilled + new)
        self._evict()
        if plan.chunks or (plan.decode and self.decoding_seats):
            super()._start(plan, now)
        else:
            assert waiting, "a replica with work must not fall asleep"

    def _tell(self, job: Job, now: int, status: int) -> None:
        if status == FINISHED:
            if job.request.samples == 1:
                self._share(job.request, job.request.prompt + job.request.output - 1)
            self._release(job.request)
        super()._tell(job, now, status)

    def levels(self) -> list[tuple[int, int, int, int]]:
        """(Replica, level, evicted, bytes idle) as the recorder has them."""
        own = sum(self.own.kept[n] for n in self.own.idle)
        kept = [own, *(sum(place.kept.values()) for place in self.below)]
        places = enumerate([self.own, *self.below])
        return [(self.index, i, place.evicted, kept[i] * self.spec.token_bytes) for i, place in places]
