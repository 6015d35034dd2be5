"""What every scheduler owes: found by name, watched while the real engine runs on them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from typing import Any

import pytest
from engine_setup import SCHEDULERS, Case, label, longer, run_engine, schedulers, trace
from hypothesis import given
from hypothesis import strategies as st

from sim.plugin import build, discover
from sim.policies.autoregressive import Autoregressive
from sim.policies.speculative import Speculative
from sim.request import Request, Sequence
from sim.schedulers import ORDERS, Plan
from sim.serving.queue import WaitingLine

ALL = pytest.mark.parametrize("scheduler", schedulers(), ids=label)
POLICIES = [Autoregressive(), Speculative("d", 3, 0.8)]
NAMES = sorted(discover("sim.schedulers"))


class Watched:
    """A scheduler that checks every plan of another one, and remembers the last one of each nanosecond."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.plans = inner, dict[int, Any]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def plan(self, view: Any) -> Plan:
        before = facts(view)
        plan: Plan = self.inner.plan(view)
        assert told(self.inner.plan(view)) == told(plan), "planning again without a change gives the same plan"
        if hasattr(self.inner, "admits"):
            assert self.inner.admits(view) == (plan.admit > 0), "who is asked quickly says the same"
        assert facts(view) == before, "a plan is a thought: it changes nothing"
        check(self.inner, view, plan)
        self.plans[view.env.now] = told(plan)
        return plan


def told(plan: Plan) -> Any:
    """A plan in values."""
    return plan.admit, [(s.request.id, new) for s, new in plan.chunks], plan.decode


def facts(view: Any) -> Any:
    """Whatever of a view a plan could have changed."""
    known = [(s.request.id, s.prefilled, s.prefill_tokens, s.seats) for s in (*view.prefilling, *view.waiting)]
    return known, view.running_seats, view.decoding_seats, view.tokens_per_round


def check(scheduler: Any, view: Any, plan: Plan) -> None:
    """Seats, budget, order and sense of a plan."""
    heads = list(view.admissible(scheduler.max_sequences))[: plan.admit]
    assert len(heads) == plan.admit, "only who is admissible is admitted"
    assert view.running_seats + sum(s.seats for s in heads) <= scheduler.max_sequences
    chosen = [s for s, _ in plan.chunks]
    assert len({id(s) for s in chosen}) == len(chosen), "one chunk a sequence"
    assert set(map(id, heads)) <= set(map(id, chosen)), "nobody is admitted to wait"
    assert chosen == [s for s in (*view.prefilling, *heads) if s in chosen], "prompts under way first, then the line"
    for sequence, new in plan.chunks:
        assert 1 <= new <= sequence.prefill_tokens - sequence.prefilled
    assert not plan.decode or view.decoding_seats
    tokens = sum(new for _, new in plan.chunks) + (view.decoding_seats * view.tokens_per_round if plan.decode else 0)
    budget = getattr(scheduler, "token_budget", None)
    lone = len(plan.chunks) == 1 and not plan.decode and not scheduler_splits(scheduler)
    assert budget is None or tokens <= budget or lone or (plan.decode and not plan.chunks)
    if view.leap is not None:
        return  # an arrival asked what it would change: the round under way has the rest in hand
    assert plan.chunks or plan.decode or not (view.decoding_seats or view.prefilling), "work is not left lying"
    if not view.prefilling and not list(view.admissible(scheduler.max_sequences)):
        assert told(plan) == (0, [], view.decoding_seats > 0), "with nothing to read, decodes run"


def scheduler_splits(scheduler: Any) -> bool:
    """Whether a prompt longer than the budget is read in pieces (else it runs alone, whole)."""
    return bool(scheduler.name == "chunked" and not scheduler.whole)


def pressed(policy: Any, scheduler: Any, seed: int, samples: int = 1) -> Case:
    """A busy trace with little memory."""
    requests = longer(trace(20, 15_000, seed, 1000, samples), 8)
    return Case(policy, scheduler, requests, capacity_bytes=900, quantum_ns=1000, watermark=0.02)


@ALL
@pytest.mark.parametrize("policy", POLICIES, ids=label)
def test_every_plan_makes_sense(policy: Any, scheduler: Any) -> None:
    """Purity, budget, seats and order, at every planning instant of a calm and of a pressed run."""
    watched = Watched(scheduler)
    run_engine(pressed(policy, watched, 1, samples=2))
    run_engine(Case(policy, watched, trace(20, 100_000, 2)))
    assert len(watched.plans) > 40


