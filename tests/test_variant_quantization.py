"""Quantization: bytes and work against the witness that really packs; error by closed form; where it stops paying."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from analytic_models import CROSS, DENSE, SMALL, device, model
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import Scenario, simulate, variants
from sim.analytic.cost import PassCost
from sim.analytic.model import Attention, Ffn, Layer, ModelShape
from sim.analytic.ops import ops
from sim.analytic.placement import Layout
from sim.analytic.precision import FORMATS, Precision
from sim.analytic.work import Work
from sim.build import build_scenario
from sim.quality import UNKNOWN
from sim.reference.checkpoint import load, shipped_names
from sim.reference.packed_matrix import Rule, pack
from sim.reference.quantized import Bits, Quantized, rounded_weights
from sim.validation.counts import FP32, KINDS, measured, mismatches, ragged
from sim.validation.stand_in import stand_in
from sim.validation.tokens import held_out
from sim.variants.number_grid import CODEBOOKS, Grid, gaussian_noise
from sim.variants.quantization import NAMED, QUALITY, Quantization

A100 = device("a100-sxm-80gb")
WEIGHT_FORMATS = [name for name in NAMED if name != "kivi"]


def counted(shape, works, variant):
    """What the simulator counts with the variant, in the witness's float32 with scores written out."""
    tally = {kind: Counter() for kind in KINDS}
    for work in works:
        done = ops(shape, variant.reformat(FP32), work, attention="standard")
        for op in variant.rewrite(done, work):
            values = (op.flops, op.weight_bytes, op.kv_read_bytes + op.kv_write_bytes, op.activation_bytes)
            for kind, value in zip(KINDS, values, strict=True):
                tally[kind][op.name] += op.layers * value
    return tally


def bits_of(v):
    """The same request as the witness takes it."""
    grid, bits = v.grid, v._said("activations", 16)
    rule = None if grid is None else Rule(grid.bits, grid.group, grid.codebook, grid.zero_point, grid.double)
    narrow = None if bits == 16 else bits
    return Bits(rule, narrow, v.head, v.embedding, outliers=v._said("outliers", 0.0),
                separate=v.dequantise == "separate", tile_rows=v.tile_rows)  # fmt: skip


@st.composite
def shapes(draw):
    """Dense decoders with biases, query norms, grouped heads and widths that no group divides."""
    dim, groups = 2 * draw(st.integers(1, 3)), draw(st.integers(1, 2))
    kind = Attention(groups * draw(st.integers(1, 2)), groups, dim, draw(st.integers(2, 6)),
                     qkv_bias=draw(st.booleans()), out_bias=draw(st.booleans()),
                     qk_norm=dim if draw(st.booleans()) else 0)  # fmt: skip
    ffn = Ffn(draw(st.integers(2, 40)), gated=draw(st.booleans()), bias=draw(st.booleans()))
    return ModelShape("any", 4 * draw(st.integers(1, 8)), draw(st.integers(4, 40)), (Layer(kind, ffn),) * 2)


