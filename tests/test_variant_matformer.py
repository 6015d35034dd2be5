"""MatFormer: published sizes, Mix'n'Match, token routing by closed form, drafts that hold nothing of their own."""

from dataclasses import replace
from math import comb

import numpy as np
import pytest
from analytic_models import DENSE, device, model

from sim import Scenario, simulate, variants
from sim.analytic.cost import PassCost
from sim.analytic.model import Attention, Ffn, Layer, ModelShape
from sim.analytic.work import Work
from sim.build import build_scenario
from sim.quality import LOSSLESS, UNKNOWN
from sim.variants.matformer import DIVISORS, Matformer
from sim.variants.mix_n_match import WITNESS_NATS, mixes, predicted_nats
from sim.variants.pruning import Pruning
from sim.variants.token_routing import TokenRouting, bands

V5E = device("tpu-v5e")
SELF = "policy={name: speculative, gamma: 2, acceptance: 0.8, draft: {model: self, variants: [matformer], kv: KV}}"


@pytest.mark.parametrize(
    ("name", "size", "published", "tolerance"),
    [("matlm-2.6b", "S", 1.5e9, 0.03), ("matlm-850m", "S", 582e6, 0.001), ("matlm-850m", "XL", 850e6, 0.005)],
)
def test_slices_have_the_published_sizes(name, size, published, tolerance):
    """2.6B spans 1.5B to 2.6B (arXiv 2310.07707 v1), 850M spans 582M to 850M (v2): the widths were fitted on XL."""
    assert Matformer(size).reshape(model(name)).total_parameters == pytest.approx(published, rel=tolerance)


def test_gemma_3n_slices_are_within_five_percent_of_their_effective_sizes():
    """E4B 3.98 B and E2B 1.91 B, attention and feed-forward alone from its widths: -2 % and -4 %; the rest are parts
    that no shape here has (LAuReL, AltUp, embeddings by layer). E2B skips layers 20 to 24 and halves the hidden units.
    """
    kind = Attention(8, 2, 256, 256)
    e4b = ModelShape("gemma-3n-e4b", 2048, 1, (Layer(kind, Ffn(16384)),) * 35, tied=True)
    kept = Pruning(layers=[i for i in range(35) if not 20 <= i < 25]).reshape(e4b)
    e2b = Matformer("L").reshape(kept)
    assert e4b.total_parameters == pytest.approx(3.98e9, rel=0.03)
    assert e2b.total_parameters == pytest.approx(1.91e9, rel=0.05)


def test_widths_by_hand():
    """An eighth, a quarter, a half of 160; a number as it is; a list by layer; an encoder's layers first."""
    for size, width in (("S", 20), ("M", 40), ("L", 80), ("XL", 160), (33, 33)):
        assert {layer.ffn.width for layer in Matformer(size).reshape(DENSE).layers} == {width}
    mixed = Matformer(["S", "L", 100]).reshape(DENSE)
    assert [layer.ffn.width for layer in mixed.layers] == [20, 80, 100]
    bert = Matformer([*["S"] * 6, *["XL"] * 6]).reshape(model("bert-base"))
    assert [layer.ffn.width for layer in bert.encoder] == [384] * 6 + [3072] * 6


def test_a_query_encoder_gets_faster_with_its_size():
    """ViT-B/16 as one pass over 197 tokens: 35.1 GFLOPs whole, as published (17.6 G multiply-adds), S less than half;
    an adaptive query encoder is a slice beside an index made by the whole."""
    vit = model("vit-b-16")
    work = Work.encode(1, 197)
    flops = [float(PassCost(vit, V5E, variants=[Matformer(s)]).counts(work)["flops"]) for s in DIVISORS]
    seconds = [float(PassCost(vit, V5E, variants=[Matformer(s)]).seconds(work)) for s in DIVISORS]
    assert flops[-1] == pytest.approx(2 * 17.58e9, rel=0.01)
    assert flops == sorted(flops) and seconds == sorted(seconds) and flops[0] < 0.45 * flops[-1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": "XS"}, "size: 'XS': must be one of S, M, L, XL; did you mean 'S'"),
        ({"size": []}, "size: .*a size for each layer"),
        ({"size": 0}, "size: 0: must be a whole number"),
        ({"size": ["S", None]}, "size: None"),
    ],
)
def test_a_wrong_size_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        variants.build([{"matformer": options}])


