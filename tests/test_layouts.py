"""Layouts: shards that add up to the whole exactly, which ones a shape allows, what a slot and a cache take."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from analytic_models import DENSE, LATENT, MOE, WINDOWED, device, model
from hypothesis import given, settings
from hypothesis import strategies as st
from variant_setup import VARIANTS

from sim.analytic.cost import Layout, PassCost
from sim.analytic.layout import Stage, check_layout, layouts, legal_layouts
from sim.analytic.model import Attention, Ffn, Layer, ModelShape
from sim.analytic.staged import Cost, StagedCost, pass_cost
from sim.analytic.work import Work
from sim.variants import build

H100 = device("h100-sxm")
ZOO = ("llama-3-70b", "mixtral-8x7b", "deepseek-v3", "gpt-oss-120b", "gemma-2-27b", "qwen3-30b-a3b")
COPIED = {"moe.router"}  # every device of a rank scores all experts
LATENTS = {"attn.kv_down", "attn.q_down"}  # and makes the latents of all heads
EXPERTS = {"moe.up", "moe.act", "moe.down"}
FIELDS = ("flops", "weight_bytes", "kv_read_bytes", "kv_write_bytes")
Totals = dict[tuple[str, str], Fraction]


def parts(cost: Cost) -> tuple[PassCost, ...]:
    return cost.stages if isinstance(cost, StagedCost) else (cost,)


def work_of(shape: ModelShape, tokens: int, ranks: int) -> Work:
    """A prompt and as many decodes, of one rank of several with the same work."""
    decode, prompt = Work.decode(tokens, 700, windows=shape.windows), Work.chunk(64, 100, windows=shape.windows)
    one = Work.mixed(decode, prompt)
    return one._replace(everywhere=ranks * one.tokens)


def whole(shape: ModelShape, tokens: int, ranks: int) -> Totals:
    """Exact totals by (op, field) of the model on one device, doing the work of all ranks at once."""
    one = work_of(shape, tokens, 1)
    columns = {k: tuple(ranks * c for c in v) if isinstance(v, tuple) else ranks * v for k, v in one._asdict().items()}
    return _totals(PassCost(shape, H100), Work(**columns), 1)


def shards(shape: ModelShape, layout: Layout, tokens: int) -> Totals:
    """The same, added over all devices of a layout."""
    total: Totals = defaultdict(Fraction)
    work = work_of(shape, tokens, layout.data)
    for one, part in pass_parts(pass_cost(shape, H100, layout=layout), work):
        for key, value in _totals(one, part, layout.stage_devices).items():
            total[key] += value
    return total


def pass_parts(cost: Cost, work: Work) -> list[tuple[PassCost, Work]]:
    return cost._parts(work) if isinstance(cost, StagedCost) else [(cost, work)]


def _totals(cost: PassCost, work: Work, devices: int) -> Totals:
    total: Totals = defaultdict(Fraction)
    for op in cost.ops(work):
        for field in FIELDS:
            total[op.name, field] += devices * op.layers * Fraction(float(getattr(op, field)))
    return total


def expected(totals: Totals, layout: Layout) -> Totals:
    """What devices hold in common is read by each of them: dense weights by every data rank."""
    ranks = layout.data
    return {
        (op, field): value * (ranks if field == "weight_bytes" and op not in {*EXPERTS, "embed"} else 1)
        for (op, field), value in totals.items()
    }  # fmt: skip


def counted(totals: Totals, tensor: int) -> dict[tuple[str, str], Fraction]:
    """Without what every device of a tensor group does for itself, and without collectives."""
    norms = {f"norm.{place}" for place in ("attn", "mlp", "final", "post_attn", "post_mlp")}
    own = norms | {"attn.rope", "embed"} | COPIED | LATENTS
    return {
        key: Fraction(value)
        for key, value in totals.items()
        if value and key[0] not in (own if tensor > 1 else ()) and key[0] not in ("all_reduce", "send")
        and not key[0].startswith(("moe.dispatch", "moe.combine"))
    }  # fmt: skip


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("devices", [2, 8])
def test_shards_of_every_legal_layout_add_up_to_the_whole_exactly(name: str, devices: int) -> None:
    """FLOPs, weights and KV of all ops over all devices: rational numbers, equal to the last bit."""
    shape = bare(model(name))
    legal = [one for one in legal_layouts(shape, devices) if not _replicates(shape, one.tensor)]
    assert len(legal) >= 2
    for layout in legal:
        got = shards(shape, layout, 24)
        want = expected(whole(shape, 24, layout.data), layout)
        assert counted(got, layout.tensor) == counted(want, layout.tensor), layout


def bare(shape: ModelShape) -> ModelShape:
    """Ten layers without the vectors that every device of a tensor group keeps: biases of outputs, query/key norms."""
    layers = shape.layers[:5] + shape.layers[-5:]
    attention = [replace(one.attention, out_bias=False, qk_norm=0) for one in layers]
    ffns = [replace(one.ffn, bias=False) for one in layers]
    parts = zip(layers, attention, ffns, strict=True)
    return replace(shape, vocab=1024, layers=tuple(replace(one, attention=a, ffn=f) for one, a, f in parts))


def _replicates(shape: ModelShape, tensor: int) -> bool:
    """Where KV heads are fewer than devices, or a latent is shared, some of the cache is held twice."""
    blocks = [layer.attention for layer in shape.layers]
    return tensor > 1 and any(b.latent is not None or b.kv_heads < tensor for b in blocks)


@st.composite
def shapes(draw: st.DrawFn) -> ModelShape:
    """Small models with experts or without, windows or not, in any order."""
    heads = draw(st.sampled_from([2, 4, 6]))
    block = Attention(heads, heads, 8, 8)
    blocks = [block, replace(block, window=16)]
    ffns = [Ffn(48), Ffn(24, experts=12, experts_per_token=3, shared_width=24)]
    pick = st.builds(Layer, st.sampled_from(blocks), st.sampled_from(ffns))
    return ModelShape("drawn", 32, 96, tuple(draw(st.lists(pick, min_size=1, max_size=7))))


@settings(max_examples=12, deadline=None)
@given(shapes(), st.integers(1, 12), st.integers(1, 9))
def test_shards_of_drawn_models_add_up(shape: ModelShape, devices: int, tokens: int) -> None:
    """Any model, any count of devices, any legal layout; thirds are not binary fractions, hence the last bits."""
    for layout in legal_layouts(shape, devices):
        got = counted(shards(shape, layout, tokens), layout.tensor)
        want = counted(expected(whole(shape, tokens, layout.data), layout), layout.tensor)
        assert got.keys() == want.keys()
        assert all(float(got[key]) == pytest.approx(float(want[key]), rel=1e-13) for key in want), layout


@pytest.mark.parametrize("layers, stages, cut", [(80, 8, [10] * 8), (61, 4, [16, 15, 15, 15]), (3, 5, [1, 1, 1, 0, 0])])
def test_layers_are_cut_as_evenly_as_possible(layers: int, stages: int, cut: list[int]) -> None:
    """Consecutive, none lost, and what is left over goes to the first stages, since the last has the head."""
    shape = ModelShape("m", 8, 8, tuple(Layer(Attention(1, 1, 8, 8), Ffn(8 + i)) for i in range(layers)))
    held = [Stage(i, stages).of(shape).layers for i in range(stages)]
    assert [len(one) for one in held] == cut
    assert tuple(layer for one in held for layer in one) == shape.layers


def test_embedding_and_head_are_held_by_the_ends() -> None:
    """The first stage gathers, the last one has the head; where they are tied the table is held twice."""
    for tied in (False, True):
        shape = replace(DENSE, tied=tied, extra=(("positions", 640),))
        cost = pass_cost(shape, H100, layout=Layout(pipeline=3))
        assert isinstance(cost, StagedCost)
        layers = {"attn.qkv", "attn.out", "mlp.up", "mlp.down", "norm"}
        held = [set(one.weight_bytes_by_op) - layers for one in cost.stages]
        assert held == [{"embed", "positions"}, set(), {"embed"} if tied else {"logits"}]
        names = [[op.name for op in one.ops(Work.decode(2, 9))] for one in cost.stages]
        assert [("embed" in n, "logits" in n, n.count("send")) for n in names] == [
            (True, False, 1), (False, False, 1), (False, True, 0),
        ]  # fmt: skip
        table = shape.vocab * shape.d_model * 2
        total = sum(one.bytes_weights for one in cost.stages)
        assert total == PassCost(shape, H100).bytes_weights + (table if tied else 0)


def test_attention_kinds_keep_their_place_in_every_stage() -> None:
    """A windowed and a full layer in stages of their own see the pairs of their own kind."""
    cost = pass_cost(WINDOWED, H100, layout=Layout(pipeline=4))
    assert isinstance(cost, StagedCost)
    work = Work(3, 3, (100, 7000), (90, 6000))
    near, far = (one.counts(part)["kv_bytes"] for one, part in cost._parts(work)[:2])
    assert near == (90 + 3) * 2 * 2 * 16 * 2 and far == (6000 + 3) * 2 * 2 * 16 * 2


def test_a_slot_is_the_slowest_stage() -> None:
    """Three layers in two stages: the first has two of them and sends; elementwise over rounds."""
    cost = pass_cost(DENSE, H100, layout=Layout(pipeline=2))
    assert isinstance(cost, StagedCost)
    work = Work.decode(64, 3000)
    assert float(cost.seconds(work)) == max(float(one.seconds(part)) for one, part in cost._parts(work))
    send = [op for op in cost.ops(work) if op.name == "send"]
    assert [op.link_bytes for op in send] == [64 * 64 * 2]


def test_experts_over_data_ranks_by_hand() -> None:
    """Mixtral on four devices, two data ranks of two lanes, experts in four groups; each rank has 16 tokens of 32.

    A group has two of eight experts; a token meets it with 1 - C(6,2)/C(8,2) = 13/28. Each lane sends that share of the
    rank's tokens to its one peer, there and back.
    """
    shape, layout = model("mixtral-8x7b"), Layout(tensor=2, data=2, expert=4)
    cost = PassCost(shape, H100, layout=layout)
    work = Work.decode(16, 500)._replace(everywhere=32)
    ops = {op.name: op for op in cost.ops(work)}
    assert ops["moe.up"].flops == 2 * 4096 * (2 * 14336) * 32 * 2 / 4
    seen = 8 * (1 - (1 - 2 / 8) ** 32)
    assert ops["moe.up"].weight_bytes == pytest.approx(seen / 4 * 2 * 4096 * 14336 * 2)
    for name in ("moe.dispatch", "moe.combine"):
        assert ops[name].link_bytes == pytest.approx(16 * 13 / 28 * 4096 * 2)
        assert (ops[name].group, ops[name].driver) == (2, "tokens")
    assert cost.weight_bytes_by_op["moe.up"] == 32 * 2 * 2 * 4096 * 14336 * 2
    assert cost.weight_bytes_by_op["attn.qkv"] == PassCost(shape, H100).weight_bytes_by_op["attn.qkv"] / 2
    alone = PassCost(shape, H100, layout=Layout(tensor=4)).weight_bytes_by_op["moe.up"]
    assert alone == cost.weight_bytes_by_op["moe.up"]


def test_data_ranks_without_expert_groups_gather_and_scatter() -> None:
    """One group of all devices: every token goes to every other rank, (d - 1) of a rank's tokens from each device."""
    cost = PassCost(MOE, H100, layout=Layout(data=4, expert=1))
    dispatch = next(op for op in cost.ops(Work.decode(8, 99)._replace(everywhere=32)) if op.name == "moe.dispatch")
    assert dispatch.link_bytes == 3 * 8 * 64 * 2


