"""Leaping equals the stepper of tests/stepper.py bit for bit, whatever is served, planned, preempted and tied."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, ClassVar

import numpy as np
import pytest
from analytic_models import DENSE, LATENT, MOE, WINDOWED, calibrated, device
from engine_setup import FLOORED_CLOCK, TINY_CLOCK, Case, label, longer, policies, run_engine, schedulers, trace
from hypothesis import given, settings
from hypothesis import strategies as st
from stepper import Told, step

from sim.analytic.cost import PassCost
from sim.policies.autoregressive import Autoregressive
from sim.policies.load_adaptive import LoadAdaptive
from sim.policies.speculative import Speculative
from sim.request import Request
from sim.routers.round_robin import RoundRobin
from sim.schedulers.chunked import Chunked
from sim.schedulers.continuous import Continuous
from sim.schedulers.static import Static
from sim.serving.cluster import Cluster
from sim.serving.governor import Governor, Power
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


def test_tiers_do_switch() -> None:
    """A policy that follows the load really changes its tier, up and down, in leaps and while prompts are read."""
    for hysteresis, off in ((0, "fed"), (1, "idle")):
        case = replace(TIERED, policy=replace(TIERED.policy, hysteresis=hysteresis, off=off))
        with switches() as seen:
            assert differences(case) == []
        ups = sum(new > old for old, new in seen)
        assert ups >= 8 and len(seen) - ups >= 8 and {new for _, new in seen} == {0, 1, 2}


@contextmanager
def switches() -> Iterator[list[tuple[int, int]]]:
    """Tiers before and after each change of the leaping engine inside the block."""
    seen: list[tuple[int, int]] = []

    def note(self: Replica) -> int:
        before = self.tier
        cost = CHOOSE_TIER(self)
        if self.tier != before:
            seen.append((before, self.tier))
        return cost

    Replica._choose_tier = note  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        Replica._choose_tier = CHOOSE_TIER  # type: ignore[method-assign]


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
def real(shape: Any) -> tuple[PassCost, ...]:
    """Costs of a small target and of small drafts on an H100 with the terms that measured kernels need."""
    where = replace(calibrated(device("h100-sxm")), clock=TINY_CLOCK)
    return tuple(PassCost(s, where) for s in (shape, DENSE, DENSE, DENSE))


@dataclass(frozen=True)
class Emptiest:
    """A router that goes where least KV memory is taken, and notes what it saw."""

    seen: list[Any] = field(default_factory=list)
    pulls: ClassVar[bool] = False

    def pick(self, request: Request, view: Any) -> int:
        states = [view.state(i) for i in range(view.count)]
        self.seen.append((request.id, tuple(states)))
        return min(range(view.count), key=lambda i: (states[i].kv_bytes, states[i].running, i))


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


# --- the clock of the device, and an engine's habits ------------------------------------------------


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("policy", [Autoregressive(), Speculative("d", 3, 0.8)], ids=label)
def test_a_governed_clock(policy: Any, load: str) -> None:
    """The clock falls and rises in whole steps, set by the nanojoules of the window before, alike in both engines."""
    case = Case(policy, Chunked(24, 8), longer(trace(24, LOADS[load], 21, samples=2), 20), clock=TINY_CLOCK)
    told, _, recorder = run_engine(case)
    clocks = told.clocks[0]
    assert len(set(clocks)) > 2 and {(100 - MHz) % 5 for MHz in clocks} == {0} and min(clocks) >= 40
    assert differences(case) == [] and differences(case, stepping=True) == []
    if load == "idle":
        assert recorder.leaps.frame()["rounds"].max() > 3, "a window holds several rounds, and a leap runs through them"


@pytest.mark.parametrize("load", LOADS)
def test_a_clock_with_a_voltage_floor(load: str) -> None:
    """Below the floor power falls with the clock alone, so the clock falls further; alike in both engines."""
    requests = longer(trace(24, LOADS[load], 21, samples=2), 20)
    case = Case(Autoregressive(), Chunked(24, 8), requests, clock=FLOORED_CLOCK)
    free = run_engine(replace(case, clock=TINY_CLOCK))[0].clocks[0]
    assert min(run_engine(case)[0].clocks[0]) <= min(free) and differences(case) == []


@pytest.mark.parametrize("ahead", [0, 1, 2])
@pytest.mark.parametrize("load", LOADS)
def test_prompts_that_wait_for_company(ahead: int, load: str) -> None:
    """Arrivals of up to six rounds are read together, in leaps as in single rounds."""
    requests = longer(trace(24, LOADS[load], 23, samples=2), 20)
    alone = Case(Autoregressive(), Chunked(64, 16), requests, plan_ahead=ahead)
    case = replace(alone, scheduler=Chunked(64, 16, batch_wait=6))
    assert differences(case) == [] and differences(case, stepping=True) == []
    rounds = [len({start for _, start, *_ in run_engine(one)[0].chunks}) for one in (alone, case)]
    assert load == "idle" or rounds[1] < rounds[0]


def test_a_governed_clock_with_the_real_cost() -> None:
    """Costs at another clock are as elementwise as those at the rated one, on several replicas and in stages."""
    case = Case(Speculative("d", 3, 0.8), Chunked(64, 8), longer(trace(16, 30_000, 22), 40), host_s=1e-5)
    case = replace(case, real=real(DENSE)[:2], clock=replace(TINY_CLOCK, window_ns=150_000, cap_W=50.0), replicas=2)
    assert differences(case) == []
    dealt = replace(case, real=(), dealt=(2, 2), host_s=1e-6)
    assert differences(dealt) == []
    slowest = [min(told.clocks[0]) for told in (run_engine(case)[0], run_engine(dealt)[0])]
    assert max(slowest) < 100


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("scheduler", schedulers(), ids=label)
@pytest.mark.parametrize("ahead, delay_ns", [(1, 0), (2, 0), (0, 1500), (1, 1500)])
def test_plans_made_ahead_and_time_before_the_first_token(
    ahead: int, delay_ns: int, scheduler: Any, load: str
) -> None:
    """Arrivals wait for rounds already planned, requests for what the engine does once for each; ties on purpose."""
    requests = longer(trace(20, LOADS[load], 23, 500, samples=2), 10)
    case = Case(Speculative("d", 2, 0.7), scheduler, requests, quantum_ns=500, plan_ahead=ahead, request_ns=delay_ns)
    assert differences(case) == []
    pressed = replace(case, capacity_bytes=1000, replicas=2, router=Emptiest(), clock=TINY_CLOCK)
    slow, fast = replace(pressed, router=Emptiest()), replace(pressed, router=Emptiest())
    assert differences(pressed) == []
    step(slow)
    run_engine(fast)
    assert fast.router.seen == slow.router.seen
    assert differences(replace(case, concurrency=4, think_s=1e-6)) == []


def test_an_arrival_waits_for_the_round_planned_already() -> None:
    """One alone decodes; another comes amid its round k and is read in round k + 2 where plans are made ahead."""
    first = Request(0, 0, 4, 12)
    alone = Case(Autoregressive(), Chunked(64, 4), (first,))
    ends = step(alone)[0].round_ends[0]
    amid = (ends[3] + ends[4]) // 2  # in the fifth round
    for ahead, begins in ((0, ends[4]), (1, ends[5]), (2, ends[6])):
        case = replace(alone, requests=(first, Request(1, amid, 4, 3)), plan_ahead=ahead)
        assert run_engine(case)[0].requests[1][2] == begins
        assert differences(case) == []


def test_time_before_the_first_token_delays_and_holds_nothing_up() -> None:
    """Every request enters so much later, and rounds go on meanwhile: the whole run is shifted."""
    case = Case(Autoregressive(), Chunked(24, 4), longer(trace(12, 9_000, 27), 10))
    told, later = (run_engine(replace(case, request_ns=n))[0] for n in (0, 123_456))
    assert later.round_ends == [[end + 123_456 for end in told.round_ends[0]]]
    assert [row[1] for row in later.requests.values()] == [row[1] for row in told.requests.values()]


def test_an_idle_engine_has_planned_nothing_ahead() -> None:
    """Whoever finds the replica empty is read at once; so is whoever comes while the last one's last round runs."""
    first = Request(0, 0, 4, 2)
    end = step(Case(Autoregressive(), Chunked(64, 4), (first,)))[0].round_ends[0][-1]
    case = Case(Autoregressive(), Chunked(64, 4), (first, Request(1, end - 1, 4, 2), Request(2, 10**9, 4, 2)))
    told, _, _ = run_engine(replace(case, plan_ahead=1))
    assert [told.requests[i][2] for i in range(3)] == [0, end, 10**9]


