"""Prefill and decode pools (xPyD): prompts are read by some replicas, tokens come from others, caches move between.

A request goes to a prefill replica, which reads its prompt, emits the first token and keeps the cache. A decode replica
gets the request at that instant and admits it like any other, memory and seats permitting; only then is the cache
moved (Splitwise, Patel et al. 2024, arXiv 2311.18677, section 4; DistServe, Zhong et al. 2024, arXiv 2401.09670,
section 4.3: pulled when there is room). A *move* takes ``latency + bytes / bandwidth`` and holds the one link out of
its sender and the one into its receiver; moves begin in the order in which they were asked for, those of one instant by
request id, as soon as both links are free. When it is over, the sender's memory is free and the sequence decodes from
the receiver's next round on. A sequence that a decode replica preempts is read again there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import simpy

from sim.request import Request, Sequence
from sim.routers import Router
from sim.serving.clock import LANDED, MOVE, Clock, Moment
from sim.serving.cluster import ClosedLoop, Cluster
from sim.serving.kv import Span
from sim.serving.record import Recorder, Table
from sim.serving.replica import Pooled, Replica, Setup

__all__ = ["Mover", "PooledCluster", "Pools"]


@dataclass(frozen=True)
class Mover:
    """How caches move: ``spans`` of all models that keep one, in bytes of a token on all devices together.

    ``link_Bps`` and ``latency_s``: of the link of a replica, in either direction.
    """

    spans: tuple[Span, ...]
    link_Bps: float
    latency_s: float = 0.0

    def bytes_of(self, tokens: int) -> int:
        """Bytes of the cache of so many tokens; a window keeps at most its own width."""
        kept = [tokens if span.window is None else min(tokens, span.window) for span in self.spans]
        return sum(span.token_bytes * n for span, n in zip(self.spans, kept, strict=True))

    def ns(self, tokens: int) -> int:
        """Whole nanoseconds of a move, at least one."""
        return max(1, round((self.latency_s + self.bytes_of(tokens) / self.link_Bps) * 1e9))


@dataclass(frozen=True)
class Pools:
    """A setup and a number of replicas for each of two pools, and how caches move from the first to the second."""

    prefill: Setup
    decode: Setup
    prefill_replicas: int
    decode_replicas: int
    mover: Mover


class PooledCluster(Cluster):
    """Prefill replicas behind a router, numbered first, then decode replicas behind the same kind of router."""

    def __init__(
        self,
        pools: Pools,
        router: Router,
        arrivals: Iterator[Request] | ClosedLoop,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__(pools.prefill, pools.prefill_replicas, router, arrivals, progress)
        decode = replace(pools.decode, prompt_ends=self.setup.prompt_ends)
        first, count = pools.prefill_replicas, pools.decode_replicas
        self.recorder.leaps_of.extend([0] * count)
        self.moves = self.recorder.moves
        self.decoders = [Replica(self.env, first + i, decode, self.recorder, self._finished) for i in range(count)]
        self.links = _Links(self.env, pools.mover, self.moves)
        self._read_by: dict[int, Replica] = {}
        for one in self.replicas:
            one.pooled = Pooled(beyond=self.decoders[0], hand_over=self._hand_over)
        for one in self.decoders:
            one.pooled = Pooled(fetch=self._fetch)

    def run(self) -> Recorder:
        """Let the clock run until nothing is left to happen."""
        recorder = super().run()
        for replica in self.decoders:
            replica.give_up()
        return recorder

    def _hand_over(self, sender: Replica, sequence: Sequence) -> None:
        """A prompt has been read: the request goes on to a decode replica, its cache stays until that has room."""
        states = [r.state_at(self.env.now) for r in self.decoders] if self.router.needs_state else ()
        index = self.router.pick(sequence.request, len(self.decoders), states)
        self._read_by[sequence.request.id] = sender
        self.decoders[index].receive(sequence)

    def _fetch(self, receiver: Replica, sequence: Sequence) -> None:
        self.links.ask(self._read_by.pop(sequence.request.id), receiver, sequence)


class _Links:
    """One link out of every sender and one into every receiver, each with one move at a time."""

    def __init__(self, env: Clock, mover: Mover, moves: Table) -> None:
        self.env, self.mover, self.moves = env, mover, moves
        self.asked: list[tuple[int, Replica, Replica, Sequence]] = []
        self.free_ns: dict[int, int] = {}

    def ask(self, sender: Replica, receiver: Replica, sequence: Sequence) -> None:
        """Move the cache of a prompt; those asked for in one instant go by request id."""
        if not self.asked:
            Moment(self.env, 0, MOVE, self._begin)
        self.asked.append((sequence.request.id, sender, receiver, sequence))

    def _begin(self, _: simpy.Event) -> None:
        asked, self.asked = sorted(self.asked, key=lambda one: one[0]), []
        for number, sender, receiver, sequence in asked:
            self._move(number, sender, receiver, sequence.request.prompt)

    def _move(self, number: int, sender: Replica, receiver: Replica, tokens: int) -> None:
        now, wires = self.env.now, (sender.index, receiver.index)
        start_ns = max(now, *(self.free_ns.get(wire, 0) for wire in wires))
        end_ns = start_ns + self.mover.ns(tokens)
        self.free_ns |= dict.fromkeys(wires, end_ns)
        self.moves.append((number, *wires, now, start_ns, end_ns, tokens, self.mover.bytes_of(tokens)))

        def over(_: simpy.Event) -> None:
            sender.release(number)
            receiver.landed(number)

        Moment(self.env, end_ns - now, LANDED, over)