@st.composite
def requests(draw):
    """A named format, or any legal bits."""
    common = {
        "dequantise": draw(st.sampled_from(["serial", "overlapped", "separate"])),
        "tile_rows": draw(st.sampled_from([1, 4, 128])),
        "head": draw(st.sampled_from([None, 8])),
        "embedding": draw(st.sampled_from([None, 4, 8])),
    }
    if draw(st.booleans()):
        return Quantization(draw(st.sampled_from(WEIGHT_FORMATS)), **common)
    group = draw(st.sampled_from(["tensor", "channel", 1, 5, 16, 128]))
    codebook = draw(st.sampled_from(["linear", "kmeans"]))
    bits = draw(st.integers(2, 8 if codebook == "linear" else 3))
    zero = codebook == "linear" and draw(st.booleans())
    may = codebook == "linear" and not zero and isinstance(group, str)
    narrow = draw(st.integers(bits, 8)) if may and draw(st.booleans()) else None
    outliers = draw(st.sampled_from([None, 0.1])) if narrow else None
    return Quantization(weights=bits, activations=narrow, group=group, codebook=codebook, zero_point=zero,
                        outliers=outliers, **common)  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(
    shape=shapes(),
    v=requests(),
    passes=st.lists(st.lists(st.integers(0, 6), min_size=2, max_size=2), min_size=1, max_size=3),
    rows=st.sampled_from(["last", "all", "none"]),
)
def test_every_op_counts_as_the_witness_that_packs_and_decodes(shape, v, passes, rows):
    """FLOPs (decoding, rounding, rescaling, outliers) and bytes (codes, scales, zeros, tables), exactly."""
    twin = Quantized.of(stand_in(shape), bits_of(v))
    cache, works = twin.new_cache(2), []
    for news in (p for p in passes if sum(p)):
        logits = {"last": sum(n > 0 for n in news), "all": sum(news), "none": 0}[rows]
        works.append(ragged(news, cache.lengths.tolist(), shape.windows, logits))
        twin.meter.sample(twin.forward([np.arange(n) % shape.vocab for n in news], cache, rows=rows))
    assert not [str(m) for m in mismatches(counted(shape, works, v), measured(twin.meter))]


def test_the_comparison_catches_a_forgotten_zero_point_and_a_decoding_done_once():
    """Faults planted in the request: the counts above would differ."""
    shape, work = DENSE, [Work.decode(5, 10)]
    right = counted(shape, work, Quantization("awq", tile_rows=2))
    for wrong in ({"zero_point": False}, {"group": 64}, {"tile_rows": 5}):
        assert mismatches(counted(shape, work, replace(Quantization("awq", tile_rows=2), **wrong)), right)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 70), st.integers(1, 9), st.sampled_from(["tensor", "channel", 1, 7, 32, 64]),
       st.sampled_from(list(CODEBOOKS)), st.booleans(), st.data())  # fmt: skip
def test_bytes_of_a_matrix_are_those_of_the_arrays_stored(k, n, group, codebook, flag, data):
    """Codes, scales, zero points and tables of any matrix, groups that do not divide it included."""
    bits = data.draw(st.sampled_from(CODEBOOKS[codebook].widths))
    zero, double = flag and codebook == "linear", flag and codebook == "nf4"
    w = np.random.Generator(np.random.Philox(k * n)).normal(size=(k, n))
    stored = pack(w, Rule(bits, group, codebook, zero, double))
    grid = Grid(bits, group, codebook, zero, double)
    assert grid.matrix_bytes(k, n) == stored.nbytes
    if isinstance(group, int) and k % group == 0 and k * n * bits % 8 == 0 and not zero and not double:
        assert FORMATS[grid.spelled].stored_bytes * k * n == pytest.approx(stored.nbytes)


def test_bytes_by_hand() -> None:
    """AWQ, 4096 x 4096: half a byte a number, and 20 bits for each of 32 groups a column; ternary: a quarter."""
    assert Grid(4, 128, zero_point=True).matrix_bytes(4096, 4096) == 4096 * 4096 // 2 + 32 * 4096 * 20 // 8
    assert Grid(2, "tensor", "ternary").matrix_bytes(4096, 4096) == 4096 * 4096 // 4 + 4
    assert Grid(8).matrix_bytes(4096, 1024) == 4096 * 1024 + 2 * 1024
    assert Grid(2, 16, "kmeans").matrix_bytes(16, 1) == (16 * 2 + 4 * 32) // 8
    assert FORMATS[Grid(4, 128, zero_point=True).spelled].stored_bits == FORMATS["int4_g128"].stored_bits


@pytest.mark.parametrize("bits", [4, 5, 6, 8])
@pytest.mark.parametrize("group", [32, 128, 1024])
def test_rounding_gaussian_weights_errs_as_the_closed_form_says(bits, group):
    """Relative RMS error sqrt(E[max^2] / 12) / (2^(b-1) - 1), within 3 % on 262,144 numbers."""
    w = np.random.Generator(np.random.Philox(3)).normal(size=(1024, 256))
    error = pack(w, Rule(bits, group)).decode() - w
    assert np.sqrt((error**2).mean()) == pytest.approx(gaussian_noise(bits, group), rel=0.03)


