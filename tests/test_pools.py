"""Prefill and decode pools: one request by hand, links that are waited for, nothing lost, and leaping bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from engine_setup import Case, FlatCost, label, longer, policies, run_engine, trace
from hypothesis import given, settings
from hypothesis import strategies as st
from pool_stepper import PoolCase, pooled, run_pools, step_pools
from stepper import Told

from sim.policies.autoregressive import Autoregressive
from sim.policies.encoded import Encoded
from sim.policies.speculative import Speculative
from sim.request import Request, Sequence
from sim.schedulers.chunked import Chunked
from sim.schedulers.continuous import Continuous
from sim.schedulers.static import Static
from sim.serving.clock import LANDED, Moment
from sim.serving.kv import Span
from sim.serving.pools import Mover, _Links
from sim.serving.replica import Replica

PLAIN = Autoregressive()
SLOW = Mover((Span(6),), 2e7, 5e-6)  # 300 ns a token and 5 us
WIDE = Mover((Span(6), Span(6, 7)), 1e15)  # a nanosecond
LAYERS = replace(SLOW, layers=4)


def differences(case: PoolCase, stepping: bool = False) -> list[str]:
    """Fields of what engine and stepper tell that are not equal."""
    slow, replicas, moves = step_pools(case)
    fast, _, recorder = run_pools(case, stepping)
    wrong = [name for name in Told.__dataclass_fields__ if getattr(slow, name) != getattr(fast, name)]
    leaps = recorder.leaps.frame()
    begun = zip(leaps["replica"].tolist(), leaps["start_ns"].tolist(), leaps["kv_bytes"].tolist(), strict=True)
    wrong += ["kv_bytes" for i, start, kv_bytes in begun if replicas[i].kv_at.get(start) != kv_bytes]
    return wrong + (["moves"] if [tuple(row) for row in recorder.moves.array().tolist()] != moves else [])


def test_one_request_by_hand() -> None:
    """20 tokens read in 100 + 60 ns, moved in 5,000 + 6,000 ns, then two rounds of 103 ns each."""
    flat = FlatCost(100.0, 3.0)
    case = Case(PLAIN, Chunked(64, 8), (Request(0, 7, 20, 3),), real=(flat,))
    told, _, recorder = run_pools(pooled(case, (1, 1), SLOW))
    row = told.requests[0]
    assert row[2:5] == (7, 7 + 160, 7 + 160 + 11_000 + 206)
    assert row[12] == 1, "it ends at the decode replica"
    assert recorder.moves.array().tolist() == [[0, 0, 1, 167, 167, 11_167, 20, 120]]
    assert told.gaps == {11_103: 1, 103: 1}


def one_move(mover: Mover, rounds: int = 1) -> tuple[int, int, int]:
    """When one prompt of 20 tokens was read, admitted at 7 ns, and its move's start and end; 100 + 3 ns a token."""
    case = Case(PLAIN, Chunked(20 // rounds, 8), (Request(0, 7, 20, 3),), real=(FlatCost(100.0, 3.0),))
    row = run_pools(pooled(case, (1, 1), mover))[2].moves.frame()
    return int(row["asked_ns"][0]), int(row["start_ns"][0]), int(row["end_ns"][0])


def test_layers_leave_while_the_prompt_is_read() -> None:
    """160 ns of reading, four layers of 40 ns each; a layer takes 30, 40 or 100 ns of the link, or waits 5 us."""
    for each_ns, end_ns in ((30, 167 + 30), (40, 167 + 40), (100, 7 + 40 + 400)):
        assert one_move(Mover((Span(6),), 30 / each_ns * 1e9, 0.0, 4)) == (167, 47, end_ns)
    assert one_move(LAYERS) == (167, 47, 47 + 11_000)
    assert one_move(replace(LAYERS, layers=None)) == (167, 167, 167 + 11_000)
    assert one_move(Mover((Span(6),), 1e9, 0.0, 4), rounds=2) == (267, 72, 267 + 30)


@given(st.integers(1, 40), st.integers(1, 300), st.integers(1, 300), st.integers(0, 20_000))
def test_the_last_layer_is_over_when_layers_queue_one_by_one(layers: int, read: int, sent: int, busy: int) -> None:
    """Layer by layer through one link, first come first served, the link busy at first: the same end."""
    over = busy
    for k in range(1, layers + 1):
        over = max(over, k * read) + sent
    mover = Mover((Span(sent * layers),), 1e9, 0.0, layers)
    start = max(mover.first_ns(0, layers * read), busy)
    assert max(start + mover.ns(1), max(layers * read, busy) + mover.last_ns(1)) == over


def test_layers_of_prompts_read_together_share_the_link() -> None:
    """Two caches of 400 ns in layers of 100 ns, read until 220 ns: 55 ns for the first layer, then 800 ns without gaps;
    a wide link is left with the two last layers.
    """
    requests = tuple(Request(i, 0, 20, 4) for i in range(2))
    case = Case(PLAIN, Chunked(64, 8), requests, real=(FlatCost(100.0, 3.0),))
    slow = run_pools(pooled(case, (1, 1), Mover((Span(6),), 0.3e9, 0.0, 4)))[2].moves.frame()
    assert slow["start_ns"].tolist() == [55, 455] and slow["end_ns"].tolist() == [455, 855]
    wide = run_pools(pooled(case, (1, 1), Mover((Span(6),), 3e9, 0.0, 4)))[2].moves.frame()
    assert wide["end_ns"].tolist() == [230, 240]


def test_layers_wait_for_no_room_and_are_decoded_as_soon_as_there_is_some() -> None:
    """The last of three fits when another has ended; its cache left at once, and it decodes from the next round on."""
    requests = tuple(Request(i, 0, 20, 6) for i in range(3))
    case = Case(PLAIN, Chunked(64, 8), requests, real=(FlatCost(100.0, 3.0),))
    found = pooled(case, (1, 1), replace(WIDE, layers=4), capacity_bytes=6 * 60)
    told, _, recorder = run_pools(found)
    assert recorder.moves.frame()["asked_ns"].tolist() == [280] * 3
    assert told.requests[2][4] > told.requests[0][4]
    assert differences(found) == [] and conserved(found)


def test_a_link_carries_one_cache_at_a_time() -> None:
    """Two prompts read in one round leave one after the other; from two senders to two receivers, side by side."""
    requests = tuple(Request(i, 0, 20, 4) for i in range(2))
    case = Case(PLAIN, Chunked(64, 8), requests, real=(FlatCost(100.0, 3.0),))
    together = run_pools(pooled(case, (1, 1), SLOW))[2].moves.frame()
    assert (together["end_ns"] - together["start_ns"]).tolist() == [11_000, 11_000]
    assert together["start_ns"].tolist() == [220, 11_220] and together["asked_ns"].tolist() == [220, 220]
    apart = run_pools(pooled(case, (2, 2), SLOW))[2].moves.frame()
    assert apart["start_ns"].tolist() == [160, 160]
    into_one = run_pools(pooled(case, (2, 1), SLOW))[2].moves.frame()
    assert into_one["start_ns"].tolist() == [160, 11_160]


def test_a_full_decode_replica_keeps_caches_waiting_where_they_are() -> None:
    """The second of two fits only when the first has ended; until then the prefill replica holds its memory."""
    requests = tuple(Request(i, 0, 20, 6) for i in range(3))
    case = Case(PLAIN, Chunked(64, 8), requests, real=(FlatCost(100.0, 3.0),), capacity_bytes=6 * 56)
    found = pooled(case, (1, 1), WIDE, capacity_bytes=6 * 28)
    told, _, recorder = run_pools(found)
    moves = recorder.moves.frame()
    assert moves["asked_ns"].tolist() == [told.requests[i][4] if i >= 0 else 220 for i in (-1, 0, 1)]
    assert told.requests[2][2] >= moves["end_ns"][0], "the third prompt found no memory before a cache had left"
    assert differences(found) == []


def test_a_request_of_one_token_ends_where_it_was_read() -> None:
    case = Case(PLAIN, Chunked(64, 8), (Request(0, 0, 20, 1), Request(1, 0, 20, 2)))
    told, _, recorder = run_pools(pooled(case, (1, 1), SLOW))
    assert [told.requests[i][12] for i in (0, 1)] == [0, 1] and len(recorder.moves) == 1


def test_requests_that_either_pool_can_never_hold_are_rejected() -> None:
    """A prompt too long for the readers, an answer too long for the writers; all others are served."""
    requests = (Request(0, 0, 30, 2), Request(1, 0, 4, 40), Request(2, 0, 4, 4))
    case = Case(PLAIN, Chunked(64, 8), requests, capacity_bytes=6 * 28)
    found = pooled(case, (1, 1), SLOW, capacity_bytes=6 * 36)
    told = run_pools(found)[0]
    assert [told.requests[i][13] for i in range(3)] == [1, 1, 0]
    assert differences(found) == []


def test_a_windowed_cache_moves_its_window() -> None:
    assert WIDE.bytes_of(5) == 60 and WIDE.bytes_of(100) == 600 + 42
    assert SLOW.ns(20) == 11_000 and WIDE.ns(0) == 1


LOADS = {"idle": 2_000_000, "busy": 60_000, "burst": 500}


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("policy", [p for p in policies() if not isinstance(p, Encoded)], ids=label)
def test_leaping_is_exact_for_every_policy(policy: Any, load: str) -> None:
    """Free times, then ties, groups of samples and little memory in the decode pool."""
    easy = Case(policy, Chunked(12, 6), trace(14, LOADS[load], 1), (None, 7))
    for mover in (SLOW, LAYERS):
        assert differences(pooled(easy, (1, 1), mover)) == []
    crowd = longer(trace(14, LOADS[load], 2, 1000, samples=2), 8)
    tight = replace(easy, requests=crowd, quantum_ns=1000, watermark=0.05)
    assert differences(pooled(tight, (2, 1), WIDE, capacity_bytes=1400)) == []


@pytest.mark.parametrize("scheduler", [Continuous(30, 6), Static(4), Chunked(64, 3)], ids=label)
@pytest.mark.parametrize("mover", [SLOW, WIDE, LAYERS], ids=["slow", "wide", "layers"])
def test_leaping_is_exact_for_every_scheduler(scheduler: Any, mover: Mover) -> None:
    """Several replicas in both pools, dealt rounds in one of them, memory for a few."""
    case = Case(Speculative("d", 3, 0.8), scheduler, trace(30, 9_000, 7, 1000, samples=2), quantum_ns=1000)
    for replicas in ((1, 1), (2, 3), (3, 1)):
        found = pooled(replace(case, capacity_bytes=900), replicas, mover, dealt=(2, 1), capacity_bytes=1500)
        assert differences(found) == [], replicas


@pytest.mark.parametrize("think_s", [0.0, 2e-5])
def test_closed_loops(think_s: float) -> None:
    case = Case(Speculative("d", 2, 0.9), Chunked(32, 4), trace(20, 1, 6), quantum_ns=1000, concurrency=5)
    case = replace(case, think_s=think_s)
    assert differences(pooled(case, (2, 2), SLOW, capacity_bytes=2000)) == []


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 1 << 20), st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 2)]), st.sampled_from([300, 9_000, 80_000]),
    st.sampled_from([1, 1000]), st.sampled_from([700, 1100, 1 << 30]),
    st.sampled_from([SLOW, WIDE, Mover((Span(6),), 1e9), LAYERS, Mover((Span(6),), 1e8, 0.0, 3)]),
)  # fmt: skip
def test_leaping_is_exact_for_drawn_traffic(
    seed: int, replicas: tuple[int, int], gap_ns: int, quantum_ns: int, capacity: int, mover: Mover
) -> None:
    """Any pools, loads, ties, memory and links."""
    case = Case(Speculative("d", 2, 0.7), Chunked(16, 5), trace(16, gap_ns, seed, quantum_ns, 2), quantum_ns=quantum_ns)
    found = pooled(replace(case, capacity_bytes=max(capacity, 900)), replicas, mover, capacity_bytes=capacity)
    assert differences(found) == []
    assert differences(found, stepping=True) == []
    assert conserved(found)