@pytest.mark.parametrize("expert", [2, 4, 8])
def test_expert_groups_hold_and_do_as_much_as_cut_experts(expert: int) -> None:
    """The same bytes and FLOPs a device; fewer, wider products, whose inputs are not copied to all."""
    work = Work.decode(64, 1000)
    cut, dealt = (PassCost(model("qwen3-30b-a3b"), H100, layout=Layout(tensor=4 if expert < 8 else 8, expert=e))
                  for e in (1, expert if expert < 8 else 8))  # fmt: skip
    for field in ("flops", "weight_bytes", "link_bytes"):
        assert dealt.counts(work)[field] == pytest.approx(cut.counts(work)[field], rel=1e-12)
    assert dealt.bytes_weights == cut.bytes_weights
    assert dealt.counts(work)["onchip_bytes"] < cut.counts(work)["onchip_bytes"]


@pytest.mark.parametrize(
    ("shape", "layout", "said"),
    [
        (DENSE, Layout(tensor=3), r"layout\.tensor: 3 does not divide the attention heads \(8\)"),
        (DENSE, Layout(expert=2, tensor=2), r"layout\.expert: 2: dense has no experts to share; use tensor"),
        (DENSE, Layout(data=2), r"layout\.data: 2: dense has no experts to share; use replicas"),
        (DENSE, Layout(pipeline=4), r"layout\.pipeline: 4 stages for the 3 layers of dense"),
        (MOE, Layout(data=3, expert=3), r"layout\.expert: 3 does not divide the experts \(16\)"),
        (MOE, Layout(data=5), r"layout\.tensor: 5 does not divide the width of an expert, .* \(48\)"),
        (LATENT, Layout(tensor=8), r"layout\.tensor: 8 does not divide the attention heads \(4\)"),
    ],
)
def test_why_a_layout_is_not_legal(shape: ModelShape, layout: Layout, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_layout(shape, layout)


def test_a_model_with_an_encoder_has_no_stages() -> None:
    with pytest.raises(ValueError, match="has an encoder"):
        check_layout(model("t5-v1.1-base"), Layout(pipeline=2))


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"tensor": 2, "expert": 3}, r"layout\.expert: 3 does not divide the 2 devices of a stage"),
        ({"tensor": 16, "node_devices": 8}, r"layout\.network_GBps: missing: 16 devices are more than the 8"),
        ({"node_devices": 0}, r"layout\.node_devices: 0 must be"),
    ],
)
def test_layouts_that_no_shape_allows(said: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Layout(**said)


def test_all_layouts_of_eight_devices_have_a_verdict() -> None:
    """Every way to write 8 as t*p*d, and every divisor of t*d: 40 in all; tensor 8 of Llama-3-70B is legal."""
    verdicts = layouts(model("llama-3-70b"), 8)
    assert len(verdicts) == len({one.layout for one in verdicts}) == 30
    legal = [one.layout for one in verdicts if one.reason is None]
    assert legal == [Layout(8), Layout(4, 2), Layout(2, 4), Layout(1, 8)]
    assert all(one.layout.devices == 8 for one in verdicts)
    moe = legal_layouts(model("deepseek-v3"), 8)
    assert Layout(1, 1, 8, 8) in moe and Layout(8, 1, 8) in moe and Layout(2, 2, 4, 2) in moe
    with pytest.raises(ValueError, match="devices: 0"):
        layouts(MOE, 0)


def test_wires_between_nodes_are_slower() -> None:
    """Tensor 16 in nodes of 8 is paced by the network; tensor 8 of two stages crosses it only between the stages."""
    shape = replace(model("llama-3-70b"), vocab=128_000)
    wide = Layout(tensor=16, node_devices=8, network_GBps=50, network_latency_us=4)
    ops = PassCost(shape, H100, layout=wide).ops(Work.decode(4, 100))
    wires = [op for op in ops if op.unit == "link"]
    assert {op.link_Bps for op in wires} == {50e9} and {op.link_latency_s for op in wires} == {4e-6}
    deep = pass_cost(shape, H100, layout=replace(wide, tensor=8, pipeline=2))
    rates = {op.name: op.link_Bps for op in deep.ops(Work.decode(4, 100)) if op.unit == "link"}
    assert rates == {"all_reduce": None, "send": 50e9}
    near = pass_cost(shape, H100, layout=replace(wide, tensor=4, pipeline=4))
    assert isinstance(near, StagedCost)
    sends = [op.link_Bps for op in near.ops(Work.decode(4, 100)) if op.name == "send"]
    assert sends == [None, 50e9, None]
    alone = PassCost(shape, H100, layout=Layout(tensor=16)).seconds(Work.decode(4, 100))
    gap = float(PassCost(shape, H100, layout=wide).seconds(Work.decode(4, 100)) - alone)
    sent = 160 * 2 * 15 / 16 * 4 * 8192 * 2
    assert gap == pytest.approx(160 * 4e-6 + sent / 50e9 - sent / 450e9)


@pytest.mark.parametrize(
    "variant", [(name, i) for name, options in VARIANTS.items() for i in range(len(options))], ids=str
)
def test_variants_are_cut_with_their_model(variant: tuple[str, int]) -> None:
    """Whatever rewrites a pass rewrites each stage of it: FLOPs and bytes of all stages are those of the whole."""
    name, number = variant
    asked = build([{name: VARIANTS[name][number]}])
    seen = 0
    for shape in (DENSE, replace(DENSE, layers=DENSE.layers[:2]), MOE, WINDOWED):
        with suppress(ValueError):
            one, cut = (
                PassCost(shape, H100, variants=asked),
                pass_cost(shape, H100, layout=Layout(pipeline=2), variants=asked),
            )
            work = work_of(one.shape, 6, 1)
            ours, whole = cut.counts(work), one.counts(work)
            seen += 1
            for kind in ("flops", "vector_flops", "weight_bytes", "kv_bytes"):
                assert ours[kind] == pytest.approx(whole[kind], rel=1e-9), kind
    assert seen


@pytest.mark.parametrize("layout", [Layout(tensor=4), Layout(pipeline=4), Layout(tensor=2, pipeline=2)])
def test_the_cache_is_divided_by_stages_and_heads(layout: Layout) -> None:
    """Llama-3-70B on four devices: a quarter of a token's 320 KiB on each, however it is cut."""
    cost = pass_cost(model("llama-3-70b"), H100, layout=layout)
    assert sum(cost.kv_bytes_per_token) == 80 * 2 * 8 * 128 * 2 / 4