@pytest.mark.parametrize(("bits", "distortion"), [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497)])
def test_k_means_tables_reach_the_published_optimum_for_gaussian_numbers(bits, distortion):
    """Mean square errors of Max 1960 (IRE Trans. Inform. Theory 6), table I: 2 to 16 levels, within 3 %."""
    w = np.random.Generator(np.random.Philox(4)).normal(size=(300, 200))
    assert ((pack(w, Rule(bits, "tensor", "kmeans")).decode() - w) ** 2).mean() == pytest.approx(distortion, rel=0.03)


@pytest.mark.parametrize("format", WEIGHT_FORMATS)
def test_packing_what_was_packed_changes_nothing(format):
    """Numbers on the grid stay there (ternary: the mean magnitude moves, signs and zeros stay)."""
    w = np.random.Generator(np.random.Philox(5)).normal(size=(96, 8))
    rule = bits_of(Quantization(format)).weights
    once = pack(w, rule).decode()
    twice = pack(once, rule).decode()
    if rule.codebook == "ternary":
        assert (np.sign(twice) == np.sign(once)).all()
    else:
        assert np.abs(twice - once).max() < 0.01 * np.abs(w).max()


def test_narrow_products_err_as_rounding_of_both_sides_predicts() -> None:
    """W8A8 on Gaussians: noise^2 = weights' noise^2 + inputs' noise^2, within 5 %; outliers apart leave less."""
    rng = np.random.Generator(np.random.Philox(6))
    shape = ModelShape("one", 512, 64, (Layer(Attention(8, 8, 64, 64), Ffn(512)),))
    x = rng.normal(size=(64, 512)).astype(np.float32)
    base = stand_in(shape)
    weights = {**base.weights, "layers.0.attn.out": rng.normal(size=(512, 512)).astype(np.float32)}
    base = replace(base, weights=weights)
    truth = x @ weights["layers.0.attn.out"]

    def error(x: np.ndarray, truth: np.ndarray, **options: object) -> float:
        twin = Quantized.of(base, bits_of(Quantization("smoothquant", **options)))
        out = twin.linear("attn.out", "layers.0.", x)
        return float(np.sqrt(((out - truth) ** 2).mean() / (truth**2).mean()))

    assert error(x, truth) == pytest.approx(2**0.5 * gaussian_noise(8, 512), rel=0.05)
    x[:, 7] *= 60
    truth = x @ weights["layers.0.attn.out"]
    assert error(x, truth, outliers=0.001) < error(x, truth) / 5


def test_rates_are_those_of_the_arithmetic() -> None:
    """Weight-only multiplies wide; W8A8 in int8 or fp8; FP4 blocks in fp4; the head stays wide."""
    expected = {"awq": "bf16", "nf4": "bf16", "smoothquant": "int8", "bitnet": "int8", "fp8": "fp8", "nvfp4": "fp4"}
    for name, rate in expected.items():
        cost = PassCost(model("llama-3.1-8b"), A100, variants=[Quantization(name)])
        formats = {op.name: op.format for op in cost.ops(Work.decode(1, 10)) if op.unit == "tensor"}
        assert formats["mlp.up"] == rate and formats["logits"] == "bf16" and formats["attn.scores"] == "bf16"


