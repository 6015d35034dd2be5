"""Gamma by load: the ladder of tiers by hand, the same luck in all of them, the work of each, and a served trace."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sim import Scenario, simulate
from sim.axes import Axis
from sim.policies.load_adaptive import LoadAdaptive
from sim.policies.speculative import Speculative
from sim.serving.luck import Luck
from sim.speedup import curve

TIERS = [{"batch": 1, "gamma": 4}, {"batch": 8, "gamma": 2}, {"batch": 32, "gamma": 0}]


def walked(policy: LoadAdaptive, seats: list[int]) -> list[int]:
    """The tier of each round, from tier 0 on."""
    tier, out = 0, []
    for n in seats:
        tier = policy.tier_of(tier, n)
        out.append(tier)
    return out


def test_the_ladder_by_hand() -> None:
    """Up at a tier's batch, down one below it; a jump passes over tiers."""
    policy = LoadAdaptive("d", TIERS)
    assert walked(policy, [1, 7, 8, 7, 8, 31, 32, 31, 200, 3]) == [0, 0, 1, 0, 1, 1, 2, 1, 2, 0]


def test_hysteresis_by_hand() -> None:
    """With 3: tier 1 is left at 4, tier 2 at 28; going up is not delayed."""
    policy = LoadAdaptive("d", TIERS, 3)
    assert walked(policy, [7, 8, 7, 5, 4, 8, 32, 29, 28, 32, 4]) == [0, 1, 1, 1, 0, 1, 2, 2, 1, 2, 0]
    assert [policy.least_seats(t) for t in (1, 2)] == [5, 29]


def test_tiers_meet_the_same_luck() -> None:
    """A tier keeps min(kept, gamma) of what the longest draft keeps; the longest is plain speculative decoding."""
    policy, luck = LoadAdaptive("d", TIERS, acceptance=0.8), Luck(1)
    whole = Speculative("d", 4, 0.8).future(luck.of(5), 0, 900)
    for tier, gamma in enumerate((4, 2, 0)):
        future = policy.tier_future(tier, luck.of(5), 0, 900)
        n = min(len(future.kept), len(whole.kept))
        assert (future.kept[:n] == np.minimum(whole.kept[:n], gamma)).all() and set(future.drafted) == {gamma}
        later = policy.tier_future(tier, luck.of(5), 40, 900 - int(future.offsets[40]))
        assert later.kept.tolist() == future.kept[40:].tolist()
    assert policy.tokens_per_round == 5
    assert [policy.tokens_at(t) for t in range(3)] == pytest.approx([1 + 0.8 + 0.64 + 0.512 + 0.4096, 2.44, 1.0])


def test_the_curve_shows_each_batch_in_its_tier() -> None:
    """Speedup at a batch is that of its tier's gamma, of plain decoding where an idle draft is off."""
    tiers = "[{batch: 1, gamma: 4}, {batch: 8, gamma: 2}, {batch: 32, gamma: 0}]"
    said = f"name: load_adaptive, draft: llama-3.2-1b, tiers: {tiers}"
    ours = speedups(f"{said}, off: idle", (1, 8, 31, 32))
    four, two = (speedups(f"name: speculative, draft: llama-3.2-1b, gamma: {g}", (1, 8, 31, 32)) for g in (4, 2))
    assert ours == pytest.approx([four[0], two[1], two[2], 1.0], rel=1e-3)
    assert speedups(f"{said}, off: fed", (32,))[0] < 0.95


def speedups(policy: str, batches: tuple[int, ...]) -> list[float]:
    scenario = Scenario.load("bench_speculative", [f"policy={{{policy}}}"])
    return [row["speedup"] for row in curve(scenario, [Axis("batch", batches)]).rows()]


@pytest.mark.parametrize(("off", "tokens"), [("fed", [4, 4]), ("idle", [0, 0])])
def test_rounds_without_drafts(off: str, tokens: list[int]) -> None:
    """Four sequences at gamma 0: the draft reads a token of each, without logits, or does nothing at all."""
    policy = LoadAdaptive("d", [{"batch": 1, "gamma": 2}, {"batch": 4, "gamma": 0}], off=off)
    windows = ((None,), (None,))
    future = policy.tier_future(1, Luck(1).of(0), 0, 2)
    totals = 4 * np.array(policy.rows(future, 10, windows))
    passes = [p for i in range(2) for p in policy.passes(4, totals[:, i].tolist(), None, windows)]
    draft = [p.work for p in passes if p.model == 1]
    assert [w.tokens for w in draft if w.tokens] == [n for n in tokens if n]
    assert sum(w.logit_rows for w in draft) == 0
    assert [(p.work.tokens, p.work.logit_rows) for p in passes if p.model == 0] == [(4, 4), (4, 4)]


