"""Leaping equals the stepper of tests/stepper.py bit for bit, whatever is served, planned, preempted and tied."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, ClassVar

import numpy as np
import pytest
from analytic_models import DENSE, LATENT, MOE, WINDOWED, calibrated, device
from engine_setup import Case, label, longer, policies, run_engine, schedulers, trace
from hypothesis import given, settings
from hypothesis import strategies as st
from stepper import Told, step

from sim.analytic.cost import PassCost
from sim.policies.autoregressive import Autoregressive
from sim.policies.speculative import Speculative
from sim.request import Request
from sim.routers.round_robin import RoundRobin
from sim.schedulers.chunked import Chunked
from sim.schedulers.continuous import Continuous
from sim.schedulers.static import Static
from sim.serving.cluster import Cluster
from sim.serving.horizon import Entry, Horizon
from sim.serving.replica import Replica
from sim.serving.rounds import Rounds

KINDS = (None, 7)  # one layer kind that sees everything, one that sees 7 tokens


def differences(case: Case, stepping: bool = False) -> list[str]:
    """Fields of what engine and stepper tell that are not equal; empty when leaping is exact."""
    slow, replicas = step(case)
    fast, _, recorder = run_engine(case, stepping)
    wrong = [name for name in Told.__dataclass_fields__ if getattr(slow, name) != getattr(fast, name)]
    leaps = recorder.leaps.frame()
    begun = zip(leaps["replica"].tolist(), leaps["start_ns"].tolist(), leaps["kv_bytes"].tolist(), strict=True)
    return wrong + ["kv_bytes" for i, start, kv_bytes in begun if replicas[i].kv_at.get(start) != kv_bytes]


LOADS = {"idle": 2_000_000, "busy": 60_000, "burst": 500}


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("scheduler", schedulers(), ids=label)
@pytest.mark.parametrize("policy", policies(), ids=label)
def test_every_policy_scheduler_and_load(policy: Any, scheduler: Any, load: str) -> None:
    """Free times and two attention kinds, then collisions, groups of samples and memory for about two requests."""
    easy = Case(policy, scheduler, trace(14, LOADS[load], 1), windows=KINDS)
    assert differences(easy) == []
    crowd = longer(trace(14, LOADS[load], 2, 1000, samples=2), 8)
    tight = replace(easy, requests=crowd, quantum_ns=1000, capacity_bytes=1000, watermark=0.05)
    assert differences(tight) == []


@pytest.mark.parametrize("order", ["fcfs", "shortest_prompt", "priority"])
@pytest.mark.parametrize("mode", ["paged", "reserved"])
@pytest.mark.parametrize("policy", [Autoregressive(), Speculative("d", 3, 0.8)], ids=label)
def test_queue_orders_and_reserved_memory(policy: Any, mode: str, order: str) -> None:
    """The order of the line and memory set aside for the longest sequence change who runs, alike in both engines."""
    capacity = 900 if mode == "paged" else 2200
    for scheduler in (Chunked(16, 8, order), Continuous(40, 8, order), Static(3, order)):
        case = Case(policy, scheduler, trace(16, 20_000, 3, 100, 2), (None,), capacity, mode=mode, max_context=60)
        assert differences(replace(case, quantum_ns=500)) == []


@pytest.mark.parametrize(
    "scheduler", [Chunked(24, 8), Continuous(60, 8), Continuous(20, 5, "shortest_prompt")], ids=label
)
def test_pressure_does_preempt(scheduler: Any) -> None:
    """Little memory really preempts, some requests twice, and groups of samples too: else it would prove little."""
    case = replace(PRESSED, scheduler=scheduler)
    _, _, recorder = run_engine(case)
    table = recorder.requests.frame()
    assert table["preemptions"].max() >= 2
    assert ((table["preemptions"] > 0) & (table["samples"] > 1)).sum() > 2
    assert differences(case) == []


@pytest.mark.parametrize("budget", [5, 6, 9, 11])
def test_parked_sequences(budget: int) -> None:
    """Sequences beyond the token budget wait with their prompt read, in order, and join as seats come free."""
    case = Case(Speculative("d", 3, 0.7), Chunked(budget, 8), trace(12, 3_000, 5, samples=2), capacity_bytes=3000)
    assert differences(case) == []


def test_a_half_read_prompt_waits_for_an_end() -> None:
    """Four decodes take the whole budget while a prompt is half read: it goes on at the first end, not at the last."""
    requests = (*(Request(i, 0, 1, 5 + 9 * i, 1 + (i == 2)) for i in range(3)), Request(3, 0, 5, 1))
    case = Case(Autoregressive(), Chunked(4, 8), requests)
    assert differences(case) == []
    told = run_engine(case)[0]
    assert told.requests[0][4] < told.requests[3][4] < told.requests[1][4]


@pytest.mark.parametrize("think_s, exponential", [(0.0, False), (2e-5, False), (5e-5, True)])
@pytest.mark.parametrize("policy", [Autoregressive(), Speculative("d", 2, 0.9)], ids=label)
def test_closed_loop(policy: Any, think_s: float, exponential: bool) -> None:
    """Users who ask again when answered, at once or after thinking, on two replicas."""
    case = Case(policy, Chunked(32, 4), trace(20, 1, 6), quantum_ns=1000, replicas=2, capacity_bytes=2000)
    assert differences(replace(case, concurrency=5, think_s=think_s, exponential=exponential)) == []


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_several_replicas(replicas: int) -> None:
    """Replicas share a clock and a recorder and nothing else."""
    case = Case(Speculative("d", 3, 0.8), Chunked(20, 6), trace(24, 9_000, 7, 1000), replicas=replicas, quantum_ns=1000)
    assert differences(replace(case, host_s=1e-6)) == []


def test_rejected_requests() -> None:
    """Too many samples, too long for the model, too large for memory: rejected on arrival, all others served."""
    requests = (
        Request(0, 0, 10, 5), Request(1, 0, 10, 5, samples=7), Request(2, 5, 60, 5), Request(3, 5, 30, 20),
        Request(4, 9, 10, 1),
    )  # fmt: skip
    case = Case(Autoregressive(), Chunked(16, 6), requests, capacity_bytes=300, max_context=64)
    told, _, _ = run_engine(case)
    assert [told.requests[i][13] for i in range(5)] == [0, 1, 1, 1, 0]
    assert differences(case) == []


@pytest.mark.parametrize("shape", [DENSE, WINDOWED, MOE, LATENT], ids=lambda s: s.name)
@pytest.mark.parametrize("policy", [Autoregressive(), Speculative("d", 3, 0.8)], ids=label)
def test_with_the_real_cost(policy: Any, shape: Any) -> None:
    """The analytic core's seconds have the same bits for one round and for many, p-norms and experts included."""
    requests = longer(trace(10, 400_000, 15), 60)
    case = Case(policy, Chunked(64, 8), requests, real=real(shape)[: 1 + len(policy.drafts)], host_s=1e-5)
    assert differences(case) == []
    tight = replace(case, requests=longer(trace(14, 30_000, 16, samples=2), 8), capacity_bytes=1500)
    assert differences(tight) == []


