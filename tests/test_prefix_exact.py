"""Leaping with a prefix cache equals the stepper of tests/prefix_stepper.py bit for bit; planted faults are seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from engine_setup import Case, label, run_engine, schedulers
from hypothesis import given, settings
from hypothesis import strategies as st
from prefix_stepper import PrefixReplica
from stepper import Told, step

from sim.policies.autoregressive import Autoregressive
from sim.policies.speculative import Speculative
from sim.request import Request
from sim.schedulers.chunked import Chunked
from sim.schedulers.continuous import Continuous
from sim.schedulers.static import Static
from sim.serving.prefix import Offers, Prefix, PrefixStore, Tier
from sim.serving.replica import Replica

HOST, SSD = Tier("host", 600, 2e6, 1e-6), Tier("ssd", 900, 5e5)
POLICIES = (Autoregressive(), Speculative("d", 3, 0.8))


@dataclass(frozen=True)
class Cached(Case):
    """A case whose replicas have a prefix cache."""

    prefix: Prefix = field(default_factory=lambda: Prefix(8, 4, 6))

    def setup(self, stepping: bool = False) -> Any:
        """The engine's setup with the cache, whose tokens have the bytes of the pools."""
        setup = super().setup(stepping)
        spec = replace(self.prefix, kv_block_tokens=self.block_tokens, token_bytes=setup.kv.token_bytes)
        return replace(setup, prefix=spec)


def chains(n: int, mean_gap_ns: int, seed: int, size: int = 8, quantum_ns: int = 1) -> tuple[Request, ...]:
    """A small random trace in which prompts share their first blocks with others of their group; some tell nothing."""
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(mean_gap_ns, n)).astype(int) // quantum_ns * quantum_ns
    requests = []
    for i, at in enumerate(times.tolist()):
        prompt, output, samples = (int(v) for v in rng.integers(1, [60, 20, 3]))
        group, depth, more = (int(v) for v in rng.integers(0, [3, 8, 4]))
        count = -(-prompt // size) + (more == 1) * 2
        blocks = tuple(100 * group + j if j < depth else 1000 * (i + 1) + j for j in range(count))
        requests.append(Request(i, at, prompt, output, samples, blocks=None if more == 2 else blocks))
    return tuple(requests)


def differences(case: Case, stepping: bool = False) -> list[str]:
    """Fields of what engine and stepper tell that are not equal; empty when leaping is exact."""
    seen: list[tuple[int, int]] = []
    arrive = Replica.arrive

    def note(self: Replica, sequence: Any) -> None:
        seen.append((sequence.request.id, self.cached_prefix(sequence.request)))
        arrive(self, sequence)

    slow, replicas = step(case, PrefixReplica)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Replica, "arrive", note)
        fast, _, recorder = run_engine(case, stepping)
    wrong = [name for name in Told.__dataclass_fields__ if getattr(slow, name) != getattr(fast, name)]
    leaps = recorder.leaps.frame()
    begun = zip(leaps["replica"].tolist(), leaps["start_ns"].tolist(), leaps["kv_bytes"].tolist(), strict=True)
    wrong += ["kv_bytes" for i, start, kv_bytes in begun if replicas[i].kv_at.get(start) != kv_bytes]
    tables = {
        "hits": (recorder.hits, [row for r in replicas for row in r.hits]),
        "levels": (recorder.levels, [row for r in replicas for row in r.levels()]),
    }
    wrong += [name for name, (table, rows) in tables.items() if sorted(rows) != sorted(told(table))]
    return wrong + ["seen"] * (sorted(seen) != sorted(one for r in replicas for one in r.seen))


def told(table: Any) -> list[tuple[int, ...]]:
    """The rows of a table of the recorder."""
    return [tuple(row) for row in table.array().tolist()]


@pytest.mark.parametrize("scheduler", schedulers(), ids=label)
@pytest.mark.parametrize("tiers", [(), (HOST,), (HOST, SSD)], ids=len)
def test_every_scheduler_and_depth(scheduler: Any, tiers: Any) -> None:
    """Room for all, then for about two requests; with arrivals that collide and rounds that are whole microseconds."""
    for policy in POLICIES:
        case = Cached(policy, scheduler, chains(20, 20_000, 1), prefix=Prefix(8, 4, 6, tiers=tiers))
        assert differences(case) == []
        tight = replace(case, requests=chains(20, 5_000, 2, quantum_ns=1000), capacity_bytes=1100, quantum_ns=1000)
        assert differences(tight) == [] and differences(tight, stepping=True) == []


