"""Early exit, other key/value heads, pruning and distillation: shapes and bytes by hand and as published."""

from dataclasses import replace

import numpy as np
import pytest
from analytic_models import CROSS, DENSE, LATENT, MOE, WINDOWED, device, model

from sim import Scenario, variants
from sim.analytic.cost import PassCost
from sim.analytic.work import Work
from sim.build import build_scenario
from sim.quality import LOSSLESS, UNKNOWN
from sim.variants.distilled import Distilled
from sim.variants.early_exit import EarlyExit
from sim.variants.kv_sharing import KvSharing
from sim.variants.pruning import NAMED, Pruning

A100 = device("a100-sxm-80gb")


def same(a, b):
    """Equal but for the name."""
    return replace(a, name="") == replace(b, name="")


# --- early exit -----------------------------------------------------------------------------------


def test_an_exit_runs_its_layers_and_the_head():
    """8 of Llama-3.1-8B's 32 layers: a quarter of what the layers hold, embedding, norm and head whole."""
    whole = model("llama-3.1-8b")
    cut = EarlyExit(8).reshape(whole)
    outer = 2 * 128_256 * 4096 + 4096
    assert cut.total_parameters - outer == (whole.total_parameters - outer) // 4
    assert len(EarlyExit([0, 5, 31]).reshape(whole).layers) == 3
    assert EarlyExit([1, 3]).reshape(WINDOWED).windows == (None,)


def test_an_exit_drafts_with_no_memory_of_its_own():
    """No draft weights, and with a shared cache no draft KV."""
    spec = "policy={name: speculative, draft: {model: self, variants: [early_exit: {layers: 8}], kv: KV}}"
    built = {
        kv: build_scenario(Scenario.load("chat_h100").with_settings([spec.replace("KV", kv)]))
        for kv in ("own", "shared")
    }
    for one in built.values():
        assert dict(one.budget.lines)["draft weights"] == 0
    assert len(built["own"].setup.kv.spans) == 2 and len(built["shared"].setup.kv.spans) == 1


@pytest.mark.parametrize(
    ("layers", "said"), [(33, "33 layers: llama-3.1-8b has 32"), ([0, 40], "41 layers: llama-3.1-8b has 32")]
)
def test_an_exit_beyond_the_model_is_refused(layers, said):
    with pytest.raises(ValueError, match=rf"^variants\.early_exit\.layers: {said}"):
        EarlyExit(layers).reshape(model("llama-3.1-8b"))


@pytest.mark.parametrize("layers", [0, True, [], [2, 1], [1, 1], [-1], "all"])
def test_layers_are_a_number_or_a_rising_list(layers):
    with pytest.raises(ValueError, match=r"variants\.early_exit\.layers: "):
        variants.build([{"early_exit": {"layers": layers}}])


# --- key/value heads ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "groups", "numbers"),
    [("mha", 1, 2 * 128 * 128), ("gqa", 8, 2 * 8 * 128), ("mqa", 1, 2 * 128), ("mla", 1, 512 + 64)],
)
def test_cache_of_a_token_is_that_of_deepseek_v2s_table_1(kind, groups, numbers):
    """Numbers a layer of 128 heads of 128: 2 Hq dh, 2 G dh, 2 dh and 9/2 dh (arXiv 2405.04434, table 1)."""
    shape = KvSharing(kind, groups).reshape(model("deepseek-v3"))
    assert shape.kv_width_per_token == 61 * numbers
    assert 512 + 64 == 9 * 128 // 2


def test_a_what_if_on_llama_2_70b():
    """Its own 8 groups change nothing; MHA's cache is 8 times as large, MQA's an eighth, a latent's 2.25 heads'."""
    whole = model("llama-2-70b")
    assert KvSharing("gqa", 8).reshape(whole) == whole
    width = whole.kv_width_per_token
    for kind, ratio in (("mha", 8), ("mqa", 1 / 8), ("mla", 2.25 / 8)):
        assert KvSharing(kind).reshape(whole).kv_width_per_token == width * ratio