@cache
def real(shape: Any) -> tuple[PassCost, PassCost]:
    """Costs of a small target and a small draft on an H100 with the terms that measured kernels need."""
    return tuple(PassCost(s, calibrated(device("h100-sxm"))) for s in (shape, DENSE))  # type: ignore[return-value]


@dataclass(frozen=True)
class Emptiest:
    """A router that goes where least KV memory is taken, and notes what it saw."""

    seen: list[Any] = field(default_factory=list)
    needs_state: ClassVar[bool] = True

    def pick(self, request: Request, replicas: int, states: Any) -> int:
        self.seen.append((request.id, tuple(states)))
        return min(range(replicas), key=lambda i: (states[i].kv_bytes, states[i].running, i))


@pytest.mark.parametrize("quantum_ns", [0, 1000])
@pytest.mark.parametrize("scheduler", [Chunked(24, 8), Continuous(60, 8), Static(3)], ids=label)
def test_routers_see_what_the_stepper_sees(scheduler: Any, quantum_ns: int) -> None:
    """At every arrival, amid a leap and at the very end of a round, replicas report the stepper's state."""
    requests = longer(trace(24, 12_000, 14, max(1, quantum_ns), samples=2), 10)
    case = Case(Speculative("d", 3, 0.8), scheduler, requests, KINDS, 1500, quantum_ns=quantum_ns, replicas=2)
    slow, fast = replace(case, router=Emptiest()), replace(case, router=Emptiest())
    step(slow)
    run_engine(fast)
    assert fast.router.seen == slow.router.seen


