"""Variable model serving: tiers by the line, exact under leaping, what they read, what they weigh, what they lose."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from engine_setup import TINY_CLOCK, Case, longer, run_engine, trace
from hypothesis import given, settings
from hypothesis import strategies as st
from stepper import step

from sim import Scenario, simulate
from sim.build import build_scenario
from sim.policies.switching import Step, Switching
from sim.schedulers.chunked import Chunked
from sim.schedulers.continuous import Continuous
from sim.schedulers.static import Static
from sim.serving.replica import Replica
from sim.serving.rounds import Rounds

TWO = Switching((Step(0), Step(3, ("x",))), 1)
THREE = Switching((Step(0), Step(2, ("x",)), Step(6, ("y",))), 1, 0.004)


def differences(case: Case, stepping: bool = False) -> list[str]:
    """Fields of what engine and stepper tell that are not equal."""
    slow, fast = step(case)[0], run_engine(case, stepping)[0]
    return [name for name in vars(slow) if getattr(slow, name) != getattr(fast, name)]


# --- the ladder ------------------------------------------------------------------------------------


def test_tiers_by_hand() -> None:
    """Up at a tier's line, down below it and the hysteresis; a jump passes over tiers."""
    tier, found = 0, []
    for waiting in (0, 1, 2, 1, 0, 6, 5, 4, 1, 0, 9, 0):
        tier = THREE.tier_of(tier, waiting)
        found.append(tier)
    assert found == [0, 0, 1, 1, 0, 2, 2, 1, 1, 0, 2, 0]


@pytest.mark.parametrize(
    ("ladder", "hysteresis", "message"),
    [
        ((Step(0),), 0, "must rise from 0"),
        ((Step(1), Step(2)), 0, "must rise from 0"),
        ((Step(0), Step(4), Step(4)), 0, "must rise from 0"),
        ((Step(0, ("x",)), Step(4)), 0, "first tier"),
        ((Step(0), Step(4, ("x",))), 4, "must be below 4"),
        ((Step(0), Step(4, ("x",))), -1, "must be below 4"),
    ],
)
def test_ladders_that_make_no_sense(ladder: Any, hysteresis: int, message: str) -> None:
    """One line that names the key."""
    with pytest.raises(ValueError, match=message):
        Switching(ladder, hysteresis)


@pytest.mark.parametrize("kinds", [((None,),) * 3, ((None, 7), (7, None), (3, None))])
def test_a_round_runs_the_model_of_its_tier(kinds: Any) -> None:
    """Two of a batch of three in tier 0, one in tier 2: each pass has its own rows and reads what they have cached."""
    total: Any = 0
    for tier, context in ((0, 10), (0, 20), (2, 30)):
        rows = THREE.rows(THREE.tier_future(tier, None, 0, 1), context, kinds)  # type: ignore[arg-type]
        assert len(rows) == THREE.channels(kinds)
        total = total + np.array(rows)
    passes = list(THREE.passes(3, total[:, 0].tolist(), None, kinds))
    assert [(p.model, p.work.tokens, p.work.logit_rows) for p in passes] == [(0, 2, 2), (1, 0, 0), (2, 1, 1)]
    reads = [[sum(min(c, (w or 99) - 1) for c in cs) for w in kinds[m]] for m, cs in enumerate(([10, 20], [], [30]))]
    assert [list(p.work.decode_reads or ()) for p in passes] == reads
    pairs = [[read + count for read in of] for of, count in zip(reads, (2, 0, 1), strict=True)]
    assert [list(p.work.decode_pairs or ()) for p in passes] == pairs