@pytest.mark.parametrize("shape", [None, DENSE], ids=["bumpy", "real"])
def test_host_time_beside_the_device(shape: Any) -> None:
    """Where the host works beside the device the longer of the two counts; never longer than their sum."""
    case = Case(Speculative("d", 3, 0.8), Chunked(24, 8), longer(trace(20, 20_000, 24), 10), host_s=1e-5)
    case = replace(case, real=real(shape)[:2] if shape else ())
    beside = replace(case, overlap="max")
    assert differences(beside) == []
    both, longest = (run_engine(c)[0].round_ends[0] for c in (case, beside))
    assert longest[0] - beside.requests[0].arrival_ns < both[0] - case.requests[0].arrival_ns


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
    policy = draw(st.sampled_from(policies()))
    seats, budget = draw(st.integers(1, 7)), max(draw(st.integers(5, 40)), policy.tokens_per_round)
    schedulers_ = [Chunked(budget, seats, order), Continuous(budget, seats, order), Static(seats, order)]
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
        clock=draw(st.sampled_from([None, None, TINY_CLOCK, FLOORED_CLOCK])),
        request_ns=draw(st.sampled_from([0, 0, 1000])),
        plan_ahead=draw(st.sampled_from([0, 0, 1, 2])),
        overlap=draw(st.sampled_from(["sum", "max"])),
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