def conserved(case: PoolCase) -> bool:
    """Every request ends once, and every cache that was wanted elsewhere moved once, whole, without overlap."""
    told, cluster, recorder = run_pools(case)
    moves = recorder.moves.frame()
    served = {i: row for i, row in told.requests.items() if row[13] == 0}
    assert len(told.requests) == len(case.prefill.requests)
    assert sorted(moves["request"].tolist()) == sorted(i for i, row in served.items() if row[6] > 1)
    for number, tokens, moved in zip(*(moves[name].tolist() for name in ("request", "tokens", "bytes")), strict=True):
        assert tokens == served[number][5] and moved == case.mover.bytes_of(tokens)
    sent_ns = moves["start_ns"] + [case.mover.ns(tokens) for tokens in moves["tokens"].tolist()]
    assert (sent_ns <= moves["end_ns"]).all()
    for side in ("sender", "receiver"):
        for index in set(moves[side].tolist()):
            here = moves[side] == index
            spans = sorted(zip(moves["start_ns"][here].tolist(), sent_ns[here].tolist(), strict=True))
            assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    everyone = [*cluster.replicas, *cluster.decoders]
    assert not any(r.held_bytes or r.leaving or r.landing or r.running_seats for r in everyone)
    return True


def test_pools_emit_what_one_pool_emits() -> None:
    """The same draws: tokens, rounds and kept drafts of every request do not depend on where it is served."""
    case = Case(Speculative("d", 3, 0.8), Chunked(64, 8), trace(20, 50_000, 9))
    alone, apart = run_engine(case)[0], run_pools(pooled(case, (2, 2), SLOW))[0]
    for number, row in alone.requests.items():
        assert row[5:11] == apart.requests[number][5:11]