@pytest.mark.parametrize("stepping", [False, True])
def test_a_run_cut_short(stepping: bool) -> None:
    """Stopped at an arrival: whoever had finished by then is recorded as in the whole run, all others as partial."""
    case = Case(Autoregressive(), Chunked(64, 8), longer(trace(12, 100_000, 17), 20), replicas=2)
    whole = run_engine(case)[0].requests
    for stop in range(2, 12):
        cluster = Cluster(case.setup(stepping), 2, case.router, iter(case.requests))
        cluster.progress = lambda n, stop=stop, cluster=cluster: cluster.stop() if n == stop else None
        rows = {row[0]: tuple(row) for row in cluster.run().requests.array().tolist()}
        now = case.requests[stop - 1].arrival_ns
        assert {i for i, row in rows.items() if row[13] == 0} == {i for i, row in whole.items() if row[4] <= now}
        assert all(row == whole[i] if row[13] == 0 else row[13] == 3 for i, row in rows.items()) and len(rows) == stop


def test_arrivals_on_every_round_end() -> None:
    """An arrival exactly at the end of a round is in time for the next plan; one nanosecond later it is not."""
    first = Request(0, 0, 10, 12)
    alone, _ = step(Case(Autoregressive(), Chunked(16, 2), (first,)))
    for end in alone.round_ends[0]:
        starts = []
        for late in (-1, 0, 1):
            case = Case(Autoregressive(), Chunked(16, 2), (first, Request(1, end + late, 6, 3)))
            assert differences(case) == []
            starts.append(run_engine(case)[0].requests[1][2])
        assert starts[0] == starts[1] == end and starts[2] > end


def test_one_timeout_per_round() -> None:
    """Stepping mode tells the same as leaping, and takes an event for every round; leaping takes far fewer."""
    case = Case(Speculative("d", 3, 0.8), Chunked(64, 8), trace(10, 300_000, 8), windows=KINDS)
    case = replace(case, requests=longer(case.requests, 60))
    told, fast, leaps = run_engine(case)
    same, slow, steps = run_engine(case, stepping=True)
    assert same == told and differences(case, stepping=True) == []
    rounds, arrivals = len(told.round_ends[0]), len(case.requests)
    assert len(steps.leaps) == rounds and slow.events >= rounds + arrivals
    assert len(leaps.leaps) < 0.4 * rounds and fast.events < 0.5 * slow.events


# --- hypothesis -----------------------------------------------------------------------------------