def test_deepseek_v2s_choices_give_deepseeks_attention():
    """512 and 64 of heads of 128, queries through 1,536: DeepSeek-V3's layer out of a plain one."""
    plain = KvSharing("mha").reshape(model("deepseek-v3"))
    again = KvSharing("mla", q_rank=1536).reshape(plain)
    assert [layer.attention for layer in again.layers] == [layer.attention for layer in model("deepseek-v3").layers]


def test_fewer_heads_make_long_contexts_cheaper_and_weights_smaller():
    """Decode at 32,768 tokens: MHA slowest, MQA fastest, what is read as the cache says."""
    shape, work = model("llama-2-7b"), Work.decode(4, 32_768)
    costs = {k: PassCost(shape, A100, variants=[KvSharing(k)]) for k in ("mha", "gqa", "mqa")}
    seconds = [float(c.seconds(work)) for c in costs.values()]
    assert seconds == sorted(seconds, reverse=True) and seconds[0] > 4 * seconds[2]
    assert costs["mqa"].bytes_weights < costs["gqa"].bytes_weights < costs["mha"].bytes_weights


@pytest.mark.parametrize(
    ("variant", "shape", "said"),
    [
        (KvSharing("gqa", 3), DENSE, "groups: 3: must divide the 8 query heads"),
        (KvSharing("mla"), WINDOWED, "kind: mla: windowed has attention sinks"),
        (KvSharing("mla"), CROSS, "kind: mla: cross has an encoder"),
    ],
)
def test_heads_that_cannot_be_are_named(variant, shape, said):
    with pytest.raises(ValueError, match=rf"^variants\.kv_sharing\.{said}"):
        variant.reshape(shape)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "mhq"}, "kind: 'mhq'.*did you mean 'mqa'"),
        ({"groups": 0}, "groups: 0"),
        ({"rope": 7}, "rope: 7: must be even"),
    ],
)
def test_wrong_sharing_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        variants.build([{"kv_sharing": options}])


def test_latent_models_are_costed_like_those_that_ship_so():
    """The latent of the shape zoo, taken apart and put back, costs the same seconds."""
    mla = LATENT.layers[0].attention.latent
    back = KvSharing("mla", rank=mla.kv_rank, rope=mla.rope_dim, q_rank=mla.q_rank)
    work = Work.decode(np.array([1, 8]), 40)
    ours = PassCost(LATENT, A100, variants=[KvSharing("mha"), back]).seconds(work)
    assert ours.tolist() == PassCost(LATENT, A100).seconds(work).tolist()


# --- pruning and distillation ---------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMED)
def test_llama_2_7b_cut_is_the_shape_that_was_released(name):
    """Sheared LLaMA's two shapes out of the 7B model, parameter for parameter."""
    assert same(Pruning(name).reshape(model("llama-2-7b")), model(name))


def test_uneven_layers_by_hand():
    """Heads go with their groups, hidden units by layer, experts' too; four of eight heads of two groups leave one."""
    cut = Pruning(layers=2, heads=[4, 8], ffn=[100, 30]).reshape(DENSE)
    assert [(x.attention.heads, x.attention.kv_heads, x.ffn.width) for x in cut.layers] == [(4, 1, 100), (8, 2, 30)]
    assert [layer.ffn.width for layer in Pruning(ffn=[160, 8, 8]).reshape(MOE).layers] == [160, 8, 8]
    assert Pruning(layers=3).reshape(model("bert-base")).layers == ()
    assert len(Pruning(layers=3).reshape(model("bert-base")).encoder) == 3


def test_evenly_spread_layers_come_from_the_whole_depth():
    """Two of WINDOWED's four alternating layers are of the first kind: 0 and 2."""
    assert Pruning(layers=2).reshape(WINDOWED).layers == (WINDOWED.layers[0], WINDOWED.layers[2])


def test_as_many_units_cut_unevenly_launch_more_kinds_of_kernel():
    """The same parameters read; every layer of its own shape is an op of its own, and none is faster for it."""
    shape = model("llama-2-7b")
    even, uneven = Pruning(ffn=5504), Pruning(ffn=[5504 - 128 * (16 - i) + (128 if i > 15 else 0) for i in range(32)])
    work = Work.decode(1, 100)
    ups = [[op for op in PassCost(shape, A100, variants=[v]).ops(work) if op.name == "mlp.up"] for v in (even, uneven)]
    assert [sum(op.layers for op in found) for found in ups] == [32, 32]
    assert [len(found) for found in ups] == [1, 32]
    read = [sum(op.layers * float(op.weight_bytes) for op in found) for found in ups]
    assert read[0] == read[1]


