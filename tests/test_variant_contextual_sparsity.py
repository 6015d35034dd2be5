"""Contextual sparsity: bytes by hand, batches, look-ahead, Deja Vu's example, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from analytic_models import DENSE, LATENT, MOE, calibrated, device, model
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import Scenario, variants
from sim.analytic.cost import PassCost
from sim.analytic.model import Attention, Ffn, Layer, ModelShape
from sim.analytic.placement import Layout
from sim.analytic.work import Work
from sim.axes import Axis
from sim.speedup import curve
from sim.variants.contextual_sparsity import ContextualSparsity

A100 = device("a100-sxm-80gb")
OPT_175B = ModelShape(
    "opt-175b", 12288, 50272, (Layer(Attention(96, 96, 128, 128, qkv_bias=True, out_bias=True, rope=False),
                                     Ffn(49152, False, True, "relu")),) * 96, tied=True, norm="layer",
)  # fmt: skip


def ops_of(work: Work | None = None, shape: ModelShape = DENSE, **options: Any) -> dict[str, Any]:
    """Ops of a pass (default: one decode at context 9) by name, gathered at full bandwidth."""
    cost = PassCost(shape, A100, variants=[ContextualSparsity(**{"half_chunk_bytes": 0, **options})])
    return {op.name: op for op in cost.ops(work or Work.decode(1, 9))}


def test_neuron_bytes_by_hand() -> None:
    """d 64, 160 neurons, gated: 16 of them in two matrices and one; a predictor of rank 4 beside."""
    ops = ops_of(neurons=16, rank=4)
    assert float(ops["mlp.up"].weight_bytes) == 2 * 16 * 64 * 2 and float(ops["mlp.down"].weight_bytes) == 16 * 64 * 2
    assert float(ops["mlp.predict.project"].weight_bytes) == 64 * 4 * 2
    assert float(ops["mlp.predict.approx"].weight_bytes) == 4 * 160 * 2
    assert float(ops["mlp.predict.select"].flops) == 160 and float(ops["mlp.act"].flops) == 5 * 16


def test_head_bytes_by_hand() -> None:
    """8 query heads in 2 groups of 16 dimensions, one group kept: half of Q, O and the reads, all of K and V."""
    ops = ops_of(neurons=None, heads=1, rank=4)
    plain = {op.name: op for op in PassCost(DENSE, A100).ops(Work.decode(1, 9))}
    assert float(ops["attn.qkv"].weight_bytes) == 64 * (4 * 16 + 2 * 32) * 2
    assert float(ops["attn.out"].weight_bytes) == 4 * 16 * 64 * 2
    for name in ("attn.scores", "attn.values"):
        assert ops[name].kv_read_bytes == plain[name].kv_read_bytes / 2 and ops[name].flops == plain[name].flops / 2
    assert ops["kv.append"].kv_write_bytes == plain["kv.append"].kv_write_bytes
    assert ops["attn.rope"].flops == plain["attn.rope"].flops * (4 + 2) / (8 + 2)


def test_deja_vu_s_example_on_opt_175b() -> None:
    """K = 4,096 of 49,152 neurons and half of the heads, 8 A100s: 2.2x (published: over 2x).

    Each device projects to the predictors' rank by itself, and sums over devices stay as they were.
    """
    sparse = ContextualSparsity(4096, 48, 1024)
    layout = Layout(tensor=8)
    base = PassCost(OPT_175B, A100, layout=layout)
    ours = PassCost(OPT_175B, A100, layout=layout, variants=[ContextualSparsity(4096, 48, 1024, shards=8)])
    assert float(base.seconds(Work.decode(1, 512)) / ours.seconds(Work.decode(1, 512))) == pytest.approx(2.23, abs=0.1)
    one, dense = (PassCost(OPT_175B, A100, variants=v) for v in ([sparse], []))
    read, all_read = (float(c.counts(Work.decode(1, 512))["weight_bytes"]) for c in (one, dense))
    assert read / all_read == pytest.approx(0.35, abs=0.01)


def test_look_ahead_saves_the_kernels_and_not_the_bytes() -> None:
    """With measured terms the predictors' own kernels cost their launch; on a data sheet it makes no difference."""
    work = Work.decode(1, 512)

    def seconds(ahead: bool, measured: bool) -> float:
        where = calibrated(A100) if measured else A100
        return float(PassCost(model("llama-2-7b"), where, variants=[
            ContextualSparsity(0.2, 0.5, lookahead=ahead)]).seconds(work))  # fmt: skip

    saved = seconds(False, True) - seconds(True, True)
    assert saved > 2 * 32 * 2 * 3e-6 and saved < 2 * 32 * 3 * 12e-6  # 3 kernels less in 2 blocks of 32 layers
    assert seconds(False, False) == pytest.approx(seconds(True, False), rel=0.02)


def test_the_union_over_a_batch_kills_it() -> None:
    """A tenth of the neurons: over 2x alone, nothing from 32 rows on; an overlap of 0.5 keeps more."""
    rows = np.arange(1, 65)
    base = PassCost(model("llama-2-7b"), A100).seconds(Work.decode(rows, 64))
    alone, alike = (base / PassCost(model("llama-2-7b"), A100, variants=[ContextualSparsity(0.1, overlap=o)]).seconds(
        Work.decode(rows, 64)) for o in (None, 0.5))  # fmt: skip
    assert alone[0] > 2 and alone[31] < 1.01 and alone.min() > 1 - 1e-9
    assert (np.diff(alone) < 1e-9).all() and alike[15] > alone[15] * 1.1