def test_memory_and_cache_shrink_as_the_bits_say() -> None:
    """Llama-3.1-8B: 6.98 B layer weights at 4.15625 bits, 1.05 B others at 16; a 2-bit cache with 3 bits a number."""
    shape, linear = model("llama-3.1-8b"), 32 * (4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14336)
    cost = PassCost(shape, A100, variants=[Quantization("awq", kv=2, kv_group=32)])
    assert cost.bytes_weights == linear * 4.15625 / 8 + 2 * (8_030_261_248 - linear)
    assert cost.kv_bytes_per_token == (131_072 * 3 / 16,)
    both = PassCost(shape, A100, variants=[Quantization("awq", head=8, embedding=4)])
    assert both.weight_bytes_by_op["logits"] == 128_256 * 4096
    assert both.weight_bytes_by_op["embed"] == 128_256 * 4096 / 2
    assert both.weight_bytes_by_op["norm"] == cost.weight_bytes_by_op["norm"]


@pytest.mark.parametrize("shape", SMALL, ids=lambda s: s.name)
@pytest.mark.parametrize("format", NAMED)
def test_every_kind_of_model_costs_the_same_alone_and_among_others(shape, format):
    """Experts, latents, windows, encoders: seconds of many rounds are those of each, and the sum of their causes."""
    tokens = np.array([1, 2, 130, 1000])
    many = Work.decode(tokens, 70, windows=shape.windows)
    for mode in ("serial", "overlapped", "separate") if format in ("awq", "bitnet") else ("serial",):
        cost = PassCost(shape, A100, variants=[Quantization(format, dequantise=mode)])
        alone = [float(cost.seconds(Work.decode(int(n), 70, windows=shape.windows))) for n in tokens]
        assert cost.seconds(many).tolist() == alone
        assert sum(cost.causes(many).values()) == pytest.approx(alone, rel=1e-9)
    if shape is CROSS:
        encoded = counted(shape, [Work.encode(1, 10)], Quantization("awq"))
        assert encoded["flops"]["encoder.mlp.up.dequantise"] == 2 * 2 * 64 * 320


def test_experts_are_decoded_only_where_visited() -> None:
    """Mixtral, one token: two of eight experts, two FLOPs a weight."""
    done = PassCost(model("mixtral-8x7b"), A100, variants=[Quantization("awq")]).ops(Work.decode(1, 10))
    [decode] = [op for op in done if op.name == "moe.up.dequantise"]
    assert decode.flops == pytest.approx(2 * 2 * 4096 * 2 * 14336)


def test_a_tensor_parallel_cut_keeps_a_scale_for_each_group_of_its_part() -> None:
    """Llama-2-7B over 8 devices: 1,376 inputs of mlp.down are 11 groups a column, the last one short."""
    cost = PassCost(model("llama-2-7b"), A100, layout=Layout(tensor=8), variants=[Quantization("awq")])
    [down] = [op for op in cost.ops(Work.decode(1, 10)) if op.name == "mlp.down"]
    assert down.weight_bytes == 1376 * 4096 / 2 + 11 * 4096 * 20 / 8


def ratio(batch, format, context=512, **options):
    """Speed relative to bf16: above 1 the format wins."""
    shape, works = model("llama-3.1-8b"), Work.decode(batch, context)
    return PassCost(shape, A100).seconds(works) / PassCost(
        shape, A100, variants=[Quantization(format, **options)]
    ).seconds(works)


def test_weight_only_wins_at_small_batch_and_loses_at_large() -> None:
    """Decoding adds work for each tile of rows; without that work (overlapped) it never loses, only stops winning."""
    batches = np.array([1, 16, 64, 128, 256, 512, 1024])
    serial, beside, apart = (ratio(batches, "awq", dequantise=m) for m in ("serial", "overlapped", "separate"))
    assert serial[0] > 2 and serial[-1] < 0.97 and (np.diff(serial[:5]) < 0).all()
    assert beside.min() >= 1 - 1e-12 and beside[-1] < 1.01
    assert apart.max() < 1
    assert ratio(batches, "smoothquant").min() > 1.2


