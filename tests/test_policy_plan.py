"""Plan and write: two stages of one answer, passes by counting keys, counts of answers really written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tandem_pair import counts_of, meters_of, secondary_of

from sim import Scenario, simulate
from sim.analytic.model import ModelShape
from sim.build import build_scenario
from sim.policies import Chunk, Chunks
from sim.policies.plan import Plan
from sim.quality import quality_of
from sim.reference.checkpoint import load
from sim.reference.decoding import decode
from sim.reference.sampling import Sampler, stream
from sim.reference.twins import autoregressive, plan
from sim.reference.twins._secondary import load_secondary
from sim.serving.luck import Luck
from sim.validation.counts import mismatches
from sim.validation.stand_in import dense, stand_in
from sim.validation.tokens import held_out

SHAPES = {
    "full": (dense(16, 3, 2, 1, 32, 12), dense(8, 2, 2, 1, 16, 12)),
    "windows": (dense(16, 3, 4, 2, 24, 12, window=9), dense(12, 2, 2, 2, 16, 12, window=6)),
}


def test_wall_time_by_hand() -> None:
    """Of nine decoded tokens two are the primary's (the prefill gave the plan's first of three): 9 / (2 + 7 / 4)."""
    assert Plan("d", 3).wall_time_factor(10, 0.25) == pytest.approx(9 / (2 + 7 * 0.25))
    assert Plan("d", 30).wall_time_factor(10, 0.25) == 1
    assert Plan("d", 1).wall_time_factor(10, 0.25) == pytest.approx(4)
    with pytest.raises(ValueError, match="output: 1 is not a whole number from 2"):
        Plan("d").wall_time_factor(1, 0.25)


def test_wrong_options_are_named() -> None:
    """A plan of at least a token, and a secondary that keeps its own projected keys and values."""
    with pytest.raises(ValueError, match=r"^policy\.tokens: 0 is not a whole number from 1 to 1000000$"):
        Plan("d", 0)
    with pytest.raises(ValueError, match=r"^policy\.draft\.kv: shared: projected keys and values are"):
        Plan({"model": "self", "kv": "shared"})


def test_nobody_knows_what_is_lost() -> None:
    """Exploratory: no number is claimed."""
    assert quality_of(Plan("d")).loss_percent is None


def test_stages_follow_own_rounds() -> None:
    """With a plan of 5 the prefill and four rounds are the primary's, through a preemption as without one."""
    whole = Plan("d", 5).future(Luck(1).of(0), 0, 9)
    assert whole.drafted.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1] and not whole.kept.any()
    assert Plan("d", 5).future(Luck(1).of(0), 3, 6).drafted.tolist() == [0, 1, 1, 1, 1, 1]


def attended(cached: int, window: int | None) -> tuple[int, int]:
    """(pairs, reads) of one query after ``cached`` tokens, key by key."""
    keys = [k for k in range(cached + 1) if window is None or k > cached - window]
    return len(keys), sum(k < cached for k in keys)


@pytest.mark.parametrize("kinds", [(None,), (None, 7), (5,)])
def test_passes_by_hand(kinds: tuple[int | None, ...]) -> None:
    """A batch of which some still plan: each model runs over its own sequences, projections over the primary's."""
    policy, windows = Plan("d", 4), (kinds, kinds[::-1], kinds[::-1])
    begun = ((0, 4), (2, 9), (5, 11))  # own rounds done, tokens cached
    rows = [policy.rows(policy.future(Luck(1).of(0), start, 6), context, windows) for start, context in begun]
    totals = np.sum(rows, axis=0)
    for i in range(6):
        work = {one.model: one.work for one in policy.passes(3, totals[:, i].tolist(), None, windows)}
        groups = {0: [c + i for s, c in begun if s + i < 3], 1: [c + i for s, c in begun if s + i >= 3]}
        assert work[2].tokens == len(groups[0])
        for model, contexts in groups.items():
            counts = [[attended(c, w) for w in windows[model]] for c in contexts]
            pairs, reads = (tuple(sum(c[k][side] for c in counts) for k in range(len(kinds))) for side in (0, 1))
            got = work[model]
            assert (got.tokens, got.logit_rows, got.decode_pairs, got.decode_reads) == (
                len(contexts), len(contexts), pairs, reads,
            )  # fmt: skip