def _tierless(self: Replica) -> int:
    """The load is never looked at."""
    return 0


def _too_sticky(self: LoadAdaptive, tier: int) -> int:
    """Hysteresis off by one: a tier is left a sequence too late."""
    return LEAST_SEATS(self, tier) - 1 if tier else 0


def _redraw_begun(self: Replica, entry: Entry) -> Entry:
    """Rounds that have begun are drawn again in the new tier, with the output they have gained."""
    new, done = REDRAWN(self, entry), self.horizon.round - entry.start
    for member, future in new.futures:
        draws = self.setup.luck.of(entry.sequence.request.id, member.sample)
        begun = self.tiers.tier_future(self.tier, draws, member.round, 1 << 10)
        future.kept[:done], future.drafted[:done] = begun.kept[:done], begun.drafted[:done]
    return new


def _redraw_from_now(self: Replica, entry: Entry) -> Entry:
    """The rest is drawn with the luck of the first rounds."""
    rounds = [member.round for member, _ in entry.futures]
    done = self.horizon.round - entry.start
    for member, _ in entry.futures:
        member.round -= done
    new = REDRAWN(self, entry)
    for (member, _), before in zip(entry.futures, rounds, strict=True):
        member.round = before
    return new


def _leap_past_tiers(self: Horizon, seats: int, first: int, rounds: int) -> int:
    """A leap runs on through an end that crosses a tier."""
    return rounds


def _join_any_tier(self: Replica, joining: Any) -> int:
    """A leap runs on through the end of a prefill although those who join take the batch into another tier."""
    return self.tier


def _free_switch(self: Replica) -> int:
    """A change of tier costs nothing."""
    CHOOSE_TIER(self)
    return 0


def _never_tick(self: Governor, now_ns: int) -> None:
    """The clock stays where it is."""