def test_scattered_zeros_save_no_time_and_no_memory():
    """Half of the weights zero: same seconds, same bytes, and quality that nobody knows."""
    whole, sparse = (PassCost(model("llama-2-7b"), A100, variants=v) for v in ([], [Pruning(unstructured=0.5)]))
    work = Work.decode(np.array([1, 64]), 500)
    assert whole.seconds(work).tolist() == sparse.seconds(work).tolist() and whole.bytes_weights == sparse.bytes_weights
    assert Pruning(unstructured=0.5).quality == UNKNOWN and Pruning().quality == LOSSLESS


@pytest.mark.parametrize(
    ("variant", "shape", "said"),
    [
        (Pruning(layers=9), DENSE, "layers: 9: dense has 3"),
        (Pruning(layers=[0, 3]), DENSE, "layers: .*dense has 3"),
        (Pruning(heads=6), DENSE, "heads: 6: dense has 8 query heads, 4 to a key/value head"),
        (Pruning(heads=12), DENSE, "heads: 12: "),
        (Pruning(ffn=161), DENSE, "ffn: 161: dense has a layer of 160"),
        (Pruning(ffn=[1, 2]), DENSE, "ffn: 2 values: dense, pruned, has 3 layers"),
        (Pruning(d_model=65), DENSE, "d_model: 65: dense is 64 wide"),
        (Pruning(d_model=256), model("gpt2"), "d_model: gpt2 has tensors of the old width .*positions"),
    ],
)
def test_more_than_there_was_is_refused(variant, shape, said):
    with pytest.raises(ValueError, match=rf"^variants\.pruning\.{said}"):
        variant.reshape(shape)


def test_half_of_bert_is_distilbert():
    """66,362,880 parameters: every other layer, no token types, no pooler."""
    student = Distilled().reshape(model("bert-base"))
    assert student.total_parameters == model("distilbert").total_parameters == 66_362_880
    assert student.encoder == model("distilbert").encoder


def test_students_by_hand():
    """Every third of 32 layers is eleven; one layer always remains; each stack of T5 is halved."""
    assert len(Distilled(3).reshape(model("llama-2-7b")).layers) == 11
    assert len(Distilled(99).reshape(DENSE).layers) == 1
    assert [len(s) for s in (lambda m: (m.encoder, m.layers))(Distilled().reshape(model("t5-v1.1-base")))] == [6, 6]
    assert Distilled(1).reshape(DENSE) is DENSE


def test_distilberts_time_needs_a_fixed_part():
    """668 s to 410 s is 1.63x (arXiv 1910.01108, table 3): parameters say 1.65x, layers alone 2.0x."""
    bert, student = model("bert-base"), Distilled().reshape(model("bert-base"))
    assert bert.total_parameters / student.total_parameters == pytest.approx(668 / 410, rel=0.03)
    assert len(bert.encoder) / len(student.encoder) == pytest.approx(668 / 410, rel=0.23)


def test_losses_are_as_published_or_unknown():
    """GLUE 79.5 to 77.0; means of tasks 64.6 to 51.0 and 56.7, 47.2 to 46.6 and 47.1: percent of the first."""
    for quality, before, after in (
        (Distilled().quality, 79.5, 77.0), (Pruning("sheared-llama-1.3b").quality, 64.6, 51.0),
        (Pruning("sheared-llama-2.7b").quality, 64.6, 56.7), (KvSharing("mqa").quality, 47.2, 46.6),
        (KvSharing("gqa", 8).quality, 47.2, 47.1),
    ):  # fmt: skip
        assert quality.loss_percent == pytest.approx(100 * (before - after) / before, abs=0.06)
        assert f"{before} -> {after}" in quality.what
    unknown = (
        Distilled(3),
        Pruning("sheared-llama-1.3b", layers=20),
        KvSharing("gqa", 4),
        KvSharing("mla"),
        EarlyExit(2),
    )
    assert {v.quality for v in unknown} == {UNKNOWN}