def test_prompts_are_the_primarys() -> None:
    """Read by it and projected, alone or beside decodes."""
    windows, chunks = ((None,),) * 3, Chunks([Chunk(0, 9, True)])
    assert [(p.model, p.work.tokens) for p in Plan("d").passes(0, None, chunks, windows)] == [(0, 9), (2, 9)]
    beside = [(p.model, p.work.tokens) for p in Plan("d").passes(2, [1, 5, 7], chunks, windows)]
    assert beside == [(1, 1), (0, 10), (2, 10)]


@pytest.mark.parametrize("hardware", ["h100-sxm", "a100-sxm-80gb"])
def test_a_stage_without_sequences_costs_nothing(hardware: str) -> None:
    """Behind the plan a round lasts as long as the secondary's pass alone, floors and launches included."""
    said = [f"hardware={hardware}", "model=llama-3.1-8b", "policy={name: plan, draft: llama-3.2-1b, tokens: 3}"]
    built = build_scenario(Scenario.load("chat_h100", said))
    rounds, policy = built.setup.rounds, built.policy
    totals = np.array(policy.rows(policy.future(Luck(1).of(0), 0, 6), 100, rounds.windows))
    lasted = rounds.decode_ns(1, np.vstack([np.ones(6, dtype=np.int64), totals]))
    host_s = rounds.host_s(1, 1, rounds.layers_run(policy.passes(1, totals[:, 4].tolist(), None, rounds.windows)))
    for i, model in enumerate((0, 0, 1, 1, 1, 1)):
        passes = [p for p in policy.passes(1, totals[:, i].tolist(), None, rounds.windows) if p.work.tokens]
        assert {p.model for p in passes} == ({1} if model else {0, 2})
        seconds = float(host_s) + sum(float(built.costs[p.model].seconds(p.work)) for p in passes)
        assert lasted[i] == pytest.approx(seconds * 1e9, abs=2)


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_counts_are_exact(shapes: tuple[ModelShape, ModelShape]) -> None:
    """FLOPs and bytes of every op of a ragged batch, part of it planning; a plan that never ends would differ."""
    target, secondary = stand_in(shapes[0], 3), secondary_of(*shapes, (1, 3))
    target.meter.reset()
    prompts = [stream(s, "plan").integers(0, 12, n) for s, n in enumerate((9, 4, 17))]
    runs = decode(plan.Twin(secondary, 5), target, prompts, (20, 3, 31), seed=1)
    assert mismatches(counts_of(Plan("d", 5), runs, *shapes), meters_of(target, secondary)) == []
    assert {len(r.drafted) for g in runs for r in g.rounds[1:]} == {0, 1}
    planned = [replace(g, rounds=tuple(replace(r, drafted=()) for r in g.rounds)) for g in runs]
    assert mismatches(counts_of(Plan("d", 5), planned, *shapes), meters_of(target, secondary)) != []


def test_the_plan_is_the_primarys_text() -> None:
    """Greedy: as many tokens as planned are the primary's own; behind them the secondary goes its own way."""
    primary, secondary = load("primary", exact=True), load_secondary(exact=True)
    prompts = held_out("a", 8)
    alone = decode(autoregressive.Twin(), primary, prompts, 40, sampler=Sampler(0))
    planned = decode(plan.Twin(secondary, 8), primary, prompts, 40, sampler=Sampler(0))
    assert [g.tokens[:8] for g in planned] == [g.tokens[:8] for g in alone]
    assert sum(g.tokens != h.tokens for g, h in zip(planned, alone, strict=True)) >= 6


def test_a_run_counts_no_drafts() -> None:
    """Served, every round gives one token, and nothing counts as judged."""
    said: list[Any] = [
        "policy={name: plan, draft: llama-3.2-1b, tokens: 16}",
        "model=llama-3.1-8b",
        "workload.requests=60",
    ]
    requests = simulate(Scenario.load("chat_h100", said)).requests
    assert int(requests["drafted_tokens"].sum()) == 0
    assert int(requests["rounds"].sum()) == int(requests["output_tokens"].sum()) - len(requests)