# --- leaping is exact ------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    policy=st.sampled_from([TWO, THREE, replace(THREE, switch_ms=0.0)]),
    scheduler=st.sampled_from([Chunked(24, 4), Continuous(60, 3), Static(4), Chunked(40, 3, "shortest_prompt")]),
    seed=st.integers(0, 999),
    gap_ns=st.sampled_from([0, 4000, 20_000, 80_000]),
    samples=st.sampled_from([1, 1, 3]),
    capacity_bytes=st.sampled_from([1500, 3000, 1 << 40]),
    more=st.sampled_from(
        [{}, {"concurrency": 6}, {"plan_ahead": 1, "request_ns": 1500}, {"windows": (None, 7)}, {"clock": TINY_CLOCK}]
    ),
    quantum_ns=st.sampled_from([0, 1000]),
)
def test_leaping_is_exact(
    policy: Any, scheduler: Any, seed: int, gap_ns: int, samples: int, capacity_bytes: int, more: Any, quantum_ns: int
) -> None:
    """Tiers that follow the line: leaping, and one event a round, equal the stepper bit for bit."""
    requests = longer(trace(24, gap_ns, seed, 1000 if quantum_ns else 1, samples), 6)
    case = Case(policy, scheduler, requests, capacity_bytes=capacity_bytes, quantum_ns=quantum_ns, **more)
    assert differences(case) == [] and differences(case, stepping=True) == []


BUSY = Case(THREE, Chunked(40, 3), longer(trace(40, 15_000, 3), 8))
CHOOSE, TIER_AFTER, ENTER = Replica._choose_tier, Replica._tier_after, Replica._enter


def _blind(self: Replica, sequence: Any) -> None:
    """Arrivals that lengthen the line past a tier do not end the leap."""
    by_line, self.by_line = self.by_line, False
    ENTER(self, sequence)
    self.by_line = by_line


def _by_seats(self: Replica) -> int:
    """The tier follows the batch in place of the line."""
    by_line, self.by_line = self.by_line, False
    switch_ns = CHOOSE(self)
    self.by_line = by_line
    return switch_ns


def _always_full(self: Replica) -> int:
    """Nobody ever leaves the first tier."""
    return 0


def _free(self: Replica) -> int:
    """A change costs nothing."""
    CHOOSE(self)
    return 0