@pytest.mark.parametrize("evict", ["lru", "fifo", "lfu"])
def test_every_rule_of_eviction(evict: str) -> None:
    """Who goes first is the rule's, in memory and in the tiers; blocks do go from all of them."""
    case = replace(PRESSED, prefix=replace(PRESSED.prefix, evict=evict))
    assert differences(case) == []
    levels = run_engine(case)[2].levels.frame()
    assert (levels["evicted_blocks"] > 0).all()


def test_pressure_does_preempt_and_hit_again() -> None:
    """Little memory preempts sequences that share blocks, and some of them find their own blocks again."""
    recorder = run_engine(PRESSED)[2]
    hits = recorder.hits.frame()
    assert recorder.requests.frame()["preemptions"].max() >= 1
    assert ((hits["preemptions"] > 0) & (hits["tokens"] > 0)).any() and len(set(hits["level"].tolist())) == 3


def test_blocks_of_two_tiers_come_in_the_order_of_the_chain() -> None:
    """First in, first out goes by the chain, not by the tier that a block was loaded from (a drawn case, once red)."""
    slow = (Tier("host", 120, 1e5), Tier("ssd", 18, 1e5))
    case = Cached(
        Autoregressive(), Chunked(5, 4), chains(10, 500, 0, 1, 500), block_tokens=1, capacity_bytes=600,
        prefix=Prefix(1, 1, 6, "fifo", slow),
    )  # fmt: skip
    both = run_engine(case)[2].hits.frame()
    assert {1, 2} <= set(both["level"][both["request"] == 5].tolist())
    assert differences(case) == []


@st.composite
def cases(draw: st.DrawFn) -> Cached:
    """Whatever may meet: little memory, small tiers, slow links, groups, ties, closed loops, plans made ahead."""
    block, times = draw(st.sampled_from([1, 4])), draw(st.sampled_from([1, 2, 3]))
    gap_ns, seed = draw(st.sampled_from([500, 5_000, 50_000])), draw(st.integers(0, 99))
    rows = chains(draw(st.integers(1, 12)), gap_ns, seed, block * times, 500)
    seats, policy = draw(st.integers(1, 7)), draw(st.sampled_from(POLICIES))
    budget = draw(st.integers(5, 40))
    kinds = [Chunked(budget, seats), Chunked(budget, seats, whole=True), Continuous(budget, seats), Static(seats)]
    scheduler = draw(st.sampled_from(kinds))
    links = st.sampled_from([1e5, 1e7]), st.sampled_from([0.0, 1e-6])
    tier = st.builds(Tier, st.just("t"), st.integers(1, 1500), *links)
    spec = Prefix(
        block * times, block, 6, draw(st.sampled_from(["lru", "fifo", "lfu"])), tuple(draw(st.lists(tier, max_size=2))),
        draw(st.sampled_from([0.0, 1e-8, 1e-6])),
    )  # fmt: skip
    return Cached(
        policy, scheduler, rows, block_tokens=block, prefix=spec,
        capacity_bytes=draw(st.one_of(st.integers(600, 3000), st.just(1 << 40))),
        watermark=draw(st.sampled_from([0.0, 0.1])), quantum_ns=draw(st.sampled_from([0, 1000])),
        replicas=draw(st.sampled_from([1, 1, 2])), concurrency=draw(st.sampled_from([0, 0, 3])),
        plan_ahead=draw(st.sampled_from([0, 0, 1])), request_ns=draw(st.sampled_from([0, 1000])),
    )  # fmt: skip


@settings(max_examples=60)
@given(cases())
def test_leaping_with_a_cache_is_exact(case: Cached) -> None:
    """Whatever comes together, leaping tells what the stepper tells."""
    assert differences(case) == []


