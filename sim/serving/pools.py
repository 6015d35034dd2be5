"""Prefill and decode pools (xPyD): prompts are read by some replicas, tokens come from others, caches move between.

A request goes to a prefill replica, which reads its prompt, emits the first token and keeps the cache. A decode replica
gets the request at that instant and admits it like any other, memory and seats permitting; only then is the cache
moved (Splitwise, Patel et al. 2024, arXiv 2311.18677, section 4; DistServe, Zhong et al. 2024, arXiv 2401.09670,
section 4.3: pulled when there is room). A *move* takes ``latency + bytes / bandwidth`` and holds the one link out of
its sender and the one into its receiver; moves begin in the order in which they were asked for, those of one instant by
request id, as soon as both links are free. When it is over, the sender's memory is free and the sequence decodes from
the receiver's next round on. A sequence that a decode replica preempts is read again there.

With ``layers`` the cache leaves layer by layer while the prompt is read, into host memory of the decode side, without
waiting for room there (Mooncake, Qin et al. 2024, arXiv 2407.00079, section 3; per-layer transfer of Splitwise, section
4.2). L equal layers that are ready at even intervals of P/L and need M/L of a link each are over at
``max(b + M, P + M/L)``, b being when the first of them finds the links free: only the last one is left when the prompt
has been read, unless the link is the slower of the two. P counts from admission to the first token. The layers take
the link from b for M in all; their last one is behind those of every move asked for before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import simpy

from sim.request import Request, Sequence
from sim.routers import Router
from sim.serving.admission import Admission
from sim.serving.clock import LANDED, MOVE, Clock, Moment
from sim.serving.cluster import ClosedLoop, Cluster, placed
from sim.serving.conversation import Conversations
from sim.serving.kv import Span
from sim.serving.record import Recorder, Table
from sim.serving.replica import Pooled, Replica, Setup
from sim.serving.sight import Polls, Sight

__all__ = ["Mover", "PooledCluster", "Pools"]


@dataclass(frozen=True)
class Mover:
    """How caches move: ``spans`` of all models that keep one, in bytes of a token on all devices together.

    ``link_Bps`` and ``latency_s``: of the link of a replica, in either direction. ``layers``: so many leave one by one
    while the prompt is read; None: all of it when there is room for it.
    """

    spans: tuple[Span, ...]
    link_Bps: float
    latency_s: float = 0.0
    layers: int | None = None

    def bytes_of(self, tokens: int) -> int:
        """Bytes of the cache of so many tokens; a window keeps at most its own width."""
        kept = [tokens if span.window is None else min(tokens, span.window) for span in self.spans]
        return sum(span.token_bytes * n for span, n in zip(self.spans, kept, strict=True))

    def ns(self, tokens: int) -> int:
        """Whole nanoseconds of a move, at least one."""
        return self._ns(self.bytes_of(tokens))

    def last_ns(self, tokens: int) -> int:
        """The same of what cannot have left before the prompt has been read: its last layer, or all of it."""
        return self._ns(self.bytes_of(tokens) / (self.layers or 1))

    def first_ns(self, admitted_ns: int, read_ns: int) -> int:
        """When the first part of a cache may leave, of a prompt that was read between two instants."""
        return read_ns if self.layers is None else admitted_ns + -(-(read_ns - admitted_ns) // self.layers)

    def _ns(self, sent_bytes: float) -> int:
        return max(1, round((self.latency_s + sent_bytes / self.link_Bps) * 1e9))


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
        arrivals: Iterator[Request] | ClosedLoop | Conversations,
        progress: Callable[[int], None] | None = None,
        *,
        stale_ns: int = 0,
        admission: Admission | None = None,
    ) -> None:
        super().__init__(
            pools.prefill, pools.prefill_replicas, router, arrivals, progress, stale_ns=stale_ns, admission=admission
        )
        decode = replace(pools.decode, prompt_ends=self.setup.prompt_ends)
        first, count = pools.prefill_replicas, pools.decode_replicas
        self.recorder.leaps_of.extend([0] * count)
        self.moves = self.recorder.moves
        self.decoders = [Replica(self.env, first + i, decode, self.recorder, self._finished) for i in range(count)]
        self.links = _Links(self.env, pools.mover, self.moves)
        self._read_by: dict[int, Replica] = {}
        self._decode_places = [placed(one, one.index) for one in self.decoders]
        polls = Polls(self.env, stale_ns, lambda: self._decode_places) if stale_ns else None
        self._decode_sight = Sight(self.setup.luck, polls, stage=1)
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
        index = self.router.pick(sequence.request, self._decode_sight.of(sequence, self._decode_places))
        assert index is not None, "no router of pools holds anybody back"
        if self._decode_sight.polls is not None:
            self._decode_sight.polls.touch()
        if self.links.mover.layers is None:
            self._read_by[sequence.request.id] = sender
        else:
            self.links.ask(sender, self.decoders[index], sequence)
        self.decoders[index].receive(sequence)

    def _fetch(self, receiver: Replica, sequence: Sequence) -> None:
        sender = self._read_by.pop(sequence.request.id, None)
        if sender is None:
            self.links.claim(receiver, sequence.request.id)
        else:
            self.links.ask(sender, receiver, sequence)


class _Links:
    """One link out of every sender and one into every receiver, each with one move at a time.

    ``free_ns`` of a link: when it has sent all that it was asked for if it began as early as it could, and when the
    last of it is over. The two differ where layers come slower than the link could send them.
    """

    def __init__(self, env: Clock, mover: Mover, moves: Table) -> None:
        self.env, self.mover, self.moves = env, mover, moves
        self.asked: list[tuple[int, Replica, Replica, Sequence]] = []
        self.free_ns: dict[int, tuple[int, int]] = {}
        self.arrived: set[int] = set()  # before the receiver had room

    def ask(self, sender: Replica, receiver: Replica, sequence: Sequence) -> None:
        """Move the cache of a prompt; those asked for in one instant go by request id."""
        if not self.asked:
            Moment(self.env, 0, MOVE, self._begin)
        self.asked.append((sequence.request.id, sender, receiver, sequence))

    def claim(self, receiver: Replica, number: int) -> None:
        """The receiver has room for a cache that was sent without asking; it may have come already."""
        if number in self.arrived:
            self.arrived.remove(number)
            Moment(self.env, 0, LANDED, lambda _: receiver.landed(number))

    def _begin(self, _: simpy.Event) -> None:
        asked, self.asked = sorted(self.asked, key=lambda one: one[0]), []
        for number, sender, receiver, sequence in asked:
            self._move(number, sender, receiver, sequence)

    def _move(self, number: int, sender: Replica, receiver: Replica, sequence: Sequence) -> None:
        now, wires, tokens = self.env.now, (sender.index, receiver.index), sequence.request.prompt
        free_ns = [self.free_ns.get(wire, (0, 0)) for wire in wires]
        start_ns = max(self.mover.first_ns(sequence.admitted_ns, now), *(sent for sent, _ in free_ns))
        sent_ns = start_ns + self.mover.ns(tokens)
        end_ns = max(sent_ns, max(now, *(over for _, over in free_ns)) + self.mover.last_ns(tokens))
        self.free_ns |= dict.fromkeys(wires, (sent_ns, end_ns))
        self.moves.append((number, *wires, now, start_ns, end_ns, tokens, self.mover.bytes_of(tokens)))

        def over(_: simpy.Event) -> None:
            sender.release(number)
            if number in receiver.landing:
                receiver.landed(number)
            else:
                self.arrived.add(number)

        Moment(self.env, end_ns - now, LANDED, over)