@ALL
@pytest.mark.parametrize("policy", POLICIES, ids=label)
def test_a_plan_holds_for_its_leap(policy: Any, scheduler: Any) -> None:
    """Replanned at each round of a leap, the scheduler says the same: decode, nobody joins."""
    case = Case(policy, Watched(scheduler), longer(trace(12, 200_000, 3), 30))
    _, _, leaps = run_engine(case)
    steps = replace(case, scheduler=Watched(scheduler))
    same, _, _ = run_engine(steps, stepping=True)
    frame, ends = leaps.leaps.frame(), same.round_ends[0]
    starts = {end: i for i, end in enumerate(ends)}
    long = 0
    for start, duration, rounds in zip(frame["start_ns"], frame["duration_ns"], frame["rounds"], strict=True):
        last = starts[int(start + duration)]
        inner = ends[last - int(rounds) + 1 : last]
        assert all(steps.scheduler.plans.get(end, IDLE) == IDLE for end in inner)
        long += len(inner)
    assert long > 50


IDLE: Any = (0, [], True)


@pytest.mark.parametrize("name", NAMES)
def test_a_scheduler_is_a_frozen_dataclass_of_its_options(name: str) -> None:
    """One name, no base class, values that compare, nothing to change; defaults for every option."""
    kind = discover("sim.schedulers")[name]
    assert kind.__bases__ == (object,) and kind() == kind() and kind().order in ORDERS
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind().order = "other"
    for rows in (1, 4, 64):
        assert kind().decode_seats(rows) >= 1


@pytest.mark.parametrize("package, name", [("sim.schedulers", n) for n in NAMES])
def test_options_are_checked(package: str, name: str) -> None:
    """Every option refuses nonsense with a ValueError of one line that names it, and a misspelt one is suggested."""
    with pytest.raises(ValueError, match=r"^x\.orders?: [^\n]+$"):
        build(package, "x", {"name": name, "orders": 1})
    for option in dataclasses.fields(discover(package)[name]):
        refused = 0
        nonsense: tuple[Any, ...] = (None, -1, 0, True, 1.5, math.nan, math.inf, "no such", [], {})
        for value in nonsense:
            try:
                build(package, "x", {"name": name, option.name: value})
            except ValueError as error:
                assert option.name in str(error) and "\n" not in str(error)
                refused += 1
        assert refused >= 5, f"{name}.{option.name} takes nonsense"


def test_a_budget_below_one_sequence_is_refused() -> None:
    """Five rows a sequence and round cannot fit a budget of four tokens."""
    scheduler = build("sim.schedulers", "scheduler", {"name": "chunked", "token_budget": 4})
    with pytest.raises(ValueError, match=r"^scheduler\.token_budget: 4 [^\n]*5"):
        scheduler.decode_seats(5)


# --- the line -------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(-1, 2), st.booleans()), max_size=20), st.sampled_from(ORDERS))
def test_queue_order(rows: list[tuple[int, int, bool]], order: str) -> None:
    """Preempted before others, then the order's key, then the request's number, however they were pushed."""
    line, sequences = WaitingLine(order), []
    for i, (prompt, priority, preempted) in enumerate(rows):
        sequences.append(sequence(i * 7 % 23, prompt, priority, preempted))
        line.push(sequences[-1])
    want = sorted(sequences, key=lambda s: (not s.preemptions, rank(s.request, order), s.request.id))
    assert list(line) == want and len(line) == len(want)
    assert all(line.is_head(s) == (s is want[0]) for s in want)
    assert [line.pop() for _ in want] == want and len(line) == 0


def rank(request: Request, order: str) -> int:
    """A queue order's key."""
    return {"fcfs": 0, "shortest_prompt": request.prompt, "priority": -request.priority}[order]


def sequence(number: int, prompt: int, priority: int, preempted: bool) -> Any:
    """A sequence that waits."""
    waiting = Sequence.of(Request(number, 0, prompt, 1, priority=priority))
    if preempted:
        waiting.restart()
    return waiting


def test_a_long_line_stays_a_line() -> None:
    """Five thousand come and go: the list with a moving head forgets those who left."""
    line = WaitingLine("fcfs")
    for i in range(5000):
        line.push(sequence(i, 1, 0, False))
        if i % 4:
            line.pop()
    assert [s.request.id for s in line] == list(range(3750, 5000)) and len(line) == 1250


@pytest.mark.parametrize(
    "order, want", [("fcfs", [0, 1, 2, 3]), ("shortest_prompt", [0, 3, 1, 2]), ("priority", [0, 2, 3, 1])]
)
@pytest.mark.parametrize("name", NAMES)
def test_who_is_served_next(name: str, order: str, want: list[int]) -> None:
    """One seat, three that wait: served in the order of the line."""
    scheduler = build("sim.schedulers", "scheduler", {"name": name, "max_sequences": 1, "order": order})
    prompts, priorities = [9, 5, 7, 3], [0, 0, 2, 1]
    requests = tuple(Request(i, i, prompts[i], 3, priority=priorities[i]) for i in range(4))
    told, _, _ = run_engine(Case(Autoregressive(), scheduler, requests))
    assert sorted(told.requests, key=lambda i: told.requests[i][2]) == want


def test_every_scheduler_has_an_example() -> None:
    """A new scheduler is watched by all suites only with options in tests/engine_setup.py."""
    assert set(SCHEDULERS) == set(NAMES)