REQUESTS = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 1, 999, 1000, 3000, 10_000, 50_000]),
        st.integers(1, 40), st.integers(1, 16), st.integers(1, 3), st.integers(0, 2),
    ),
    min_size=1, max_size=9,
)  # fmt: skip


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A case with whatever may meet: little memory, small budgets, windows, groups, ties, loops."""
    rows, now, requests = draw(REQUESTS), 0, []
    for i, (gap, prompt, output, samples, priority) in enumerate(rows):
        now += gap
        requests.append(Request(i, now, prompt, output, samples, priority))
    order = draw(st.sampled_from(["fcfs", "shortest_prompt", "priority"]))
    seats, budget = draw(st.integers(1, 7)), draw(st.integers(5, 40))
    schedulers_ = [Chunked(budget, seats, order), Continuous(budget, seats, order), Static(seats, order)]
    policy = draw(st.sampled_from(policies()))
    shape = draw(st.sampled_from([None, None, MOE, WINDOWED]))
    return Case(
        policy, draw(st.sampled_from(schedulers_)), tuple(requests),
        windows=draw(st.sampled_from([(None,), KINDS, (5,), (3, None, 11)])),
        capacity_bytes=draw(st.one_of(st.integers(300, 3000), st.just(1 << 40))),
        block_tokens=draw(st.sampled_from([1, 4, 16])),
        watermark=draw(st.sampled_from([0.0, 0.1, 0.5])),
        quantum_ns=draw(st.sampled_from([0, 1000])),
        seed=draw(st.integers(0, 3)),
        replicas=draw(st.sampled_from([1, 1, 2])),
        concurrency=draw(st.sampled_from([0, 0, 1, 3])),
        host_s=draw(st.sampled_from([0.0, 1e-6])),
        router=draw(st.sampled_from([RoundRobin(), Emptiest()])),
        real=real(shape)[: 1 + len(policy.drafts)] if shape else (),
    )  # fmt: skip


@settings(max_examples=150)
@given(cases())
def test_leaping_is_exact(case: Case) -> None:
    """Whatever comes together, leaping tells what the stepper tells."""
    assert differences(case) == []


@pytest.mark.slow
@settings(max_examples=3000)
@given(cases())
def test_leaping_is_exact_at_length(case: Case) -> None:
    """The same with many more examples, and with the engine stepping too."""
    assert differences(case) == []
    assert differences(case, stepping=True) == []


# --- planted faults -------------------------------------------------------------------------------

PRESSED = Case(
    Speculative("d", 3, 0.8), Chunked(24, 8), longer(trace(24, 8_000, 11, 1000, samples=2), 8), windows=KINDS,
    capacity_bytes=900, quantum_ns=1000,
)  # fmt: skip
CALM = Case(Autoregressive(), Chunked(24, 8), longer(trace(8, 20_000, 12, 1000), 30), quantum_ns=1000)
SMOOTH = Case(Speculative("d", 3, 0.8), Chunked(24, 8), longer(trace(8, 50_000, 13), 30))


def tied() -> Case:
    """A request that runs alone, and one that arrives exactly at the end of its twentieth round."""
    alone = Case(Autoregressive(), Chunked(24, 8), (Request(0, 0, 10, 40),))
    twentieth = step(alone)[0].round_ends[0][19]
    return replace(alone, requests=(*alone.requests, Request(1, twentieth, 3, 1)))


def _add_late(self: Horizon, entry: Entry) -> None:
    """Off by one in the ring: the rows land one round too late."""
    entry.rows = tuple(np.concatenate(([0], row)) for row in entry.rows)
    HORIZON_ADD(self, entry)


def _without_look_ahead(self: Replica, sequence: Any) -> Entry:
    """Blocks for the tokens cached, none for those the round adds."""
    rows, self.tokens_per_round = self.tokens_per_round, 0
    try:
        return REPLICA_ENTRY(self, sequence)
    finally:
        self.tokens_per_round = rows


def _preempt_first(self: Replica) -> bool:
    """The oldest goes instead of the latest."""
    went = False
    while self.horizon.next_bytes() + self.held_bytes > self.setup.kv.capacity_bytes and len(self.admitted) > 1:
        self._preempt(self.admitted[next(iter(self.admitted))])
        went = True
    return went


def _other_side(self: Replica, leap: Any, rounds: int) -> None:
    """An arrival exactly at the end of a round waits for the end of the next one."""
    STOP_AFTER(self, leap, rounds + (leap.ends_after(rounds) == self.env.now))


def _shift_future(self: Replica, sequence: Any) -> Entry:
    """The token of a second prefill uses up a draw, as if the future had been shifted and not clipped anew."""
    again = sequence.preemptions > 0
    for member in sequence.members:
        member.round += again
    entry = REPLICA_ENTRY(self, sequence)
    for member in sequence.members:
        member.round -= again
    return entry


def _mean_round(self: Rounds, seats: int, totals: Any, *rest: Any) -> Any:
    """Cost the mean round and multiply."""
    if totals is None or totals.shape[1] == 1:
        return ROUNDS_NS(self, seats, totals, *rest)
    one = ROUNDS_NS(self, seats, np.rint(totals.mean(axis=1, keepdims=True)).astype(np.int64), *rest)
    return np.repeat(one, totals.shape[1])


def _never_shrink(self: Horizon, entry: Entry) -> None:
    """A preempted sequence's rest stays on the horizon."""
    self.close(entry)


