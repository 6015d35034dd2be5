"""What the engine's tests share: a bumpy cost, a case that both engines run, and one form for what they tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from stepper import Told

from sim.analytic.hardware import Clock, Engine
from sim.analytic.work import Work
from sim.plugin import build, discover
from sim.policies import Windows
from sim.policies.encoded import Encoded
from sim.request import Request
from sim.routers import GroupFacts
from sim.routers.round_robin import RoundRobin
from sim.serving.admission import REASONS
from sim.serving.cluster import ClosedLoop, Cluster
from sim.serving.dealt import DealtRounds
from sim.serving.encoded_kv import EncodedKv
from sim.serving.fleet import Fleet, FleetCluster, Group
from sim.serving.governor import Power
from sim.serving.kv import KvBudget, Span
from sim.serving.luck import Luck
from sim.serving.record import LEAP_COLUMNS, Recorder
from sim.serving.replica import Leap, Replica, Setup
from sim.serving.rounds import Rounds

# Every policy of sim/policies with options that reach its corners; a new policy adds its line here.
POLICIES: dict[str, list[dict[str, Any]]] = {
    "adaptive": [
        {"draft": "d", "gamma": 4},
        {"draft": "d", "gamma": 3, "last": "dropped", "acceptance": {"kind": "rule", "go": 0.7, "on": 0.9, "off": 0.3}},
        {"draft": "d", "gamma": 4, "rule": "router", "acceptance": {"kind": "beta", "mean": 0.7, "concentration": 2.0}},
        {"draft": "d", "gamma": 3, "threshold": 0.6, "rule": "router",
         "acceptance": {"kind": "empirical", "betas": [1.0, 0.2, 0.9, 0.0, 0.7, 1.0, 0.6]}},
    ],
    "autoregressive": [{}],
    "bigram": [{"order": 1}, {"gamma": 2, "acceptance": {"kind": "decaying", "first": 0.9, "decay": 0.5}}],
    "bild": [
        {"draft": "d", "gamma": 3},
        {"draft": "d", "gamma": 4, "confidence": {"kind": "length", "tokens": 2.5}, "acceptance": 0.6},
        {"draft": "d", "gamma": 1, "confidence": 0.3, "acceptance": 1.0},
    ],
    "blockwise": [{"block": 3}, {"block": 4, "propose": "once", "acceptance": {"kind": "decaying", "mean": 0.6}}],
    "input_copy": [
        {"gamma": 4, "input": "endless", "acceptance": 0.8},
        {"gamma": 4, "realign": 0.2},
        {"gamma": 3, "realign": 1.0, "input": 9, "acceptance": 0.9, "lookup_us": 2.0},
    ],
    "load_adaptive": [
        {"draft": "d", "tiers": [{"batch": 1, "gamma": 4}, {"batch": 3, "gamma": 2}, {"batch": 5, "gamma": 0}]},
        {"draft": "d", "tiers": [{"batch": 1, "gamma": 3}, {"batch": 4, "gamma": 0}], "hysteresis": 2, "off": "idle"},
        {"draft": "d", "tiers": [{"batch": 1, "gamma": 0}, {"batch": 2, "gamma": 1}, {"batch": 6, "gamma": 4}],
         "switch_ms": 0.003, "acceptance": {"kind": "beta", "mean": 0.7, "concentration": 2.0}},
    ],
    "ngram": [
        {"gamma": 4},
        {"gamma": 3, "match": 0.6, "acceptance": 0.7},
        {"gamma": 4, "match": {"start": 0.1, "end": 0.8, "tokens": 15}},
        {"gamma": 2, "match": 1.0, "acceptance": {"kind": "survival", "vector": [1.0, 0.0]}},
        {"gamma": 2, "match": 0.3, "acceptance": 0.7, "lookup_us": 3.0},
    ],
    "plan": [{"draft": "d", "tokens": 5}, {"draft": "d", "tokens": 1}],
    "retrieval": [
        {"candidates": 4, "depth": 2, "match": 0.6, "acceptance": 0.7, "lookup_us": 0.0},
        {"candidates": 4, "depth": 4, "lookup_us": 1.5},
    ],
    "speculative": [
        {"draft": "d", "gamma": 1, "acceptance": 0.5},
        {"draft": "d", "gamma": 3, "acceptance": 0.8},
        {"draft": "d", "gamma": 4, "acceptance": {"kind": "beta", "mean": 0.7, "concentration": 2.0}},
        {"draft": "d", "gamma": 2, "acceptance": {"kind": "survival", "vector": [1.0, 0.0]}},
        {"draft": {"model": "self", "variants": ["matformer"], "kv": "shared"}, "gamma": 3, "acceptance": 0.9},
        {"draft": "d", "gamma": 3, "acceptance": {"kind": "context", "points": {10: 0.95, 60: 0.3}}},
        {"draft": "d", "gamma": 3, "acceptance": {"kind": "empirical", "betas": [1.0, 0.2, 0.9, 0.0, 0.7, 1.0, 0.6]}},
    ],
    "tandem": [
        {"draft": "d", "gamma": 3, "acceptance": 0.8},
        {"draft": "d", "gamma": 2, "mode": "standalone"},
        {"draft": "d", "gamma": 3, "mode": "standalone", "free_token": False},
        {"draft": "d", "gamma": 0},
        {"draft": "d", "gamma": 4, "adaptive": {"last": "dropped"},
         "acceptance": {"kind": "rule", "go": 0.7, "on": 0.9, "off": 0.3}},
    ],
    "text_editing": [{"overhead_ms": 0.002}, {"steps_share": 0.6, "pointer": False}, {"steps_share": 1.0}],
    "tree": [
        {"tree": [[0], [1], [0, 0]], "ranks": [0.6, 0.2], "drafter": {"kind": "model", "draft": "d"}},
        {"tree": {"nodes": 6, "depth": 3}, "ranks": [[0.5, 0.3, 0.1], [0.6, 0.2]], "host_us": 2.0},
        {"tree": {"nodes": 7, "depth": 4, "by": "sequoia"}, "ranks": [0.6, 0.1, 0.05], "verification": "sequoia",
         "drafter": {"kind": "model", "draft": "d"}},
        {"tree": {"nodes": 5, "depth": 3}, "ranks": "eagle-vicuna", "drafter": "eagle",
         "acceptance": {"kind": "context", "points": {10: 0.95, 60: 0.3}}},
        {"tree": {"nodes": 6, "depth": 3, "by": "dynamic", "width": 2}, "drafter": "eagle3",
         "ranks": {"states": [{"share": 0.5, "ranks": [0.9, 0.1]}, {"share": 0.5, "ranks": [0.3, 0.2]}]}},
        {"tree": {"nodes": 2, "depth": 2, "width": 1}, "ranks": [0.85], "drafter": "mtp"},
        {"tree": [[0], [1], [0, 0], [0, 1]], "ranks": [0.6, 0.2], "drafter": "hydra", "verification": "typical"},
        {"tree": [[0], [1], [0, 0], [1, 0]], "ranks": [0.6, 0.2], "drafter": "layers"},
    ],
}
SCHEDULERS: dict[str, list[dict[str, Any]]] = {
    "chunked": [
        {"token_budget": 12, "max_sequences": 6}, {"token_budget": 64, "max_sequences": 3},
        {"token_budget": 24, "max_sequences": 6, "whole": True},
        {"token_budget": 24, "max_sequences": 6, "batch_wait": 3},
    ],
    "continuous": [{"token_budget": 30, "max_sequences": 6}],
    "static": [{"max_sequences": 4}],
}
ROUTERS: dict[str, list[dict[str, Any]]] = {
    "round_robin": [{}],
    "random": [{}],
    "weighted": [{}],
    "central_queue": [{"slots": 1}, {}],
    "least_outstanding": [{}, {"by_weight": True}],
    "least_kv": [{}],
    "power_of_two": [{}, {"choices": 3}],
    "session_sticky": [{}, {"otherwise": "random"}],
    "prefix_affinity": [{}],
    "cost_aware": [{"limit": 0.5}, {"limit": 2}],
    "by_size": [{"groups": ["a", "b"], "steps": [9]}, {"groups": ["b"], "steps": [], "among": "power_of_two"}],
}


def examples(package: str, table: dict[str, list[dict[str, Any]]]) -> list[Any]:
    """Every plug-in of a package with each of its example options; fails on one that has none."""
    missing = set(discover(package)) - set(table)
    assert not missing, f"tests/engine_setup.py has no example options for {sorted(missing)} of {package}"
    return [build(package, "x", {"name": n, **options}) for n in discover(package) for options in table[n]]


def policies() -> list[Any]:
    """One of each policy and option set."""
    return examples("sim.policies", POLICIES)


def schedulers() -> list[Any]:
    """One of each scheduler and option set."""
    return examples("sim.schedulers", SCHEDULERS)


def label(thing: Any) -> str:
    """A short name for a test's id."""
    options = [str(v) for v in vars(thing).values() if isinstance(v, int | float | str)]
    return "-".join([thing.name, *options])