def test_smaller_tiles_lose_more() -> None:
    """Half the rows to a tile, twice the decoding: the loss doubles where products bound the time."""
    losses = [1 / ratio(4096, "awq", context=2, tile_rows=rows) - 1 for rows in (64, 128)]
    assert losses[0] / losses[1] == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"format": "awk"}, "format: 'awk'.*did you mean 'awq'"),
        ({"weights": 9}, "weights: 9: bits of linear codes are 2"),
        ({"weights": True}, "weights: True"),
        ({"weights": "4"}, "weights: '4'"),
        ({"weights": 2.0}, "weights: 2.0: bits of linear codes are 2"),
        ({"head": 4.0}, "head: 4.0"),
        ({"weights": 4, "codebook": "kmean"}, "codebook: 'kmean'.*did you mean 'kmeans'"),
        ({"weights": 4, "group": 0}, "group: 0"),
        ({"weights": 4, "group": "row"}, "group: 'row': must be tensor, channel"),
        ({"weights": 4, "codebook": "nf4", "activations": 8}, "nf4 codes have no arithmetic"),
        ({"format": "awq", "activations": 8}, "integer sums need group: channel or tensor"),
        ({"activations": 8}, "activations: 8: needs weights"),
        ({"weights": 8, "activations": 4}, "must be from 8, the weights' bits"),
        ({"outliers": 0.9}, "outliers: 0.9: must be a number from 0 to 0.5"),
        ({"outliers": float("nan")}, "outliers: nan"),
        ({"kv": 0}, "kv: 0"),
        ({"kv": 2, "kv_group": 10**9}, "kv_group: 1000000000"),
        ({"head": 99}, "head: 99"),
        ({"dequantise": "later"}, "dequantise: 'later'"),
        ({"tile_rows": 0}, "tile_rows: 0"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(options, said):
    with pytest.raises(ValueError, match=said) as refused:
        variants.build([{"quantization": options}])
    assert "\n" not in str(refused.value)


anything = st.none() | st.booleans() | st.integers(-5, 5000) | st.floats() | st.text(max_size=6) | st.just([])


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from(list(Quantization.__dataclass_fields__)), anything, max_size=4))
def test_any_options_build_or_are_refused(options):
    """Nothing but a ValueError of one line, and what is built can be asked."""
    try:
        [built] = variants.build([{"quantization": options}])
    except ValueError as refused:
        assert "\n" not in str(refused)
    else:
        assert PassCost(DENSE, A100, variants=[built]).seconds(Work.decode(2, 9)) > 0


def test_a_tied_matrix_has_one_format() -> None:
    with pytest.raises(ValueError, match="ties them, so both must have the same bits"):
        PassCost(replace(DENSE, tied=True), A100, variants=[Quantization(head=8)])
    PassCost(replace(DENSE, tied=True), A100, variants=[Quantization(head=8, embedding=8)])


def test_formats_spelled_by_their_numbers_are_formats() -> None:
    """``3bit+19/64`` in a Precision; anything else that looks like it is refused."""
    assert FORMATS["3bit+19/64"].stored_bits == 3 + 19 / 64
    assert Precision(kv="2bit").kv == "2bit"
    for wrong in ("0bit", "17bit", "3bit+0/64", "3bit+19/0", "3bit+19", "3 bit", "3bit+19/64\n"):
        with pytest.raises(ValueError, match="is no number format"):
            Precision(kv=wrong)


@pytest.mark.parametrize(("kv", "group"), [(8, None), (2, 16)])
def test_the_cache_moves_as_many_numbers_in_fewer_bits(kv, group):
    """Witness and simulator move the same numbers; ours weigh what the format says (its scales where grouped)."""
    shape, v = DENSE, Quantization(kv=kv, kv_group=group)
    twin = Quantized.of(stand_in(shape), Bits(kv=kv, kv_group=group))
    twin.forward([np.arange(5)], cache := twin.new_cache(1))
    twin.forward([np.arange(3)], cache)
    works = [ragged([5], [0], (None,), 1), ragged([3], [5], (None,), 1)]
    ours, theirs = counted(shape, works, v)["bytes_kv"], measured(twin.meter)["bytes_kv"]
    per_number = (kv + (32 / group if group else 0)) / 8
    assert {op: n / per_number for op, n in ours.items() if n} == {op: n / 4 for op, n in theirs.items()}