def _landed_late(self: Replica, number: int) -> None:
    """A cache that has come is noticed only when the leap under way is over."""
    self.ready.append(self.landing.pop(number))
    if self.leap is None:
        self._ask_plan()


def _free_links(self: _Links, number: int, sender: Replica, receiver: Replica, sequence: Sequence) -> None:
    """Moves that do not wait for each other."""
    self.free_ns.clear()
    MOVE_IT(self, number, sender, receiver, sequence)


def _kept(self: Replica, number: int) -> None:
    """Memory that is not given back when a cache has gone, until the next one goes."""
    self.leaving[number] = 0
    RELEASE(self, number)


MOVE_IT, RELEASE = _Links._move, Replica.release
FAULTS: dict[str, tuple[type, str, Callable[..., Any]]] = {
    "landed late": (Replica, "landed", _landed_late),
    "links for nothing": (_Links, "_move", _free_links),
    "memory kept": (Replica, "release", _kept),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison that could not fail would prove nothing."""
    where, name, wrong = FAULTS[fault]
    case = Case(PLAIN, Chunked(16, 6), longer(trace(20, 9_000, 3), 12), capacity_bytes=900)
    found = pooled(case, (1, 2), SLOW, capacity_bytes=1500)
    assert differences(found) == []
    monkeypatch.setattr(where, name, wrong)
    try:
        told = differences(found)
    except AssertionError:
        told = ["an invariant"]
    assert told


def _whole_caches(self: Mover, tokens: int) -> int:
    """A last layer as long as all of them."""
    return self.ns(tokens)


def _claimed_late(self: _Links, receiver: Replica, number: int) -> None:
    """A cache that had come before there was room is noticed 9 us after its sequence was admitted."""
    if number in self.arrived:
        self.arrived.remove(number)
        Moment(self.env, 9_000, LANDED, lambda _: receiver.landed(number))


LAYERED: dict[str, tuple[type, str, Callable[..., Any]]] = {
    "whole caches": (Mover, "last_ns", _whole_caches),
    "first layer at once": (Mover, "first_ns", lambda self, admitted_ns, read_ns: admitted_ns),
    "claimed late": (_Links, "claim", _claimed_late),
}


@pytest.mark.parametrize("fault", LAYERED)
def test_planted_faults_of_layers_are_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, name, wrong = LAYERED[fault]
    case = Case(PLAIN, Chunked(16, 6), longer(trace(20, 2_000, 3), 12), capacity_bytes=2500)
    found = [pooled(case, (1, 1), replace(mover, layers=4), capacity_bytes=700) for mover in (SLOW, WIDE)]
    assert [differences(one) for one in found] == [[], []]
    monkeypatch.setattr(where, name, wrong)
    try:
        told = [differences(one) for one in found]
    except AssertionError:
        told = [["an invariant"]]
    assert any(told)