def _ignore(self: Replica, leap: Any, rounds: int) -> None:
    """Arrivals never interrupt."""


def _bookless(self: Replica, leap: Any) -> None:
    """Whoever asks amid a leap sees its beginning."""


def _all_fit(self: Horizon, rounds: int, budget_bytes: int) -> int:
    """Memory is looked at only when a plan is made."""
    return rounds


def _admit_when_crowded(self: Replica) -> bool:
    """Admission goes on right after a preemption."""
    REPLICA_ROOM(self)
    return False


def _plan_at_once(self: Replica) -> None:
    """A plan does not wait for the other arrivals of its nanosecond."""
    self._on_plan(None)


def _redraw(self: Replica, sequence: Any) -> Entry:
    """After a preemption the draws start over."""
    rounds = [member.round for member in sequence.members]
    for member in sequence.members:
        member.round = 0
    entry = REPLICA_ENTRY(self, sequence)
    for member, before in zip(sequence.members, rounds, strict=True):
        member.round = before
    return entry


BURST = Case(Autoregressive(), Chunked(24, 8), tuple(Request(i, 0, 5, 4) for i in range(4)))
ROUTED = replace(CALM, requests=longer(trace(24, 12_000, 14, samples=2), 10), replicas=2, router=Emptiest())
CASES = (PRESSED, CALM, SMOOTH, BURST, ROUTED, tied())
HORIZON_ADD, ROUNDS_NS = Horizon.add, Rounds.ns
REPLICA_ENTRY, REPLICA_ROOM, STOP_AFTER = Replica._entry, Replica._make_room, Replica._stop_after
FAULTS: list[tuple[type, str, Callable[..., Any]]] = [
    (Horizon, "add", _add_late),
    (Horizon, "remove", _never_shrink),
    (Horizon, "rounds_that_fit", _all_fit),
    (Replica, "_entry", _without_look_ahead),
    (Replica, "_entry", _shift_future),
    (Replica, "_entry", _redraw),
    (Replica, "_ask_plan", _plan_at_once),
    (Replica, "_make_room", _preempt_first),
    (Replica, "_make_room", _admit_when_crowded),
    (Replica, "_stop_after", _other_side),
    (Replica, "_stop_after", _ignore),
    (Replica, "_book_ends", _bookless),
    (Rounds, "ns", _mean_round),
]


@pytest.mark.parametrize("owner, name, fault", FAULTS, ids=[f.__name__ for _, _, f in FAULTS])
def test_planted_faults_are_caught(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, fault: Any) -> None:
    """The comparison sees each of these mistakes; without one it sees nothing."""
    assert all(differences(case) == [] for case in CASES)
    monkeypatch.setattr(owner, name, fault)
    assert any(noticed(case) for case in CASES)


def noticed(case: Case) -> bool:
    """Whether the engine tells something else than the stepper, or trips over one of its own invariants."""
    try:
        return differences(case) != []
    except Exception:
        return True