def _cold_rounds(self: Governor, joules: Any, ns: Any) -> None:
    """Only the first round of a leap is paid for."""
    SPEND(self, np.broadcast_to(joules, ns.shape)[:1], ns[:1])


def _late_tick(self: Governor, now_ns: int) -> None:
    """The window is a quarter longer than the hardware's."""
    if now_ns >= self.due_ns + self.power.clock.window_ns // 4:
        TICK(self, now_ns)


def _nearest_step(self: Power, MHz: int, spent_nJ: int, elapsed_ns: int) -> int:
    """Rounded to the nearest step, not down."""
    upper = NEXT_MHZ(self, MHz, round(spent_nJ / (1 + self.clock.step_MHz / MHz)), elapsed_ns)
    return min(upper, self.clock.top_MHz)


def _rounded_up(self: Power, MHz: int, joules: Any, ns: Any) -> Any:
    """Every round costs the energy of a window's mean round."""
    return np.full(len(ns), int(np.mean(ROUND_NJ(self, MHz, joules, ns)) * 1.01))


def _curtail_nothing(self: Replica, leap: Any) -> None:
    """Leaps run through the end of a window, and through the turn of those who were not planned for."""


def _enter_at_once(self: Replica, sequence: Any) -> None:
    """An arrival is seen by the next plan, as in an engine that plans nothing ahead."""
    under_way = 0 if self.leap is None else self.leap.under_way(self.env.now)
    self.later.append((self.rounds_over + under_way, sequence))
    if self.leap is None:
        self._ask_plan()
    else:
        self._stop_after(self.leap, under_way)


def _enter_late(self: Replica, sequence: Any) -> None:
    """The turn of an arrival comes a round too late."""
    self.ahead += 1
    ENTER_LATER(self, sequence)
    self.ahead -= 1


TICK = Governor.tick
SPEND, NEXT_MHZ, ROUND_NJ, ENTER_LATER = Governor.spend, Power.next_MHz, Power.round_nJ, Replica._enter_later
BURST = Case(Autoregressive(), Chunked(24, 8), tuple(Request(i, 0, 5, 4) for i in range(4)))
ROUTED = replace(CALM, requests=longer(trace(24, 12_000, 14, samples=2), 10), replicas=2, router=Emptiest())
TIERED = Case(
    LoadAdaptive("d", [{"batch": 1, "gamma": 4}, {"batch": 3, "gamma": 2}, {"batch": 5, "gamma": 0}], 1, 0.004),
    Chunked(40, 8), longer(trace(60, 120_000, 18, samples=2), 12),
)  # fmt: skip
HOT = Case(
    Speculative("d", 3, 0.8), Chunked(24, 8), longer(trace(24, 60_000, 25, samples=2), 20), clock=TINY_CLOCK,
)  # fmt: skip
AHEAD = Case(
    Autoregressive(), Chunked(24, 8), longer(trace(24, 30_000, 26), 20), plan_ahead=1, request_ns=1500,
)  # fmt: skip
CASES = (PRESSED, CALM, SMOOTH, BURST, ROUTED, TIERED, HOT, AHEAD, tied())
CHOOSE_TIER, REDRAWN, LEAST_SEATS = Replica._choose_tier, Replica._redrawn, LoadAdaptive.least_seats
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
    (Replica, "_choose_tier", _tierless),
    (Replica, "_choose_tier", _free_switch),
    (Replica, "_redrawn", _redraw_begun),
    (Replica, "_redrawn", _redraw_from_now),
    (Replica, "_tier_after", _join_any_tier),
    (Horizon, "rounds_with", _leap_past_tiers),
    (LoadAdaptive, "least_seats", _too_sticky),
    (Governor, "tick", _never_tick),
    (Governor, "spend", _cold_rounds),
    (Governor, "tick", _late_tick),
    (Power, "next_MHz", _nearest_step),
    (Power, "round_nJ", _rounded_up),
    (Replica, "_curtail", _curtail_nothing),
    (Replica, "_enter_later", _enter_at_once),
    (Replica, "_enter_later", _enter_late),
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