def test_reads_of_the_cache_stay_saved_at_any_batch() -> None:
    """Heads are chosen by each sequence, so that its own keys and values stay unread whatever others choose."""
    for batch in (1, 64, 1024):
        work = Work.decode(batch, 9)
        half, whole = (PassCost(DENSE, A100, variants=v).counts(work)["kv_bytes"] for v in (
            [ContextualSparsity(None, 1)], []))  # fmt: skip
        written = batch * 3 * 64 * 2
        assert half - written == (whole - written) / 2


def test_prompts_are_multiplied_whole() -> None:
    """A prompt of 512: products of the dense model, and the head predictor beside."""
    ops, plain = (ops_of(Work.prefill(1, 512), neurons=16, heads=1, rank=4),
                  {op.name: op for op in PassCost(DENSE, A100).ops(Work.prefill(1, 512))})  # fmt: skip
    for name, op in plain.items():
        assert float(ops[name].flops) == float(op.flops) and float(ops[name].weight_bytes) == float(op.weight_bytes)


def test_memory_holds_the_predictors() -> None:
    """Rank 4 by 64 + 160 and 64 + 2 numbers in each of 3 layers."""
    base, ours = (PassCost(DENSE, A100, variants=v).bytes_weights for v in ([], [ContextualSparsity(16, 1, 4)]))
    assert ours - base == 3 * 2 * 4 * (64 + 160 + 64 + 2)


def test_each_device_chooses_its_share() -> None:
    """Two devices: half of the neurons each; other shards are refused."""
    cost = PassCost(DENSE, A100, layout=Layout(tensor=2), variants=[ContextualSparsity(16, rank=4, shards=2)])
    [up] = [op for op in cost.ops(Work.decode(1, 9)) if op.name == "mlp.up"]
    assert float(up.flops) == 2 * 64 * 2 * 8
    with pytest.raises(ValueError, match="shards: 1: the layout cuts the model over 2"):
        PassCost(DENSE, A100, layout=Layout(tensor=2), variants=[ContextualSparsity(16)])


def test_a_round_costs_the_same_alone_and_among_others() -> None:
    """With measured terms, ragged contexts, heads and neurons."""
    cost = PassCost(DENSE, calibrated(A100), variants=[ContextualSparsity(16, 1, 4, head_overlap=0.7)])
    batch, context = np.arange(1, 13), np.array([5, 30, 70, 500] * 3)
    alone = [float(cost.seconds(Work.decode(int(b), int(s)))) for b, s in zip(batch, context, strict=True)]
    assert cost.seconds(Work.decode(batch, context)).tolist() == alone


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"neurons": 1.5}, "neurons: 1.5"),
        ({"heads": 0}, "heads: 0"),
        ({"rank": None}, "rank: None"),
        ({"neurons": None}, "leave the variant out"),
        ({"overlap": 2}, "overlap: 2: must be a number from 0 to 1"),
        ({"lookahead": 1}, "lookahead: 1"),
        ({"dense_rows": 0}, "dense_rows: 0"),
        ({"shards": True}, "shards: True"),
        ({"neuron": 3}, "neuron: unknown option.*did you mean 'neurons'"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        variants.build([{"contextual_sparsity": options}])
    assert "\n" not in str(refused.value)


def test_what_does_not_go_is_refused() -> None:
    """Experts, latents, more units than there are."""
    for shape, sparse, said in (
        (MOE, ContextualSparsity(), "neurons: moe has experts"),
        (LATENT, ContextualSparsity(None, 0.5), "heads: latent caches latents"),
        (DENSE, ContextualSparsity(161), "neurons: 161: there are 160"),
        (DENSE, ContextualSparsity(None, 3), "heads: 3: there are 2"),
        (DENSE, ContextualSparsity(overlap=0.01), "overlap: 0.01"),
    ):
        with pytest.raises(ValueError, match=said):
            PassCost(shape, A100, variants=[sparse])


anything = st.none() | st.booleans() | st.integers(-5, 500) | st.floats() | st.text(max_size=6) | st.just([])


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(list(ContextualSparsity.__dataclass_fields__)), anything, max_size=4))
def test_any_options_build_or_are_refused(options: dict[str, Any]) -> None:
    """Nothing but a ValueError of one line, and what is built and fits can be asked."""
    try:
        [built] = variants.build([{"contextual_sparsity": options}])
        cost = PassCost(DENSE, A100, variants=[built])
    except ValueError as refused:
        assert "\n" not in str(refused)
    else:
        assert cost.seconds(Work.decode(2, 9)) > 0


def test_speedup_as_a_policy_falls_with_the_batch() -> None:
    """``policy: contextual_sparsity`` over autoregressive decoding; its quality is unknown."""
    scenario = Scenario.load("chat_h100").model_copy(update={"policy": {"name": "contextual_sparsity", "neurons": 0.1}})
    table = curve(scenario, [Axis("batch", (1, 4, 16, 64))]).table
    assert table["speedup"][0] > 2 and (np.diff(table["speedup"]) <= 1e-12).all()
    assert ContextualSparsity().quality.loss_percent is None