@pytest.mark.parametrize(
    ("size", "shape", "said"),
    [
        (["S", "S"], DENSE, "2 values: dense has 3 layers"),
        (161, DENSE, "161 hidden units: dense has a layer of 160"),
        ("S", replace(DENSE, layers=(Layer(DENSE.layers[0].attention, Ffn(12)),)), "1/8 of 12 hidden units"),
        ("S", model("mixtral-8x7b"), "has experts"),
    ],
)
def test_a_model_that_it_does_not_fit_is_named(size, shape, said):
    with pytest.raises(ValueError, match=rf"^variants\.matformer\.size: .*{said}"):
        Matformer(size).reshape(shape)


def test_quality_is_lossless_only_for_the_whole():
    assert Matformer("XL").quality == Matformer(["XL", "XL"]).quality == LOSSLESS
    assert Matformer("L").quality == Matformer(["XL", "L"]).quality == TokenRouting().quality == UNKNOWN


# --- Mix'n'Match ----------------------------------------------------------------------------------


def test_mixes_are_all_rising_ones_and_their_numbers_are_the_variants_own():
    """Every parameter count that a rising mix of 16 layers has, once; parameters and bytes as reshaping says."""
    shape = model("matlm-850m")
    found = mixes(shape)
    sums = {sum(x) for x in _rising(16)}
    assert len(_rising(16)) == comb(19, 3) and len(found) == len(sums) == 108
    assert found[0].sizes == ("S",) * 16 and found[-1].sizes == ("XL",) * 16
    order = list(DIVISORS)
    for mix in found:
        cut = mix.variant().reshape(shape)
        assert cut.total_parameters == mix.parameters == mix.inner + 256_000 * 1536
        assert mix.bytes_weights == PassCost(shape, V5E, variants=[mix.variant()]).bytes_weights
        ranks = [order.index(s) for s in mix.sizes]
        assert ranks == sorted(ranks) and mix.slope == ranks[-1] - ranks[0]


def _rising(layers):
    """Hidden units, in eighths, of every rising mix."""
    from itertools import combinations_with_replacement

    return list(combinations_with_replacement((1, 2, 4, 8), layers))


def test_fewer_mixes_are_spread_evenly():
    """Ends included, sizes rising; two of them are the ends."""
    shape = model("matlm-850m")
    some = mixes(shape, 10)
    assert len(some) == 10 and [m.parameters for m in some] == sorted({m.parameters for m in some})
    assert [m.sizes for m in mixes(shape, 2)] == [("S",) * 16, ("XL",) * 16]
    assert {s for m in mixes(shape, sizes=("M", "XL")) for s in m.sizes} == {"M", "XL"}
    with pytest.raises(ValueError, match="at least 2"):
        mixes(shape, 1)


def test_losses_are_straight_lines_between_the_sizes():
    """The four sizes exactly, and the middle of a segment halfway."""
    known = {100: 3.0, 200: 2.0, 400: 1.0}
    assert [predicted_nats(n, known) for n in (50, 100, 150, 300, 400, 500)] == [3.0, 3.0, 2.5, 1.5, 1.0, 1.0]
    ends = mixes(model("matlm-850m"))
    assert (ends[0].nats, ends[-1].nats) == (WITNESS_NATS["S"], WITNESS_NATS["XL"])
    assert [m.nats for m in ends] == sorted((m.nats for m in ends), reverse=True)
    assert mixes(DENSE, nats=None)[0].nats is None


# --- token routing --------------------------------------------------------------------------------


def test_the_union_over_a_batch_is_that_of_its_largest_token():
    """Half the tokens S, half XL: one token reads 0.5625 of the hidden units on average, many read all of them."""
    cost = PassCost(DENSE, V5E, variants=[TokenRouting({"S": 0.5, "XL": 0.5})])
    whole = PassCost(DENSE, V5E)
    for n, read in ((1, 1 / 8 + 7 / 8 * 0.5), (2, 1 / 8 + 7 / 8 * 0.75), (60, 1.0)):
        [ours], [theirs] = ([op for op in c.ops(Work.decode(n, 9)) if op.name == "mlp.up"] for c in (cost, whole))
        assert ours.weight_bytes == pytest.approx(theirs.weight_bytes * read)
        assert ours.flops == theirs.flops * 0.5625
    assert cost.bytes_weights == whole.bytes_weights + 3 * 64 * 2 * 2