def test_an_idle_draft_catches_up_at_once() -> None:
    """Three rounds off, then on again: the first draft pass reads the three missed tokens beside the last one."""
    policy = LoadAdaptive("d", [{"batch": 1, "gamma": 2}, {"batch": 4, "gamma": 0}], off="idle", acceptance=0.0)
    windows = ((None,), (None,))
    off, on = (policy.tier_future(tier, Luck(1).of(0), 0, 3) for tier in (1, 0))
    columns = zip(off[:4], (on.gains, on.offsets + 3, on.kept, on.drafted), strict=True)
    rows = np.array(policy.rows(type(off)(*(np.concatenate(c) for c in columns)), 10, windows))
    first = [next(iter(policy.passes(1, column.tolist(), None, windows))).work for column in rows.T]
    assert [w.tokens for w in first] == [0, 0, 0, 4, 1, 1]
    assert first[3].decode_reads == (10,) and first[3].decode_pairs == (11 + 12 + 13 + 14,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tiers": [{"batch": 2, "gamma": 3}]}, "policy.tiers: batches [2] must rise, from 1"),
        ({"tiers": [TIERS[0], TIERS[0]]}, "policy.tiers: batches [1, 1] must rise, from 1"),
        ({"tiers": [{"batch": 1}]}, "policy.tiers[0]: {'batch': 1} is not {batch, gamma}"),
        ({"tiers": [{"batch": 1, "gamma": 65}]}, "policy.tiers[0].gamma: 65 is not a whole number from 0 to 64"),
        ({"tiers": [{"batch": 1, "gamma": 0}]}, "policy.tiers: [{'batch': 1, 'gamma': 0}]: no tier drafts"),
        ({"tiers": TIERS, "hysteresis": 7}, "policy.hysteresis: 7 is not a whole number from 0 to 6"),
        ({"switch_ms": -1}, "policy.switch_ms: -1 is not a number from 0"),
        ({"off": "stale"}, "policy.off: 'stale' is not one of fed, idle"),
        ({"acceptance": {"kind": "empirical", "betas": [0.5]}}, "policy.acceptance.kind: 'empirical' is not one of"),
    ],
)  # fmt: skip
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    """One line with key, value and what is allowed."""
    with pytest.raises(ValueError) as caught:
        LoadAdaptive("d", **options)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


# --- whole runs


def run(rate: float, policy: str, requests: int = 250) -> Any:
    said = [f"policy={policy}", f"workload.requests={requests}", f"workload.rate={rate}"]
    return simulate(Scenario.load("bench_speculative", said))


ADAPTING = "{name: load_adaptive, draft: llama-3.2-1b, tiers: [{batch: 1, gamma: 4}, {batch: 24, gamma: 0}]}"
FIXED = "{name: speculative, draft: llama-3.2-1b, gamma: 4}"


def test_it_is_the_chain_alone_and_plain_decoding_in_a_crowd() -> None:
    """At a trickle every request has the rounds of speculative decoding; far above the threshold few draft."""
    quiet, chain = run(2, ADAPTING).requests, run(2, FIXED).requests
    assert (quiet["rounds"] == chain["rounds"]).all() and (quiet["drafted_tokens"] == chain["drafted_tokens"]).all()
    crowd = run(300, ADAPTING).requests
    assert crowd["drafted_tokens"].sum() < 0.5 * run(300, FIXED).requests["drafted_tokens"].sum()


def test_a_change_costs_what_is_said() -> None:
    """The first row of the round table that differs between free and dear changes of tier differs by one change."""
    free, dear = (run(60, ADAPTING[:-1] + f", switch_ms: {ms}}}", 60).recorder.leaps.frame() for ms in (0, 7))
    both = min(len(free["rounds"]), len(dear["rounds"]))
    apart = [i for i in range(both) if free["duration_ns"][i] != dear["duration_ns"][i]]
    assert free["seats"][apart[0]] == dear["seats"][apart[0]] == 24
    assert dear["duration_ns"][apart[0]] - free["duration_ns"][apart[0]] == 7_000_000
