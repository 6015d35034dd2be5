"""Kinds of attention: what each multiplies, reads and keeps, by hand; where it applies; the table of the lectures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from analytic_models import CROSS, DENSE, LATENT, SMALL, device, model
from hypothesis import given, settings
from hypothesis import strategies as st
from variant_counting import counted

from sim import variants
from sim.analytic.cost import PassCost
from sim.analytic.model import ModelShape
from sim.analytic.work import Work
from sim.build import build_scenario
from sim.quality import LOSSLESS, UNKNOWN
from sim.run import simulate
from sim.scenario import Scenario
from sim.variants.attention import ENCODERS, KINDS, LRA, Attention
from sim.variants.kv_eviction import KvEviction

A100 = device("a100-sxm-40gb")
BERT = model("bert-base")
LLAMA = model("llama-3.1-8b")


def encoded(kind: str, tokens: int = 1024, **options: Any) -> dict[str, dict[str, float]]:
    tally = counted(BERT, [Work.encode(1, tokens)], Attention(kind, **options))
    return {kind: {op.removeprefix("encoder."): n for op, n in tally[kind].items()} for kind in tally}


@pytest.mark.parametrize(
    ("kind", "options", "pairs"),
    [
        ("standard", {}, 1024 * 1024),
        ("block_sparse", {"density": 0.25}, 1024 * 1024 / 4),
        ("local", {"window": 100}, 1024 * 100),
        ("local", {"window": 5000}, 1024 * 1024),
        ("linformer", {"rank": 128}, 1024 * 128),
        ("reformer", {"chunk": 64, "rounds": 4}, 1024 * 2 * 64 * 4),
        ("smyrf", {"chunk": 32, "rounds": 8}, 1024 * 32 * 8),
    ],
)
def test_pairs_that_an_encoder_multiplies(kind: str, options: dict[str, Any], pairs: float) -> None:
    """BERT-base, 12 layers of 12 heads of 64, 1,024 tokens: scores 2 * 768 a pair, softmax 5 * 12."""
    flops = encoded(kind, **options)["flops"]
    assert flops["attn.scores"] == flops["attn.values"] == 12 * 2 * 768 * pairs
    assert flops["attn.softmax"] == 12 * 5 * 12 * pairs


def test_what_comes_before_fewer_pairs() -> None:
    """Linformer projects K and V of every token to 128 rows; Reformer hashes Q and K into 64 buckets, twice."""
    flops = encoded("linformer", rank=128)["flops"]
    assert flops["attn.project"] == 12 * 2 * 128 * 1024 * 2 * 768
    assert encoded("linformer", rank=128)["bytes_weights"]["attn.project"] == 12 * 2 * 128 * 512 * 4
    assert encoded("reformer", buckets=64, rounds=2)["flops"]["attn.hash"] == 12 * 2 * 32 * 2 * 1024 * 2 * 768


def test_linear_attention_by_hand() -> None:
    """For every token and head: a 64 x 65 state updated by keys, asked by queries; no scores."""
    flops = encoded("linear")["flops"]
    assert flops["attn.linear"] == 12 * 1024 * 2 * 24 * 64 * 65
    assert not any(flops.get(f"attn.{part}") for part in ("scores", "softmax", "values"))
    assert encoded("performer", features=256)["flops"]["attn.project"] == 12 * 1024 * 2 * 64 * 256 * 24


def test_a_state_takes_the_place_of_the_cache() -> None:
    """Llama-3.1-8B: 8 states of 128 x 129 a layer, as much as 65 tokens; read and written whole in every step."""
    linear = Attention("linear")
    assert linear.state_tokens(LLAMA.layers[0].attention) == 65
    tally = counted(LLAMA, [Work.decode(4, 9000, windows=(66,))], linear)
    assert tally["bytes_kv"] == {**dict.fromkeys(tally["bytes_kv"], 0), "attn.state": 2 * 4 * 32 * 8 * 128 * 129 * 4}
    cost = PassCost(LLAMA, A100, variants=[linear])
    assert not cost._is_loose
    short, long = (float(cost.seconds(Work.decode(8, s, windows=(66,)))) for s in (1000, 100_000))
    assert short == long < float(PassCost(LLAMA, A100).seconds(Work.decode(8, 10_000)))


def test_flash_is_what_there_is_and_standard_writes_scores() -> None:
    """flash changes nothing; standard is the core's own standard attention, op by op."""
    work = Work.chunk(300, 100)
    plain, flash = PassCost(DENSE, A100), PassCost(DENSE, A100, variants=[Attention("flash")])
    assert plain.seconds(work) == flash.seconds(work)
    own, ours = PassCost(DENSE, A100, attention="standard"), PassCost(DENSE, A100, variants=[Attention("standard")])
    for done in (work, Work.decode(5, 77)):
        assert own.seconds(done) == pytest.approx(float(ours.seconds(done)), rel=1e-12)
        assert own.counts(done) == pytest.approx(ours.counts(done))
    assert own.seconds(work) > plain.seconds(work)