@pytest.mark.parametrize(
    ("owner", "name", "fault"),
    [
        (Replica, "_enter", _blind),
        (Replica, "_choose_tier", _by_seats),
        (Replica, "_choose_tier", _always_full),
        (Replica, "_choose_tier", _free),
        (Switching, "tier_of", lambda self, tier, waiting: min(waiting // 3, 2)),
        (Replica, "_redrawn", lambda self, entry: entry),
        (Rounds, "decode_ns", lambda self, most, totals: np.full(totals.shape[1], 1000)),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_planted_faults_are_seen(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, fault: Any) -> None:
    """The stepper notices each of these mistakes; without one there is nothing to notice."""
    assert differences(BUSY) == []
    monkeypatch.setattr(owner, name, fault)
    assert noticed()


def noticed() -> bool:
    """Whether the engine tells something else than the stepper, or trips over one of its own invariants."""
    try:
        return differences(BUSY) != []
    except (ArithmeticError, AssertionError, LookupError, ValueError):
        return True


# --- from a scenario to its result -------------------------------------------------------------------

TIERS = (
    "[{waiting: 0}, {waiting: 4, variants: [matformer: {size: L}]}, {waiting: 12, variants: [matformer: {size: S}]}]"
)
BASE = {
    "model": "llama-3.1-8b", "hardware": "h100-sxm", "scheduler": {"name": "chunked", "max_sequences": 48},
    "workload": {"rate": 60, "prompt": 500, "output": 100, "requests": 300},
}  # fmt: skip


def scenario(*settings: str) -> Scenario:
    """Traffic beyond what 48 seats of one H100 can serve."""
    return Scenario.parse(BASE).with_settings(settings)


def test_a_crowd_is_served_faster_by_less() -> None:
    """Shares by tier add up to all decoded tokens; requests wait less than for the whole model alone."""
    crowd = scenario("workload.rate=200")
    plain, result = simulate(crowd), simulate(crowd.with_settings([f"switch.tiers={TIERS}", "switch.hysteresis=2"]))
    [told] = result.metrics["switch"]
    tokens = [tier["tokens"] for tier in told["tiers"]]
    assert sum(tokens) == 300 * 99 and min(tokens) > 0
    assert sum(tier["share"] for tier in told["tiers"]) == pytest.approx(1.0)
    assert told["loss_percent"] is None, "nobody measured what the slices lose"
    assert plain.metrics["switch"] is None
    assert result.metrics["latency"]["ttft_ms"]["mean"] < 0.6 * plain.metrics["latency"]["ttft_ms"]["mean"]
    assert result.round_columns["context"].min() >= 0


def test_tiers_that_are_the_model_itself_change_nothing() -> None:
    """MatFormer XL is the whole: the same rounds, to the nanosecond, whichever tier runs."""
    same = "[{waiting: 0}, {waiting: 2, variants: [matformer: {size: XL}]}]"
    plain, result = simulate(scenario()), simulate(scenario(f"switch.tiers={same}"))
    assert result.metrics["switch"][0]["tiers"][1]["tokens"] > 0
    assert (plain.request_columns["finish_ns"] == result.request_columns["finish_ns"]).all()
    assert result.accounts.joules.sum() == pytest.approx(plain.accounts.joules.sum(), rel=1e-6)
    assert result.metrics["kv"]["waste"] == pytest.approx(plain.metrics["kv"]["waste"], rel=0.01)


@pytest.mark.parametrize(
    ("variant", "held"), [("matformer: {size: S}", 0.0), ("quantization: {weights: 4}", 0.2)], ids=["nested", "copy"]
)
def test_nested_tiers_weigh_nothing_and_copies_do(variant: str, held: float) -> None:
    """A slice reads weights that are there; a copy in int4 weighs a quarter of bf16, scales and all, and shrinks KV."""
    tiers = f"[{{waiting: 0}}, {{waiting: 4, variants: [{variant}]}}]"
    plain, found = (dict(build_scenario(one).budget.lines) for one in (scenario(), scenario(f"switch.tiers={tiers}")))
    assert found["weights"] == plain["weights"]
    assert held <= found["draft weights"] / plain["weights"] <= held + 0.15
    assert found["KV pool"] == pytest.approx(plain["KV pool"] - found["draft weights"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["policy=speculative", f"switch.tiers={TIERS}"], "switch: with policy speculative"),
        (["switch.tiers=[{waiting: 0}]"], "switch.tiers"),
        (["switch.tiers=[{waiting: 0}, {waiting: 0}]"], "must rise"),
        (["switch.tiers=[{waiting: 0}, {waiting: 3, variants: [no_such]}]"], r"switch\.tiers\[1\]\.variants"),
        (["switch.tiers=[{waiting: 0}, {waiting: 3, variants: [early_exit: {layers: 4}]}]"], "KV cache|switch"),
        (["switch.tiers=[{waiting: 0}, {waiting: 3}]", "switch.hysteresis=3"], "switch.hysteresis"),
        ([f"switch.tiers={TIERS}", "pools={link_GBps: 50}"], "switch: not with pools"),
        (["model=t5-v1.1-base", f"switch.tiers={TIERS}"], "encoder"),
    ],
)
def test_what_makes_no_sense_is_said(settings: list[str], message: str) -> None:
    """One line that names the key, before the clock starts."""
    with pytest.raises(ValueError, match=message) as error:
        build_scenario(scenario(*settings))
    assert "\n" not in str(error.value)


def test_a_group_of_a_fleet_may_switch() -> None:
    """One group switches, the other does not; the summary tells of the one."""
    fleet = f"{{groups: [{{name: whole}}, {{name: elastic, switch: {{tiers: {TIERS}}}}}]}}"
    result = simulate(scenario(f"fleet={fleet}", "workload.rate=120"))
    assert [one["group"] for one in result.metrics["switch"]] == ["elastic"]
    again = build_scenario(Scenario.parse(result.built.scenario.model_dump()))
    assert again.scenario == result.built.scenario


FOUR = TIERS[:-1] + ", {waiting: 20, variants: [quantization: {weights: 4}]}]"


@pytest.mark.parametrize("tiers", [TIERS, FOUR], ids=["three", "four"])
def test_real_costs_leap_exactly(tiers: str) -> None:
    """On an H100 with an engine's host time, in single rounds and in leaps: as with an event a round."""
    crowd = scenario(f"switch.tiers={tiers}", "workload.rate=80", "workload.requests=120", "engine=vllm-v1")
    leaping, stepping = (simulate(crowd, stepping=each).request_columns for each in (False, True))
    assert (leaping["finish_ns"] == stepping["finish_ns"]).all()
