"""Blockwise parallel decoding: closed forms, published losses, passes of the heads, counts and texts of real heads."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from policy_checks import GREEDY, SHAPES, chatty, near, ragged_prompts, refusal

from sim import Scenario, theory
from sim.analytic.hardware import Device
from sim.analytic.model import ModelShape
from sim.analytic.ops import ops
from sim.build import build_scenario
from sim.policies.blockwise import Blockwise
from sim.quality import LOSSLESS
from sim.reference.acceptance import kept_survival, tokens_per_round
from sim.reference.checkpoint import SHIPPED, load
from sim.reference.decoding import Generation, decode
from sim.reference.transformer import Transformer
from sim.reference.twins import blockwise
from sim.serving.luck import Luck
from sim.validation.counts import FP32, KINDS, Tally, added, decoded, measured, mismatches, simulated
from sim.validation.tokens import held_out


def test_expected_tokens_by_hand() -> None:
    """Four heads, three of them guessing: E = 1 + a + a^2 + a^3, and m tokens take m / E passes and one."""
    policy = Blockwise(4, 0.5)
    assert policy.expected_tokens == pytest.approx(1.875)
    assert policy.tokens_per_round == 4 and policy.gamma == 3


def test_what_the_published_speedup_needs() -> None:
    """2.69x with four heads (arXiv 1811.03115, table 4) is at least 2.69 tokens a pass: the default's acceptance."""
    assert theory.implied_alpha(2.69, 3) == pytest.approx(0.74, abs=0.01)
    assert Blockwise().expected_tokens == pytest.approx(2.69, rel=0.04) and Blockwise().expected_tokens >= 2.69


def test_quality_is_said() -> None:
    """Frozen and exact is lossless; a tuned model's BLEU is published for its block; looser criteria are unknown."""
    assert Blockwise().quality is LOSSLESS
    assert Blockwise(4, tuned=True).quality.loss_percent == pytest.approx(100 * (29.11 - 28.54) / 29.11, abs=0.005)
    assert Blockwise(5, tuned=True).quality.loss_percent is None
    assert Blockwise(4, criterion="top_k").quality.loss_percent is None


def test_kept_by_frequency() -> None:
    """Every round proposes block - 1 tokens and keeps at least k with the survival vector's probability."""
    policy = Blockwise(5, {"kind": "decaying", "first": 0.8, "decay": 0.9})
    future = policy.future(Luck(1).of(0), 0, 60_000)
    assert set(future.drafted.tolist()) == {4}
    for k, want in enumerate(policy.survival, 1):
        assert near(future.kept[:-1] >= k, want)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": 1}, "policy.block: 1 is not a whole number from 2 to 64"),
        ({"hidden": "deep"}, "policy.hidden: 'deep' is not one of residual, ffn, none"),
        ({"propose": 1}, "policy.propose: 1 is not one of everywhere, once"),
        ({"criterion": "near"}, "policy.criterion: 'near' is not one of exact, top_k, distance"),
        ({"tuned": "yes"}, "policy.tuned: 'yes' is not true or false"),
        ({"acceptance": {"kind": "survival", "vector": [0.5]}}, "policy.acceptance.vector: needs a list of at least"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    """One line with key, value and what is allowed."""
    assert refusal(lambda: Blockwise(**options)).startswith(message)


@pytest.mark.parametrize(("propose", "rows"), [("everywhere", 12), ("once", 3)])
def test_heads_run_on_these_rows(propose: str, rows: int) -> None:
    """Three sequences with four heads: all twelve rows of the pass, or the one that each ends with."""
    policy, windows = Blockwise(4, propose=propose), ((None,), ())
    future = policy.future(Luck(2).of(0), 0, 9)
    totals = [3 * int(r[0]) for r in policy.rows(future, 5, windows)]
    target, heads = policy.passes(3, totals, None, windows)
    assert (target.work.tokens, heads.work.tokens, heads.work.logit_rows) == (12, 0, rows)


def test_heads_hold_only_what_they_add() -> None:
    """In memory: three blocks of 2 * 4d * d numbers on Llama-3.1-8B, no second output matrix and no cache."""
    plain, heads = (
        build_scenario(Scenario.load("chat_h100", [f"policy={name}"])) for name in ("autoregressive", "blockwise")
    )
    d = heads.shapes[0].d_model
    assert dict(heads.budget.lines)["draft weights"] == pytest.approx(3 * 8 * d * d * 2)
    assert heads.setup.kv.spans == plain.setup.kv.spans


# --- heads that really run


def head_tally(shape: ModelShape, policy: Blockwise, works: list[Any]) -> Tally:
    """What the simulator counts for the heads' passes, as the witness computes."""
    [model] = policy.drafts
    [heads] = model.variants  # type: ignore[union-attr]
    left = heads.reshape(shape)
    bound = heads.bound(left, FP32, Device.__new__(Device))
    tally: Tally = {kind: Counter() for kind in KINDS}
    for work in works:
        for op in bound.rewrite(ops(left, FP32, work, attention="standard"), work):
            values = (op.flops, op.weight_bytes, op.kv_read_bytes + op.kv_write_bytes, op.activation_bytes)
            for kind, value in zip(KINDS, values, strict=True):
                tally[kind][f"draft.{op.name}"] += op.layers * value
    return tally


@pytest.mark.parametrize("propose", ["everywhere", "once"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_counts_are_exact(shape: ModelShape, propose: str) -> None:
    """FLOPs and bytes of every op of a ragged batch, heads of Stern's form included."""
    target, policy = chatty(shape), Blockwise(4, propose=propose)
    target.meter.reset()
    prompts, tokens = ragged_prompts(12)
    twin = blockwise.Twin(4, "untrained", propose == "everywhere")
    runs = decode(twin, target, prompts, tokens, sampler=GREEDY, seed=1)
    passes = list(decoded(policy, runs, (shape.windows, ())))
    ours = simulated(shape, [work for model, work in passes if model == 0])
    heads = head_tally(shape, policy, [work for model, work in passes if model == 1])
    assert mismatches(added(ours, heads), measured(target.meter)) == []
    assert measured(target.meter)["flops"]["draft.heads.logits"] > 0


def proposals(target: Transformer, part: str) -> list[Generation]:
    """Greedy answers with the family's trained heads."""
    return decode(blockwise.Twin(4), target, held_out(part, 64), 96, sampler=GREEDY)


@pytest.mark.slow
def test_tokens_a_round_of_the_trained_heads() -> None:
    """Acceptance of trained heads measured on text A against tokens a round on text B, within a 99 % interval."""
    target = load(SHIPPED / "primary")
    runs = [proposals(target, part) for part in "ab"]
    policy = Blockwise(4, {"kind": "survival", "vector": kept_survival(runs[0], 3).tolist()})
    first, second = (tokens_per_round(one, 3) for one in runs)
    half = 2.576 * float(np.hypot(first.sd, second.sd))
    assert half < 0.1 * second.mean and abs(policy.expected_tokens - second.mean) < half