def test_bands_add_up_and_reach_less_and_less():
    """Whatever is said in whatever order; sizes that nobody takes have no band."""
    said = bands({"XL": 0.2, "S": 0.5, "L": 0.3})
    assert sum(b.part for b in said) == 1 and [round(b.reach, 9) for b in said] == [1, 0.5, 0.2]
    assert [b.part for b in bands({"M": 1.0})] == [0.25]


def test_all_tokens_at_one_size_cost_its_slice_and_a_router():
    """Seconds of the work of S, but memory of the whole."""
    routed, slice_ = (
        PassCost(model("matlm-850m"), V5E, variants=[v]) for v in (TokenRouting({"S": 1.0}), Matformer("S"))
    )
    ours, theirs = (c.counts(Work.decode(8, 100)) for c in (routed, slice_))
    router = 16 * 2 * 8 * 1536
    assert ours["flops"] == theirs["flops"] + router
    assert routed.bytes_weights > 1.4 * slice_.bytes_weights


@pytest.mark.parametrize(
    "shares", [{"S": 0.5}, {"S": 0.7, "L": 0.4}, {"S": 1.5, "L": -0.5}, [["S", 0.5], ["S", 0.5]], {}]
)
def test_shares_that_do_not_add_up_are_refused(shares):
    with pytest.raises(ValueError, match=r"variants\[0\]|variants\.token_routing\.shares"):
        variants.build([{"token_routing": {"shares": shares}}])


@pytest.mark.parametrize("other", ["matformer", "quantization"])
def test_routing_clashes_are_said(other):
    with pytest.raises(ValueError, match=rf"token_routing cannot go with {other}: "):
        variants.build(["token_routing", other])


# --- drafting for the whole -----------------------------------------------------------------------


def drafted(kv, *settings):
    """MatLM-850M with its S slice as draft."""
    base = Scenario.load("bench_speculative")
    return base.with_settings(["model=matlm-850m", "workload.requests=20", SELF.replace("KV", kv), *settings])


def test_a_slice_that_drafts_adds_no_memory_when_it_shares_the_cache():
    """No draft weights either way; the shared cache holds twice the tokens of one apart, whose layers are as many."""
    plain = build_scenario(drafted("own", "policy=autoregressive"))
    shared, own = build_scenario(drafted("shared")), build_scenario(drafted("own"))
    for built in (shared, own):
        assert dict(built.budget.lines)["draft weights"] == 0
    assert shared.costs[1].bytes_weights / shared.costs[0].bytes_weights == pytest.approx(0.688, abs=0.002)
    bytes_per_token = [sum(s.token_bytes for s in b.setup.kv.spans) for b in (plain, shared, own)]
    assert bytes_per_token[1] == bytes_per_token[0] and bytes_per_token[2] == 2 * bytes_per_token[0]


def test_a_run_with_a_shared_cache_is_no_slower():
    """Same acceptance, no draft prefill and no catch-up: fewer draft tokens in every round, all requests served."""
    shared, own = (simulate(drafted(kv)) for kv in ("shared", "own"))
    assert len(shared.requests) == len(own.requests) == 20
    assert shared.requests["ttft_ms"].mean() < own.requests["ttft_ms"].mean()
    assert shared.requests["tpot_ms"].mean() <= own.requests["tpot_ms"].mean()


@pytest.mark.parametrize(("name", "c"), [("matlm-2.6b", 0.593), ("matlm-850m", 0.688)])
def test_the_draft_costs_what_its_bytes_say_and_caps_the_gain(name, c):
    """Ratio of bytes read at batch 1; even if every draft were kept, gamma 1 gains no more than 2 / (1 + c)."""
    whole, small = (PassCost(model(name), V5E, variants=v) for v in ([], [Matformer("S")]))
    read = [float(cost.counts(Work.decode(1, 2))["weight_bytes"]) for cost in (small, whole)]
    assert read[0] / read[1] == pytest.approx(c, abs=0.002)
    assert 1.18 < 2 / (1 + c) < 1.26


def test_costs_of_mixes_lie_in_order():
    """More hidden units never run faster, at any batch."""
    shape, batch = model("matlm-850m"), np.array([1, 16, 256])
    times = [PassCost(shape, V5E, variants=[m.variant()]).seconds(Work.decode(batch, 300)) for m in mixes(shape, 6)]
    assert (np.diff(times, axis=0) >= 0).all()
