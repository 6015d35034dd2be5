"""A cache of fixed size: reads and memory saturate, in one pass and in a run; what goes with it and what does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from analytic_models import CROSS, LATENT, WINDOWED, device, model
from engine_setup import policies
from hypothesis import given, settings
from hypothesis import strategies as st
from variant_counting import counted

from sim import variants
from sim.analytic.cost import PassCost
from sim.analytic.work import Work
from sim.build import build_scenario
from sim.quality import UNKNOWN
from sim.reference.variants.kv_eviction import Rule
from sim.run import simulate
from sim.scenario import Scenario
from sim.variants.kv_eviction import METHODS, KvEviction

H100 = device("h100-sxm")
LLAMA = model("llama-3.1-8b")
METHOD = pytest.mark.parametrize("method", METHODS)


def reads(context: int, batch: int = 4, budget: int = 1024, method: str = "window") -> float:
    """KV bytes that attention reads in one decode pass of Llama-3.1-8B (float32)."""
    tally = counted(LLAMA, [Work.decode(batch, context, windows=(budget,))], KvEviction(budget, method))
    return tally["bytes_kv"]["attn.scores"] + tally["bytes_kv"]["attn.values"]


def test_reads_saturate_at_the_budget() -> None:
    """Below the budget all is read; above it budget - 1 tokens, by hand: 2 * 32 layers * 8 heads * 128 * 4 bytes."""
    assert reads(500) == 4 * 499 * 2 * 32 * 8 * 128 * 4
    assert reads(1024) == reads(5000) == reads(10**6) == 4 * 1023 * 2 * 32 * 8 * 128 * 4


def test_bookkeeping_by_hand() -> None:
    """H2O, batch 4 at a full budget of 1,024: 40 adds and comparisons a pair, 8 sums of 4 bytes read and written."""
    work = Work.decode(4, 5000, windows=(1024,))
    heavy = counted(LLAMA, [work], KvEviction(method="h2o"))
    assert heavy["flops"]["attn.evict"] == 32 * 4 * 1024 * 40
    assert heavy["bytes_kv"]["attn.evict"] == 32 * 2 * 4 * 1023 * 8 * 4
    streaming = counted(LLAMA, [work], KvEviction())
    assert streaming["flops"]["attn.reindex"] == 32 * 3 * 4 * 32 * 128
    assert not counted(LLAMA, [work], KvEviction(method="window"))["flops"]["attn.evict"]


@METHOD
def test_long_contexts_decode_as_fast_as_the_budget(method: str) -> None:
    """Llama-3.1-8B, batch 64, 32 k tokens: above twice as fast, and flat beyond the budget."""
    cost, plain = PassCost(LLAMA, H100, variants=[KvEviction(2048, method)]), PassCost(LLAMA, H100)
    at = [float(cost.seconds(Work.decode(64, s, windows=cost.shape.windows))) for s in (4096, 32768)]
    assert at[0] == at[1] < 0.5 * float(plain.seconds(Work.decode(64, 32768)))


@METHOD
@settings(max_examples=15)
@given(start=st.integers(1, 4000))
def test_a_round_costs_the_same_alone_and_among_others(method: str, start: int) -> None:
    cost = PassCost(LLAMA, H100, variants=[KvEviction(512, method)])
    batch = np.arange(start, start + 4)
    for work in (Work.decode, lambda b, s, windows: Work.chunk(b, s, windows=windows)):
        alone = [float(cost.seconds(work(int(n), 700, windows=(512,)))) for n in batch]
        assert cost.seconds(work(batch, 700, windows=(512,))).tolist() == alone


@METHOD
def test_h2o_and_the_others_stay_on_the_fast_path(method: str) -> None:
    """No kernel is left for slow evaluation round by round."""
    cost = PassCost(LLAMA, H100, variants=[KvEviction(512, method)])
    assert not cost._is_loose and cost.decode_line() is not None


def scenario(**more: Any) -> Scenario:
    workload = {"requests": 12, "rate": 8, "prompt": 3000, "output": 60}
    base = {"model": "llama-3.1-8b", "hardware": "h100-sxm", "workload": workload}
    return Scenario.model_validate({**base, **more})


@METHOD
def test_memory_saturates_in_a_run(method: str) -> None:
    """3,000 tokens of prompt with a budget of 256: a fifteenth of the blocks, and the run is the same stepping."""
    small = scenario(variants=[{"kv_eviction": {"budget": 256, "method": method}}])
    kv, whole = build_scenario(small).setup.kv, build_scenario(scenario()).setup.kv
    assert kv.bytes_of(3000) == kv.bytes_of(300) == 17 * 16 * 131072 and whole.bytes_of(3000) > 10 * kv.bytes_of(3000)
    leaping, stepping = (simulate(build_scenario(small, stepping=s)).requests for s in (False, True))
    assert leaping.drop(columns="joules").equals(stepping.drop(columns="joules"))  # a sum of floats, by leap
    assert leaping["tpot_ms"].median() < simulate(scenario()).requests["tpot_ms"].median()


def test_drafts_can_be_rolled_back_except_by_h2o() -> None:
    """Speculative decoding runs with sinks; with H2O it is refused, with the reason."""
    speculative = {"name": "speculative", "draft": "llama-3.2-1b", "gamma": 3}
    assert simulate(scenario(policy=speculative, variants=["kv_eviction"])).complete
    with pytest.raises(ValueError, match="kv_eviction cannot go with speculative: rejected drafts have evicted"):
        build_scenario(scenario(policy=speculative, variants=[{"kv_eviction": {"method": "h2o"}}]))


def test_every_policy_that_verifies_is_named() -> None:
    """H2O clashes with all whose rounds run more rows than they may keep; the others have no clash."""
    verifying = {p.name for p in policies() if p.tokens_per_round > 1}
    assert verifying <= set(KvEviction(method="h2o").clashes) and not KvEviction().clashes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"budget": 1}, "budget: 1: must be a whole number from 2"),
        ({"budget": 2.0}, "budget: 2.0"),
        ({"method": "h20"}, "method: 'h20'.*did you mean 'h2o'"),
        ({"budget": 4, "sinks": 4}, "sinks: 4: must leave two"),
        ({"recent": -1}, "recent: -1"),
        ({"budget": 10, "recent": 9}, "recent: 9: must leave two"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        variants.build([{"kv_eviction": options}])
    assert "\n" not in str(refused.value)


def test_shapes_that_it_does_not_apply_to_say_why() -> None:
    for shape, v, said in (
        (model("bert-base"), KvEviction(), "is an encoder"),
        (LATENT, KvEviction(), "latent attention"),
        (WINDOWED, KvEviction(64), "layers with a window of 32"),
    ):
        with pytest.raises(ValueError, match=said):
            PassCost(shape, H100, variants=[v])
    for shape in (LATENT, WINDOWED, CROSS):
        assert PassCost(shape, H100, variants=[KvEviction(64, "window")]).shape.windows
    assert PassCost(WINDOWED, H100, variants=[KvEviction(16)]).shape.windows == (16,)


def test_layers_that_slide_already_keep_their_window() -> None:
    """Gemma's local layers stay; its global ones get the budget."""
    kinds = PassCost(model("gemma-3-4b"), H100, variants=[KvEviction(4096, "window")]).shape.windows
    assert set(kinds) == {1024, 4096}


def test_quality_and_defaults() -> None:
    assert KvEviction().quality == UNKNOWN and Rule(1024) == Rule(1024, KvEviction().method, KvEviction().sinks)
