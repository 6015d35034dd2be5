"""Rounds of pipelines and data ranks: what they last by hand, and leaping through them bit for bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from analytic_models import DENSE, MOE, device
from engine_setup import Case, FlatCost, label, policies, run_engine, trace
from test_leap_exact import differences

from sim.analytic.cost import Layout, PassCost
from sim.analytic.hardware import Engine
from sim.analytic.staged import pass_cost
from sim.analytic.work import Work
from sim.policies import Chunk, Chunks
from sim.policies.autoregressive import Autoregressive
from sim.policies.encoded import Encoded
from sim.policies.speculative import Speculative
from sim.request import Request
from sim.schedulers.chunked import Chunked
from sim.schedulers.continuous import Continuous
from sim.schedulers.static import Static
from sim.serving.dealt import DealtRounds, cut, fullest
from sim.serving.replica import Replica
from sim.serving.rounds import Rounds

PLAIN = Autoregressive()
WINDOWS = ((None,),)
H100 = device("h100-sxm")


def rounds(pipeline: int, data: int, cost: Any = None, piece: int = 1 << 20, host_s: float = 0.0) -> DealtRounds:
    """A dealt round of the plain policy; by default a token costs 3 ns and a pass 10 ns."""
    costs: Any = (cost or FlatCost(10.0, 3.0),)
    engine = Engine("test", step_s=host_s, sequence_s=host_s)
    return DealtRounds(PLAIN, costs, engine, WINDOWS, (2,), pipeline=pipeline, data=data, piece=piece)


@pytest.mark.parametrize(
    ("pipeline", "data", "seats", "ns"),
    [
        (4, 1, 1, 4 * 13), (4, 1, 4, 4 * 13), (4, 1, 5, 4 * 16), (4, 1, 40, 4 * 40),
        (1, 4, 1, 13), (1, 4, 4, 13), (1, 4, 5, 16), (2, 4, 9, 2 * 16), (2, 4, 17, 2 * 19),
    ],
)  # fmt: skip
def test_a_decode_round_takes_the_fullest_share_through_all_stages(
    pipeline: int, data: int, seats: int, ns: int
) -> None:
    """p slots of ceil(seats / (p d)) tokens: one token waits for all stages, a full pipeline never idles."""
    totals = np.array([[seats * 100]])
    assert rounds(pipeline, data).ns(seats, totals, None, seats).tolist() == [ns]
    assert rounds(pipeline, data).ns(seats, totals[:, 0].tolist(), None, seats).tolist() == [ns]


def test_a_full_pipeline_gives_the_throughput_of_as_many_devices() -> None:
    """Llama-like layers in two stages with a batch of 2n: a round lasts as long as n on one device, sends aside."""
    twice = replace(DENSE, layers=DENSE.layers * 2)
    one, two = PassCost(DENSE, H100), pass_cost(twice, H100, layout=Layout(pipeline=2))
    seats = 512
    slot = rounds(2, 1, two).ns(seats, np.array([[seats * 1000]]), None, seats)[0]
    half = float(one.seconds(Work.decode(seats // 2, 1000 + 1))) * 1e9
    send = 256 * 64 * 2 / 450e9 * 1e9
    assert slot == pytest.approx(2 * (half + send), rel=0.02)


def test_host_time_is_that_of_each_slot_and_share() -> None:
    """A micro-batch of a rank has its own step and its own sequences: 3 slots of 100 ns and of 2 of 9 x 100 ns."""
    plain = rounds(3, 2).ns(9, np.array([[900]]), None, 9)[0]
    assert rounds(3, 2, host_s=100e-9).ns(9, np.array([[900]]), None, 9)[0] == plain + 3 * (100 + 2 * 100)


def test_prompts_are_dealt_whole_to_ranks_and_in_pieces_to_micro_batches() -> None:
    """Emptiest first; only the last piece of a prompt emits, and a piece attends to those before it."""
    chunks = [Chunk(0, 50, True), Chunk(10, 30, False), Chunk(0, 25, True)]
    assert fullest(chunks, 2) == [chunks[1], chunks[2]]
    assert fullest(chunks, 1) == chunks and fullest([], 3) == []
    assert cut(chunks[:2], 20) == [
        Chunk(0, 20, False), Chunk(20, 20, False), Chunk(40, 10, True), Chunk(10, 20, False), Chunk(30, 10, False),
    ]  # fmt: skip
    assert rounds(1, 2).ns(0, None, Chunks(chunks), 3)[0] == 10 + 3 * 55
    assert rounds(2, 1, piece=20).ns(0, None, Chunks(chunks[:1]), 1)[0] == 2 * (10 + 3 * 30)


@pytest.mark.parametrize(("pieces", "slots"), [(1, 4), (2, 5), (4, 7), (9, 7)])
def test_an_empty_pipeline_fills_first(pieces: int, slots: int) -> None:
    """GPipe: m micro-batches of p stages take p + m - 1 slots, and more prompts than stages share micro-batches."""
    one = rounds(4, 1)
    prompts = Chunks([Chunk(0, 10, True)] * pieces)
    ns = one.ns(0, None, prompts, pieces)
    slot = int(ns[0]) // 4
    assert int(ns[0]) + one.filling_ns(ns, prompts) == slot * slots
    plain = Rounds(PLAIN, one.costs, one.engine, WINDOWS, (2,))
    assert plain.filling_ns(ns, prompts) == 0


def test_shares_add_up_to_the_round() -> None:
    """Means of all ranks and micro-batches, for accounts; the experts see those of all ranks."""
    whole = next(iter(PLAIN.passes(10, np.array([[1000]]), None, WINDOWS))).work
    part = rounds(2, 4).mean_passes(10, np.array([[1000]]), None)[0].work
    assert part.tokens * 8 == whole.tokens == part.everywhere * 2
    assert part.decode_reads is not None and whole.decode_reads is not None
    assert (part.decode_reads[0] * 8).tolist() == whole.decode_reads[0].tolist()
    fullest_part = rounds(2, 4).passes(10, np.array([[1000]]), None)[0].work
    assert (fullest_part.tokens, fullest_part.everywhere) == (2, 5)
    assert fullest_part.decode_reads is not None and fullest_part.decode_reads[0].tolist() == [200]


DEALT = [(3, 1), (1, 3), (2, 2)]


@pytest.mark.parametrize("dealt", DEALT)
@pytest.mark.parametrize("policy", [p for p in policies() if not isinstance(p, Encoded)], ids=label)
def test_leaping_is_exact_in_every_layout(policy: Any, dealt: tuple[int, int]) -> None:
    """Every policy, busy and idle, with little memory and ties."""
    for gap_ns in (2_000_000, 30_000):
        case = Case(policy, Chunked(16, 6), trace(12, gap_ns, 4, 1000, samples=2), (None, 7), 1400, quantum_ns=1000)
        assert differences(replace(case, dealt=dealt)) == []


@pytest.mark.parametrize("dealt", DEALT)
@pytest.mark.parametrize("scheduler", [Continuous(30, 6), Static(4), Chunked(64, 8)], ids=label)
def test_leaping_is_exact_for_every_scheduler(scheduler: Any, dealt: tuple[int, int]) -> None:
    """On two replicas, with host time."""
    case = Case(Speculative("d", 3, 0.8), scheduler, trace(24, 9_000, 7, 1000), replicas=2, quantum_ns=1000)
    assert differences(replace(case, host_s=1e-6, dealt=dealt)) == []


@pytest.mark.parametrize(
    "layout",
    [
        Layout(pipeline=3), Layout(data=2, expert=2), Layout(tensor=2, pipeline=2, data=2, expert=4),
        Layout(tensor=2, sequence_parallel=True, overlap="full"),
        Layout(tensor=4, node_devices=2, network_GBps=5, collectives="hierarchical"),
        Layout(tensor=2, pipeline=2, sequence_parallel=True, overlap="full"),
    ],
    ids=range(6),
)  # fmt: skip
def test_leaping_is_exact_with_costs_of_a_device(layout: Layout) -> None:
    """A mixture of experts on real stages and ranks."""
    cost = pass_cost(MOE, H100, layout=layout)
    case = Case(PLAIN, Chunked(32, 8), trace(20, 20_000, 3), real=(cost,), dealt=(layout.pipeline, layout.data))
    assert differences(case) == []


def test_an_engine_that_forgets_to_fill_is_caught() -> None:
    """Only the first round after idling is longer, and both engines must say so."""
    requests = tuple(Request(i, 0, 9, 3) for i in range(4))
    case = Case(PLAIN, Chunked(64, 8), requests, dealt=(3, 1))
    assert differences(case) == []
    full = run_engine(case)[0].requests[0][3]
    with NeverIdle():
        assert differences(case) != []
        assert run_engine(case)[0].requests[0][3] < full


class NeverIdle:
    """An engine to which the pipeline is always full."""

    def __enter__(self) -> None:
        self.launch = Replica._launch
        launch = self.launch

        def full(replica: Replica, *rest: Any) -> None:
            replica.ended_ns = replica.env.now
            launch(replica, *rest)

        Replica._launch = full  # type: ignore[method-assign, assignment]

    def __exit__(self, *_: Any) -> None:
        Replica._launch = self.launch  # type: ignore[method-assign]