def test_a_scenario_with_awq_decodes_faster_and_holds_more_cache() -> None:
    """The whole way from YAML: half the time a token at batch 1, and the memory that the weights leave."""
    base = Scenario.load("chat_h100").with_settings(["workload.requests=20"])
    narrow = base.model_copy(update={"variants": [{"quantization": {"format": "awq"}}]})
    pools = [build_scenario(s).budget.kv_pool_bytes for s in (base, narrow)]
    assert pools[1] - pools[0] > 8e9
    wide, few = (simulate(s).requests["tpot_ms"].median() for s in (base, narrow))
    assert few < 0.6 * wide


def test_quality_is_sourced_or_unknown() -> None:
    """A named format may have a published loss; a format changed by hand has none."""
    assert Quantization("smoothquant").quality.loss_percent == pytest.approx(100 * (2.982 / 2.857 - 1), abs=0.01)
    assert "table 1" in Quantization("llm_int8", dequantise="overlapped").quality.source
    assert Quantization("llm_int8", outliers=0.0).quality == Quantization("awq").quality == UNKNOWN
    assert set(QUALITY) <= set(NAMED)


def nll_and_choices(net, tokens):
    """Mean nats a token and the likeliest next tokens, of windows [n, 128]."""
    logits = net.forward(list(tokens), net.new_cache(len(tokens)), rows="all").astype(np.float64)
    logits = logits.reshape(*tokens.shape, -1)[:, :-1]
    logits -= logits.max(axis=-1, keepdims=True)
    spread = np.log(np.exp(logits).sum(axis=-1))
    chosen = np.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    return float((spread - chosen).mean()), logits.argmax(axis=-1)


@pytest.fixture(scope="module")
def family():
    """(primary, its loss and choices, the text): 32 windows of 128 tokens of held-out text A."""
    if not {"primary", "ternary"} <= set(shipped_names()):
        pytest.skip("no trained family")
    tokens = np.array(held_out("a", 32, 128))
    return load("primary"), *nll_and_choices(load("primary"), tokens), tokens


@pytest.mark.parametrize(
    ("rule", "most_nats", "least_agreement"),
    [
        (Rule(8), 0.002, 0.99),
        (Rule(8, "tensor", "fp8"), 0.005, 0.95),
        (Rule(4, 128, zero_point=True), 0.03, 0.87),
        (Rule(4, 64, "nf4", double=True), 0.03, 0.87),
        (Rule(4, 32, "fp4"), 0.05, 0.84),
        (Rule(4, "channel", "kmeans"), 0.04, 0.85),
    ],
)
def test_a_trained_model_loses_little_to_weight_only_rounding(family, rule, most_nats, least_agreement):
    """Nats a token lost and equal argmaxes, of a model of 1.8 M parameters (docs/policies/quantization.md)."""
    net, loss, choices, tokens = family
    rounded, chosen = nll_and_choices(rounded_weights(net, rule), tokens)
    assert rounded - loss < most_nats and (chosen == choices).mean() > least_agreement
    assert (chosen != choices).any()


def test_fewer_bits_lose_more_and_ternary_needs_training(family):
    """8 < 4 < 3 < 2 bits; rounding to ternary ruins the model, while one trained as ternary packs without loss."""
    net, loss, _, tokens = family
    lost = [nll_and_choices(rounded_weights(net, Rule(b, 32)), tokens)[0] - loss for b in (8, 4, 3, 2)]
    assert lost == sorted(lost)
    rule = Rule(2, "channel", "ternary")  # joined matrices (q, k, v) have a scale each
    assert nll_and_choices(rounded_weights(net, rule), tokens)[0] - loss > 1
    own = load("ternary")
    bitnet = nll_and_choices(Quantized.of(own, Bits(rule, 8)), tokens)[0]
    assert bitnet - nll_and_choices(own, tokens)[0] < 0.01