def _moe(experts: int = 8, chosen: int = 2) -> NDArray[np.float64]:
    """Expected experts that n tokens visit, by n: concave, so that a mean round costs more than the rounds do."""
    visited: NDArray[np.float64] = experts * (1.0 - (1.0 - chosen / experts) ** np.arange(1 << 14, dtype=np.float64))
    return visited


EXPERTS = _moe()
TINY_CLOCK = Clock(120, 110, 100, 40, 5, 20_000, 120.0, 50.0)  # a window of a few rounds
FLOORED_CLOCK = replace(TINY_CLOCK, voltage_floor_MHz=85)


@dataclass(frozen=True)
class BumpyCost:
    """A pass that no mean round can stand in for: experts visited, tiles of 8 rows, a 2-norm of memory and arithmetic.

    Every operation is one that IEEE 754 rounds correctly, so that one round and many have the same bits.
    ``quantum_ns`` rounds every pass up to a multiple, so that rounds and arrivals collide.
    """

    token_ns: float = 700.0
    read_ns: float = 13.0
    quantum_ns: int = 0
    share: float = 1.0  # of the rated clock

    def at_clock(self, MHz: int) -> BumpyCost:
        """Arithmetic at another clock; memory is as fast as before."""
        return replace(self, share=TINY_CLOCK.share(MHz))

    def joules(self, work: Work) -> NDArray[np.float64]:
        """200 W while the arithmetic runs at its rated clock, 60 W while memory does."""
        memory, flops = self._halves(work)
        joules: NDArray[np.float64] = (memory * 60.0 + flops * 200.0) * 1e-9
        return joules

    def seconds(self, work: Work) -> NDArray[np.float64]:
        """Seconds, with the shape that the fields of ``work`` broadcast to."""
        memory, flops = self._halves(work)
        flops = flops / self.share
        total = np.sqrt(memory * memory + flops * flops)
        if self.quantum_ns:
            total = np.ceil(total / self.quantum_ns) * self.quantum_ns
        seconds: NDArray[np.float64] = total * 1e-9
        return seconds

    def _halves(self, work: Work) -> tuple[Any, Any]:
        """Nanoseconds of memory, and of arithmetic at the rated clock."""
        tokens = np.asarray(work.tokens)
        halves = ((work.decode_pairs, work.decode_reads), (work.prefill_pairs, work.prefill_reads))
        pairs, reads = np.zeros(1), np.zeros(1)
        for half_pairs, half_reads in halves:
            for kind, (pair, read) in enumerate(zip(half_pairs or (), half_reads or (), strict=True)):
                pairs, reads = pairs + pair * (1.0 + kind), reads + read * (2.0 - kind)
        memory = EXPERTS[tokens] * self.token_ns + reads * self.read_ns
        flops = -(-tokens // 8) * (0.9 * self.token_ns) + pairs * (0.21 * self.read_ns)
        flops = flops + np.asarray(work.logit_rows) * 3.0
        memory = memory + EXPERTS[work.encoder_tokens] * (0.4 * self.token_ns) + work.cross_reads * (1.5 * self.read_ns)
        return memory, flops + (work.encoder_pairs + 2 * work.cross_pairs) * (0.17 * self.read_ns)


@dataclass(frozen=True)
class FlatCost:
    """A pass that lasts ``fixed_ns`` and ``token_ns`` for each token, whatever is cached: queueing by pencil."""

    fixed_ns: float = 0.0
    token_ns: float = 0.0
    shape: ClassVar[Any] = SimpleNamespace(windows=(None,))

    def seconds(self, work: Work) -> NDArray[np.float64]:
        """Seconds of each round."""
        rounds = np.zeros(1) if work.decode_reads is None else np.zeros(np.shape(work.decode_reads[0]))
        return (rounds + self.fixed_ns + np.asarray(work.tokens) * self.token_ns) * 1e-9


@dataclass(frozen=True)
class Case:
    """Everything that decides a run. ``concurrency`` makes it a closed loop over the requests; ``real`` costs, target
    first, take the place of the bumpy ones; ``dealt``: pipeline stages and data ranks; ``clock``: governed."""

    policy: Any
    scheduler: Any
    requests: tuple[Request, ...]
    windows: Windows = (None,)
    capacity_bytes: int = 1 << 40
    block_tokens: int = 4
    mode: Any = "paged"
    watermark: float = 0.0
    quantum_ns: int = 0
    seed: int = 0
    max_context: int = 4096
    replicas: int = 1
    concurrency: int = 0
    think_s: float = 0.0
    exponential: bool = False
    host_s: float = 0.0
    router: Any = field(default_factory=RoundRobin)
    real: tuple[Any, ...] = ()
    dealt: tuple[int, int] = (1, 1)
    clock: Clock | None = None
    request_ns: int = 0
    plan_ahead: int = 0
    overlap: str = "sum"
    stale_ns: int = 0
    admission: Any = None
    others: tuple[Any, ...] = ()
    group: tuple[str, float, float | None] = ("", 1.0, None)

    def facts(self, place: int, seats: int) -> GroupFacts:
        """What routers know of the case as a group of a fleet; ``group``: its name, weight and rent."""
        return GroupFacts(self.group[0], place, *self.group[1:], seats)

    def models(self) -> tuple[Windows, ...]:
        """Attention kinds of the target and of each draft; a draft has the kinds in reverse order."""
        if self.real:
            return tuple(cost.shape.windows for cost in self.real)
        return (self.windows, *(self.windows[::-1] for _ in self.policy.drafts))

    def setup(self, stepping: bool = False) -> Setup:
        """The engine's setup: 6 bytes a token for each kind of target layer, 1 for the draft's."""
        models, look = self.models(), self.policy.tokens_per_round
        spans = [Span(6 if i == 0 else 1, w) for i, windows in enumerate(models) for w in windows]
        reserve = self.max_context + look
        pool: Any = partial(EncodedKv, source_bytes=5) if isinstance(self.policy, Encoded) else KvBudget
        book = pool(
            self.capacity_bytes, tuple(spans), block_tokens=self.block_tokens, mode=self.mode, reserve_tokens=reserve,
            watermark=self.watermark, lookahead=look,
        )  # fmt: skip
        bumpy = tuple(BumpyCost(700.0 / (1 + 3 * i), 13.0 / (1 + i), self.quantum_ns) for i in range(len(models)))
        engine = Engine(
            "test", step_s=self.host_s, sequence_s=self.host_s / 16, request_s=self.request_ns * 1e-9,
            plan_ahead=self.plan_ahead, overlap=self.overlap,
        )  # fmt: skip
        twos = (2,) * len(models)
        encoders = twos if isinstance(self.policy, Encoded) else ()
        rounds = Rounds(self.policy, self.real or bumpy, engine, models, twos, encoders)  # type: ignore[arg-type]
        if self.dealt != (1, 1):
            common = {f.name: getattr(rounds, f.name) for f in fields(rounds)}
            rounds = DealtRounds(**common, pipeline=self.dealt[0], data=self.dealt[1], piece=7)
        power = None if self.clock is None else Power(rounds, self.clock, 10.0, self.dealt[0] * self.dealt[1])
        luck = Luck(self.seed)
        return Setup(
            rounds, self.policy, models, self.scheduler, book, luck, self.max_context, stepping, power=power
        )

    def closed_loop(self) -> ClosedLoop | None:
        """The closed loop, or None for an open trace."""
        if not self.concurrency:
            return None
        return ClosedLoop(list(self.requests), self.concurrency, self.think_s, self.exponential)


CLOCK_COLUMN = LEAP_COLUMNS.index("clock_MHz")
Ends = list[list[tuple[int, NDArray[np.int64]]]]  # by replica: seats and round ends of each leap


@contextmanager
def round_ends(replicas: int) -> Iterator[Ends]:
    """Note the ends of all rounds that replicas book inside the block."""
    ends: Ends = [[] for _ in range(replicas)]
    booked = Replica._record_leap

    def note(self: Replica, leap: Leap, rounds: int) -> None:
        seats = self.decoding_seats if leap.plan.decode else 0
        ends[self.index].append((seats, leap.start_ns + leap.after_ns[leap.done : leap.done + rounds]))
        booked(self, leap, rounds)

    Replica._record_leap = note  # type: ignore[method-assign]
    try:
        yield ends
    finally:
        Replica._record_leap = booked  # type: ignore[method-assign]


def run_engine(case: Case, stepping: bool = False) -> tuple[Told, Cluster, Recorder]:
    """Run the real engine on a case; ``stepping``: with a timeout for every round."""
    arrivals = case.closed_loop() or iter(case.requests)
    options: Any = {"stale_ns": case.stale_ns, "admission": case.admission}
    if case.others:
        groups = [Group(c.group[0], c.setup(stepping), c.replicas, *c.group[1:]) for c in (case, *case.others)]
        cluster: Cluster = FleetCluster(Fleet(tuple(groups)), case.router, arrivals, **options)
    else:
        cluster = Cluster(case.setup(stepping), case.replicas, case.router, arrivals, **options)
    with round_ends(sum(c.replicas for c in (case, *case.others))) as ends:
        recorder = cluster.run()
    return told_by(recorder, ends), cluster, recorder


def told_by(recorder: Recorder, ends: Ends) -> Told:
    """The recorder's tables in the stepper's form."""
    told = Told(round_ends=[[int(t) for _, part in parts for t in part] for parts in ends])
    rows = recorder.requests.array().tolist()
    told.requests = {row[0]: tuple(row) for row in rows}
    assert len(told.requests) == len(rows), "every request ends exactly once"
    gaps, weights = recorder.gaps.weighted()
    told.gaps = Counter(dict(zip(gaps.tolist(), weights.tolist(), strict=True)))
    told.refused = sorted((number, REASONS[reason]) for number, reason in recorder.refused.array().tolist())
    leaps = recorder.leaps.frame()
    starts = [leaps["start_ns"][leaps["replica"] == i] for i in range(len(ends))]
    told.chunks = sorted((r, int(starts[r][n]), *rest) for r, n, *rest in recorder.chunks.array().tolist())
    for replica, request, first, last, _ in recorder.stays.array().tolist():
        for seats, part in ends[replica][first:last]:
            told.emits.setdefault(request, []).extend(part.tolist() if seats else [])
    told.emits = {request: sorted(times) for request, times in told.emits.items() if times}
    table = recorder.leaps.array()
    for i in range(len(ends)):
        mine = table[table[:, 0] == i]
        told.clocks.append(np.repeat(mine[:, CLOCK_COLUMN], mine[:, 3]).tolist())
        told.sums.append([int((mine[:, 3] * mine[:, 4]).sum()), *mine[:, len(LEAP_COLUMNS) :].sum(axis=0).tolist()])
    return told


def trace(n: int, mean_gap_ns: int, seed: int, quantum_ns: int = 1, samples: int = 1) -> tuple[Request, ...]:
    """A small random trace; arrivals on multiples of ``quantum_ns``, several of them at once."""
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(mean_gap_ns, n)).astype(int) // quantum_ns * quantum_ns
    shape = rng.integers(1, [40, 20, samples + 1, 3], size=(n, 4)).tolist()
    rows = zip(times.tolist(), shape, strict=True)
    return tuple(Request(i, t, p, o, s, priority=q) for i, (t, (p, o, s, q)) in enumerate(rows))


def longer(requests: tuple[Request, ...], tokens: int) -> tuple[Request, ...]:
    """The same requests with so many more output tokens."""
    return tuple(
        r._replace(output=r.output + tokens) for r in requests
    )