def test_standard_attention_moves_its_scores_four_times() -> None:
    """GPT-2 medium's attention, batch 64, 1,024 tokens, forward: 4 * 64 * 16 * 1024^2 * 2 bytes more than Q and O.

    Figure 2 of arXiv 2205.14135 has 40.3 GB against 4.4 GB, forward and backward; forward alone ours are 8.9 and 0.27.
    """
    shape = model("bert-large")  # 16 heads of 64, like GPT-2 medium

    def moved(kind: str) -> float:
        cost = PassCost(shape, A100, variants=[Attention(kind)])
        bounds = cost.bounds(Work.encode(64, 1024))
        names = ("encoder.attn.scores", "encoder.attn.softmax", "encoder.attn.values")
        return sum(float(b.memory_s) for kernel, b in bounds if kernel[0].name in names) * A100.memory_Bps / 24

    scores, rows = 4 * 64 * 16 * 1024**2 * 2, 2 * 64 * 1024 * 1024 * 2
    assert moved("standard") == pytest.approx(scores + rows)
    assert rows <= moved("flash") < 2 * rows < moved("standard") / 9.2


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ENCODERS])
@pytest.mark.parametrize("shape", [s for s in SMALL if s is not LATENT], ids=lambda s: s.name)
@settings(max_examples=5)
@given(start=st.integers(1, 500))
def test_a_round_costs_the_same_alone_and_among_others(kind: str, shape: ModelShape, start: int) -> None:
    cost = PassCost(shape, A100, variants=[Attention(kind, window=50)])
    windows, batch = cost.shape.windows, np.arange(start, start + 3)
    alone = [float(cost.seconds(Work.decode(int(n), 70, windows=windows))) for n in batch]
    many = Work.decode(batch, 70, windows=windows)
    assert cost.seconds(many).tolist() == alone
    assert sum(cost.causes(many).values()) == pytest.approx(alone, rel=1e-9)


@pytest.mark.parametrize("kind", ENCODERS)
def test_encoders_cost_the_same_alone_and_among_others(kind: str) -> None:
    cost = PassCost(CROSS, A100, variants=[Attention(kind)])
    tokens = np.array([3, 50, 700])
    many = Work.encode(2, tokens)
    alone = [float(cost.seconds(Work.encode(2, int(n)))) for n in tokens]
    assert cost.seconds(many).tolist() == alone


@pytest.mark.parametrize("kind", ["local", "linear", "performer", "block_sparse"])
def test_a_service_runs_with_it(kind: str) -> None:
    """A run, and the memory of long prompts where reads saturate."""
    base = {"model": "llama-3.1-8b", "hardware": "h100-sxm",
            "workload": {"requests": 10, "rate": 5, "prompt": 2000, "output": 10}}  # fmt: skip
    one = Scenario.model_validate({**base, "variants": [{"attention": {"kind": kind}}]})
    assert simulate(one).complete
    kv = build_scenario(one).setup.kv
    assert (kv.bytes_of(10_000) == kv.bytes_of(2_000)) == (kind != "block_sparse")


def test_where_it_does_not_apply_it_says_why() -> None:
    for shape, v, said in (
        (LLAMA, Attention("linformer"), "sees all of a text at once, and llama-3.1-8b has no encoder"),
        (LATENT, Attention("linear"), "latent attention; allowed: flash"),
    ):
        with pytest.raises(ValueError, match=said):
            PassCost(shape, A100, variants=[v])
    with pytest.raises(ValueError, match="linear attention keeps a state"):
        variants.check_clashes([Attention("linear"), KvEviction()])
    variants.check_clashes([Attention("flash"), KvEviction()])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "flesh"}, "kind: 'flesh'.*did you mean 'flash'"),
        ({"density": 0}, "density: 0: must be a share"),
        ({"window": 1}, "window: 1"),
        ({"rank": True}, "rank: True"),
        ({"features": 0}, "features: 0"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        variants.build([{"attention": options}])
    assert "\n" not in str(refused.value)


def test_quality_is_that_of_the_lectures_table() -> None:
    """Mean accuracy of Long Range Arena; exact kinds lose nothing; other options have not been measured."""
    assert Attention("flash").quality == Attention("standard").quality == LOSSLESS
    assert Attention("linformer").quality.loss_percent == pytest.approx(100 * (59.3 - 54.9) / 59.3, abs=0.05)
    assert Attention("linear").quality.loss_percent is not None and Attention("linear").quality.loss_percent < 0
    assert Attention("linformer", rank=8).quality == UNKNOWN
    assert set(LRA) == set(KINDS)