@pytest.mark.slow
@settings(max_examples=500)
@given(cases())
def test_leaping_with_a_cache_is_exact_at_length(case: Cached) -> None:
    """The same with many more examples, and with the engine stepping too."""
    assert differences(case) == []
    assert differences(case, stepping=True) == []


# --- planted faults ------------------------------------------------------------------------------------------------

PRESSED = Cached(
    Speculative("d", 3, 0.8), Chunked(24, 8), chains(60, 6_000, 4, quantum_ns=1000), capacity_bytes=1000,
    quantum_ns=1000, prefix=Prefix(8, 4, 6, tiers=(HOST, SSD)),
)  # fmt: skip
ROOMY = Cached(Autoregressive(), Chunked(24, 8), chains(40, 20_000, 5), prefix=Prefix(8, 4, 6, token_s=1e-7))
FIND, RELEASE, SHRINK, ADD = PrefixStore.find, PrefixStore.release, PrefixStore.shrink, PrefixStore.add
TAKE, OFFER = PrefixStore.take, Offers.tokens_bytes


def _one_block_more(self: PrefixStore, request: Request, tokens: int) -> Any:
    """The last token of a prompt may be found too."""
    return FIND(self, request, tokens + self.spec.kv_block_tokens)


def _never_unpin(self: PrefixStore, number: int) -> None:
    """Who leaves keeps its blocks."""
    self.runs.pop(number, None)


def _head_first(self: PrefixStore, number: int) -> None:
    """The beginning of a chain goes before its end."""
    run = self.runs.get(number)
    if run is not None and not run.tokens % self.spec.block_tokens:
        count = run.tokens // self.spec.block_tokens
        run.blocks = run.blocks[:count][::-1]
    RELEASE(self, number)


def _evict_pinned(self: PrefixStore, spare_bytes: int) -> None:
    """A block that somebody runs with goes when memory is short."""
    for entry in self.entries.values():
        if entry.runs == 1 and self.idle_bytes > spare_bytes:
            entry.runs = 0
    SHRINK(self, spare_bytes)


def _never_evict(self: PrefixStore, spare_bytes: int) -> None:
    """Idle blocks stay whatever runs."""


def _late_eviction(self: Replica, decodes_bytes: int) -> None:
    """Memory is looked at when a plan is made, not amid a leap."""
    if self.leap is None:
        EVICT(self, decodes_bytes)


def _free_loads(self: PrefixStore, request: Request, tokens: int, now_ns: int) -> Any:
    """What lies in a tier is there at once."""
    hit = TAKE(self, request, tokens, now_ns)
    hit.ready_ns = now_ns
    return hit


def _count_twice(self: Offers, request: Request, tokens: int) -> tuple[int, bool, int]:
    """Blocks that a newcomer shares with another newcomer are paid for by both."""
    self.taken.clear()
    return OFFER(self, request, tokens)


def _remember_late(self: PrefixStore, request: Request, tokens: int) -> int:
    """Blocks enter the cache a token too late."""
    return ADD(self, request, tokens - 1)


EVICT = Replica._evict
FAULTS: list[tuple[type, str, Callable[..., Any]]] = [
    (PrefixStore, "find", _one_block_more),
    (PrefixStore, "release", _never_unpin),
    (PrefixStore, "release", _head_first),
    (PrefixStore, "shrink", _evict_pinned),
    (PrefixStore, "shrink", _never_evict),
    (PrefixStore, "take", _free_loads),
    (PrefixStore, "add", _remember_late),
    (Offers, "tokens_bytes", _count_twice),
    (Replica, "_evict", _late_eviction),
]


def test_there_is_nothing_to_see_without_a_fault() -> None:
    """The cases in which faults are planted are exact themselves."""
    assert differences(PRESSED) == [] and differences(ROOMY) == []


@pytest.mark.parametrize("owner, name, fault", FAULTS, ids=[f.__name__ for _, _, f in FAULTS])
def test_planted_faults_are_seen(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, fault: Any) -> None:
    """The comparison sees each of these mistakes, or the engine trips over one of its own invariants."""
    monkeypatch.setattr(owner, name, fault)
    assert noticed(PRESSED) or noticed(ROOMY)


def noticed(case: Case) -> bool:
    """Whether the engine tells something else than the stepper."""
    try:
        return differences(case) != []
    except Exception:
        return True
