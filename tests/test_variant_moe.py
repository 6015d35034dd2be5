"""Experts by popularity: the law against simulation and against real routing; buffers counted exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from analytic_models import DENSE, MOE, device, model
from hypothesis import given, settings
from hypothesis import strategies as st
from variant_counting import counted

from sim import variants
from sim.analytic.cost import PassCost
from sim.analytic.work import Work
from sim.quality import LOSSLESS, UNKNOWN
from sim.variants.expert_law import busiest, dropped, inclusion, visited, zipf
from sim.variants.moe import Moe
from sim.variants.quantization import Quantization

H100 = device("h100-sxm")
MIXTRAL = model("mixtral-8x7b")
RANDOM = np.random.Generator(np.random.Philox(11))


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20), st.data())
def test_inclusion_probabilities_add_up_to_the_experts_chosen(popularity: list[float], data: Any) -> None:
    """At most 1 each, k in all, in the order of popularity."""
    chosen = data.draw(st.integers(1, len(popularity)))
    shares = inclusion(popularity, chosen)
    assert sum(shares) == pytest.approx(chosen) and max(shares) <= 1
    order = np.argsort(popularity, kind="stable")
    assert (np.diff(np.array(shares)[order]) >= -1e-12).all()


def test_inclusion_by_hand() -> None:
    """Popularity 6:1:1:1, two chosen: the first always (2 * 6/9 > 1), the others a third of the remaining one."""
    assert inclusion([6, 1, 1, 1], 2) == pytest.approx((1, 1 / 3, 1 / 3, 1 / 3))
    assert inclusion([1, 1, 1, 1], 2) == (0.5,) * 4


@pytest.mark.parametrize(("batch", "times"), [(2, 1.97), (4, 3.8), (8, 7.2)])
def test_uniform_visits_are_those_of_the_published_arithmetic(batch: int, times: float) -> None:
    """8 of 256 experts: a batch of n reads that many times the experts of one token (reference: policies.md, 13)."""
    shares = Moe().shares(256, 8)
    assert visited(shares, batch) / visited(shares, 1) == pytest.approx(times, rel=0.01)


def _routed(shares: tuple[float, ...], tokens: int, tries: int) -> np.ndarray:
    """Loads [tries, E] of independent tokens with exactly these inclusion probabilities.

    Systematic sampling in an order of its own for every token, so that no two experts go together.
    """
    order = RANDOM.random((tries, tokens, len(shares))).argsort(axis=-1)
    edges = np.cumsum(np.array(shares)[order], axis=-1)
    edges[..., -1] = round(sum(shares))
    passed = np.floor(edges - RANDOM.random((tries, tokens, 1))) + 1
    chosen = np.diff(passed, axis=-1, prepend=0.0)
    loads = np.zeros((tries, tokens, len(shares)))
    np.put_along_axis(loads, order, chosen, axis=-1)
    return np.asarray(loads.sum(axis=1))


@pytest.mark.parametrize("skew", [0.0, 0.8])
def test_the_law_is_what_simulated_routing_does(skew: float) -> None:
    """Visited, busiest and dropped of 6,000 passes of 24 tokens, two of eight experts: within 1, 4 and 5 %."""
    shares = inclusion(zipf(8, skew), 2)
    loads = _routed(shares, 24, 6000)
    assert (loads.sum(axis=1) == 48).all()
    assert visited(shares, 3) == pytest.approx((_routed(shares, 3, 6000) > 0).sum(axis=1).mean(), rel=0.01)
    assert busiest(shares, 24) == pytest.approx(loads.max(axis=1).mean(), rel=0.04)
    lost = np.maximum(loads - 8, 0).sum(axis=1).mean() / 48
    assert dropped(shares, 24, 8) == pytest.approx(lost, rel=0.05)


def test_hot_experts_and_tokens_alike_read_less() -> None:
    """Monotone in both; one token reads k experts whatever the routing, and none reads none."""
    laws = [Moe(), Moe(skew=0.5), Moe(skew=1.0), Moe(skew=1.0, alike=0.5)]
    read = [float(law.visited(64, 4, 16)) for law in laws]
    assert read == sorted(read, reverse=True) and read[0] - read[-1] > 10
    assert all(law.visited(64, 4, 1) == pytest.approx(4) and law.visited(64, 4, 0) == 0 for law in laws)
    assert Moe(alike=1.0).visited(64, 4, 100) == pytest.approx(4)


def test_only_experts_change_and_by_the_law() -> None:
    """Mixtral, batch 4, skew 1: weights of moe.up and moe.down by the ratio of visited experts; all else the same."""
    work, law = Work.decode(4, 100), Moe(skew=1.0)
    plain, skewed = counted(MIXTRAL, [work]), counted(MIXTRAL, [work], law)
    ratio = float(law.visited(8, 2, 4) / Moe().visited(8, 2, 4))
    for kind, tally in plain.items():
        for op, count in tally.items():
            changed = kind == "bytes_weights" and op in ("moe.up", "moe.down")
            assert skewed[kind][op] == (pytest.approx(count * ratio) if changed else count)
    assert ratio < 0.95


def test_a_uniform_law_changes_no_bit() -> None:
    """The variant without options is the base model."""
    work = Work.decode(np.arange(1, 40), 100)
    assert counted(MOE, [Work.decode(5, 9)], Moe()) == counted(MOE, [Work.decode(5, 9)])
    assert np.array_equal(PassCost(MOE, H100, variants=[Moe()]).seconds(work), PassCost(MOE, H100).seconds(work))


def test_speculation_on_experts_is_dear_in_the_middle() -> None:
    """Verifying 4 tokens against one: at batch 1 it reads more experts, at batch 64 all are read anyway."""
    cost = PassCost(model("qwen3-30b-a3b"), H100, variants=[Moe()])
    ratios = [
        float(cost.seconds(Work.decode(b, 100, new=4)) / cost.seconds(Work.decode(b, 100))) for b in (1, 8, 64, 256)
    ]
    assert ratios[0] > 1.8 and ratios[2] < 1.25 and ratios[3] > 1.0


def test_it_composes_with_quantization() -> None:
    """Experts decoded are those read, in whatever order a scenario lists the two."""
    awq, hot = Quantization("awq"), Moe(skew=1.0)
    both = [PassCost(MIXTRAL, H100, variants=v).seconds(Work.decode(4, 100)) for v in ([hot, awq], [awq, hot])]
    assert both[0] == both[1] < PassCost(MIXTRAL, H100, variants=[awq]).seconds(Work.decode(4, 100))
    decoded = [
        float(op.flops)
        for v in ([awq], [hot, awq])
        for op in PassCost(MIXTRAL, H100, variants=v).ops(Work.decode(4, 100))
        if op.name == "moe.up.dequantise"
    ]
    assert decoded[1] / decoded[0] == pytest.approx(float(hot.visited(8, 2, 4) / Moe().visited(8, 2, 4)))


@settings(max_examples=30)
@given(skew=st.sampled_from([0.0, 0.7]), capacity=st.sampled_from([None, 1.0, 1.25]), start=st.integers(1, 2000))
def test_a_round_costs_the_same_alone_and_among_others(skew: float, capacity: float | None, start: int) -> None:
    batch = np.arange(start, start + 4)
    cost = PassCost(MOE, H100, variants=[Moe(skew=skew, capacity=capacity)])
    alone = [float(cost.seconds(Work.decode(int(n), 70))) for n in batch]
    assert cost.seconds(Work.decode(batch, 70)).tolist() == alone


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"skew": -1}, "skew: -1: must be a number from 0 to 10"),
        ({"skew": float("nan")}, "skew: nan"),
        ({"alike": 2}, "alike: 2"),
        ({"capacity": 0}, "capacity: 0"),
        ({"popularity": [1, "x"]}, "popularity: .* must be a list of numbers"),
        ({"popularity": []}, "popularity"),
        ({"popularity": [1, 2], "skew": 1.0}, "skew: 1.0: leave it at 0"),
        ({"hot": 1}, "hot: unknown option"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        variants.build([{"moe": options}])
    assert "\n" not in str(refused.value)


def test_models_without_experts_or_with_others_are_refused() -> None:
    with pytest.raises(ValueError, match="dense has no experts"):
        PassCost(DENSE, H100, variants=[Moe()])
    with pytest.raises(ValueError, match="3 numbers for the 8 experts"):
        PassCost(MIXTRAL, H100, variants=[Moe(popularity=[1, 2, 3])])


def test_quality() -> None:
    assert Moe(skew=2.0).quality == LOSSLESS and Moe(capacity=1.25).quality == UNKNOWN
