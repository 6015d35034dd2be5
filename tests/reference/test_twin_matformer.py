"""MatFormer for real: counts of slices, consistency of the shipped family, drafts on a shared cache, token routing."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import exact_distribution, random_llama
from variant_counts import counted, differences, run

from sim.analytic.work import Work
from sim.policies.speculative import Speculative
from sim.reference.checkpoint import load, shipped_names
from sim.reference.decoding import decode
from sim.reference.replay import mean_beta
from sim.reference.sampling import Sampler, stream
from sim.reference.twins import _shared_draft, autoregressive, speculative
from sim.reference.variants import matformer, token_routing
from sim.validation.counts import added, decoded, measured, mismatches, simulated
from sim.validation.stand_in import dense, stand_in
from sim.validation.tokens import gained, held_out, measure_betas
from sim.variants.matformer import DIVISORS, Matformer
from sim.variants.mix_n_match import WITNESS_NATS, mixes
from sim.variants.token_routing import TokenRouting

family = pytest.mark.skipif("matformer" not in shipped_names(), reason="no trained family")
GREEDY = Sampler(0.0)
SELF = {"model": "self", "kv": "shared"}


def small(layers=2, width=32, window=None):
    """A stand-in decoder."""
    return stand_in(dense(16, layers, 4, 2, width, 40, window))


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([*DIVISORS, 5]), min_size=2, max_size=2),
    passes=st.lists(st.lists(st.integers(0, 6), min_size=2, max_size=2).filter(sum), min_size=1, max_size=3),
    rows=st.sampled_from(["last", "all", "none"]),
)
def test_a_slice_counts_as_the_variant_says(sizes, passes, rows):
    """FLOPs and bytes of every op, any size in any layer."""
    base = small()
    twin = matformer.twin(base, sizes)
    assert twin.shape == Matformer(sizes).reshape(base.shape)
    works = run(twin, passes, rows)
    assert not differences(base.shape, works, twin, Matformer(sizes))


def test_the_comparison_catches_a_layer_left_whole():
    """The counts of one size everywhere differ from those of a mix."""
    base = small()
    works = run(matformer.twin(base, ["S", "XL"]), [[3, 2]])
    assert differences(base.shape, works, base, Matformer("S"))


# --- drafts on the target's cache -----------------------------------------------------------------


@pytest.mark.parametrize("gamma", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("size", ["S", "XL"])
def test_shared_cache_rounds_count_alike(gamma, window, size):
    """Draft passes of one token each, no prompt read twice, verification over gamma + 1: every op, exactly.

    XL drafting for itself keeps every draft, so that the round after full acceptance is among them.
    """
    target = small(window=window)
    draft = matformer.twin(target, size)
    twin = speculative.Twin(draft, gamma, shared=True)
    prompts = [np.arange(5) % 40, np.arange(9) % 40]
    texts = decode(twin, target, prompts, [11, 14], sampler=GREEDY)
    policy = Speculative({**SELF, "variants": [{"matformer": {"size": size}}]}, gamma, 0.5)
    shapes = (target.shape, Matformer(size).reshape(target.shape))
    works = list(decoded(policy, texts, (shapes[0].windows, shapes[1].windows)))
    ours = added(*(simulated(shapes[m], [w for k, w in works if k == m], "draft." * m) for m in (0, 1)))
    assert not [str(m) for m in mismatches(ours, measured(target.meter))]
    own = Speculative({**SELF, "kv": "own", "variants": [{"matformer": {"size": size}}]}, gamma, 0.5)
    apart = list(decoded(own, texts, (shapes[0].windows, shapes[1].windows)))
    assert sum(w.tokens for k, w in apart if k == 1) > sum(w.tokens for k, w in works if k == 1)


@pytest.mark.parametrize("size", ["S", "M", "XL"])
def test_a_shared_cache_is_lossless(size):
    """Greedy tokens equal the target's own, to the last one (exact arithmetic)."""
    target = replace(small(layers=3), exact=True)
    prompts = [np.arange(5) % 40, np.arange(3) % 40]
    alone = decode(autoregressive.Twin(), target, prompts, 24, sampler=GREEDY)
    twin = speculative.Twin(matformer.twin(target, size), 3, shared=True)
    both = decode(twin, target, prompts, 24, sampler=GREEDY)
    assert [t.tokens for t in both] == [t.tokens for t in alone]
    assert size != "XL" or all(r.accepted == 3 for t in both for r in t.rounds[1:-1])


def slipped(self, contexts, active):
    """Fault: drafts stay in the cache, so that the target attends to the slice's keys and values as its own."""
    return super(_shared_draft.SharedDrafter, self).propose(contexts, active)


def greedy_with(monkeypatch, fault):
    target = replace(small(layers=3), exact=True)
    prompts = [np.arange(5) % 40]
    alone = decode(autoregressive.Twin(), target, prompts, 24, sampler=GREEDY)
    monkeypatch.setattr(_shared_draft.SharedDrafter, "propose", fault)
    both = decode(speculative.Twin(matformer.twin(target, "S"), 3, shared=True), target, prompts, 24, sampler=GREEDY)
    return [t.tokens for t in both] == [t.tokens for t in alone]


def test_stale_draft_keys_are_caught(monkeypatch):
    """The test above fails for the planted fault, and passes without it."""
    assert greedy_with(monkeypatch, _shared_draft.SharedDrafter.propose)
    assert not greedy_with(monkeypatch, slipped)


def test_sampled_output_with_a_shared_cache_has_the_targets_distribution():
    """4,000 samples of three tokens against all 64 continuations: chi-square p above 1e-3."""
    from scipy import stats

    target = random_llama(1, sharpness=1.5)
    prompt, tokens = np.array([1, 3, 0, 2, 2]), 3
    twin = speculative.Twin(matformer.twin(target, "S"), 2, shared=True)
    runs = decode(twin, target, [prompt] * 4000, tokens, seed=3)
    digits = np.array([r.tokens for r in runs]) @ 4 ** np.arange(tokens - 1, -1, -1)
    seen = np.bincount(digits, minlength=4**tokens)
    assert stats.chisquare(seen, 4000 * exact_distribution(target, prompt, tokens)).pvalue > 1e-3


def test_a_draft_with_other_keys_cannot_share():
    """Another model's cache is refused in one line."""
    other = stand_in(dense(16, 2, 4, 4, 32, 40))
    with pytest.raises(ValueError, match=r"allowed: a slice or a prefix of the target$"):
        decode(speculative.Twin(other, 2, shared=True), small(), [np.arange(3)], 4)


# --- the shipped family ---------------------------------------------------------------------------


def nats_and_choices(net, tokens):
    """Mean nats a token and likeliest next tokens [n, 127] of windows [n, 128]."""
    logits = net.forward(list(tokens), net.new_cache(len(tokens)), rows="all").astype(np.float64)
    logits = logits.reshape(*tokens.shape, -1)[:, :-1]
    logits -= logits.max(axis=-1, keepdims=True)
    spread = np.log(np.exp(logits).sum(axis=-1))
    chosen = np.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    return float((spread - chosen).mean()), logits.argmax(axis=-1)


@pytest.fixture(scope="module")
def measured_sizes():
    """(nats, choices) by size on 32 windows of 128 tokens of held-out text A."""
    tokens, whole = np.array(held_out("a", 32, 128)), load("matformer")
    mixed = {("S", "M", "XL"): ["S", "M", "XL"]}
    return {
        k: nats_and_choices(matformer.twin(whole, v), tokens) for k, v in ({s: s for s in DIVISORS} | mixed).items()
    }


@family
def test_slices_of_the_family_are_consistent_with_the_whole(measured_sizes, record_property):
    """Argmax agreement with XL: S 0.79, M 0.89, L 0.96 (docs/policies/matformer.md), rising with size."""
    _, truth = measured_sizes["XL"]
    agreed = [float((measured_sizes[size][1] == truth).mean()) for size in DIVISORS]
    record_property("consistency", agreed)
    assert agreed == sorted(agreed) and agreed[-1] == 1
    assert all(share > least for share, least in zip(agreed, (0.75, 0.86, 0.94), strict=False))


@family
def test_mixes_lose_about_what_the_straight_line_says(measured_sizes):
    """Nats rise as the slice shrinks, as on record (within four standard errors of these few windows); a mix that was
    never trained lies within 0.05 nats of the line between its neighbours."""
    nats = [measured_sizes[size][0] for size in DIVISORS]
    assert nats == sorted(nats, reverse=True)
    known = [WITNESS_NATS[size] for size in DIVISORS]
    assert np.diff(nats) == pytest.approx(np.diff(known), abs=0.02)
    shape = load("matformer").shape
    losses = dict(zip(DIVISORS, nats, strict=True))
    [mix] = [m for m in mixes(shape, nats=losses) if m.sizes == ("S", "M", "XL")] or [None]
    if mix is not None:
        assert measured_sizes["S", "M", "XL"][0] == pytest.approx(mix.nats, abs=0.05)


@family
def test_a_shared_draft_keeps_what_acceptance_on_another_text_says():
    """S drafts for XL on XL's cache: tokens a round on text B within 4 % of the policy's, alpha measured on text A.

    Sharing the cache helps the draft: alpha of S on its own cache is a floor, less the noise of these few texts.
    """
    whole = load("matformer")
    draft = matformer.twin(whole, "S")
    betas = measure_betas(whole, draft, held_out("a", 24, 24), 48, 1.0, 5)
    alpha = mean_beta(betas)
    policy = Speculative({**SELF, "variants": [{"matformer": {"size": "S"}}]}, 3, alpha)
    texts = decode(speculative.Twin(draft, 3, shared=True), whole, held_out("b", 48, 24), 48, seed=7)
    rounds = [r for t in texts for r in t.rounds[1:-1]]
    kept = np.array([r.accepted + 1 for r in rounds], dtype=float)
    error = kept.std(ddof=1) / math.sqrt(len(kept))
    predicted = gained(policy, 48).mean
    assert kept.mean() > predicted - 3 * error - 0.02
    assert kept.mean() == pytest.approx(predicted, rel=0.06)


# --- token routing --------------------------------------------------------------------------------


def routed(shares, luck, d=16, width=32):
    """A stand-in whose routers pick sizes as random vectors fall."""
    base = stand_in(dense(d, 2, 4, 2, width, 40))
    edges = sorted(width // DIVISORS[size] for size in shares)
    routers = {i: luck.normal(size=(d, len(edges))).astype(np.float32) for i in range(2)}
    return base, token_routing.twin(base, edges, routers), edges


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.sampled_from(list(DIVISORS)), min_size=1, max_size=4, unique=True),
    passes=st.lists(st.lists(st.integers(0, 6), min_size=2, max_size=2).filter(sum), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_token_routing_counts_follow_the_tokens_routed(sizes, passes, seed):
    """Given how many tokens reached each band in each pass, every op counts as the formula of one band says."""
    base, twin, edges = routed(sizes, stream(seed, "routers"))
    works = run(twin, passes)
    tally, met = counted(base.shape, works, TokenRouting({s: 1 / len(sizes) for s in sizes})), measured(twin.meter)
    bands = list(zip((0, *edges), edges, strict=False))
    rows = [sum(twin.reached[i, b] for i in range(2)) for b in range(len(edges))]
    seen = [sum(twin.visited[i, b] for i in range(2)) for b in range(len(edges))]
    wide = [high - low for low, high in bands]
    assert met["flops"]["mlp.up"] == sum(2 * 16 * 2 * w * n for w, n in zip(wide, rows, strict=True))
    assert met["bytes_weights"]["mlp.down"] == sum(4 * 16 * w * n for w, n in zip(wide, seen, strict=True))
    assert met["bytes_activations"]["mlp.up"] == sum(4 * (16 + 2 * w) * n for w, n in zip(wide, rows, strict=True))
    assert met["bytes_activations"]["mlp.down"] == sum(4 * (16 + w) * n for w, n in zip(wide, rows, strict=True))
    for kind in met:
        assert tally[kind]["mlp.router"] == met[kind]["mlp.router"]
        for op in ("attn.qkv", "attn.scores", "logits", "norm.mlp"):
            assert tally[kind][op] == met[kind][op]


def test_expected_counts_are_the_mean_over_routers():
    """Over 3,000 random routings of 3 tokens: FLOPs and weights read are the variant's within 4 standard errors."""
    luck, shares = np.random.Generator(np.random.Philox(8)), {"S": 0.5, "M": 0.2, "XL": 0.3}
    base = small(layers=1)
    levels = luck.choice(3, size=(3000, 3), p=list(shares.values()))
    edges = [4, 8, 32]
    wide = np.diff([0, *edges])
    reach = np.stack([(levels >= b).sum(axis=1) for b in range(3)], axis=1)  # [routings, bands]
    expected = counted(base.shape, [Work.decode(3, 5)], TokenRouting(shares))
    for kind, one in (("flops", 2 * 16 * 2 * reach @ wide), ("bytes_weights", 4 * 16 * 2 * (reach > 0) @ wide)):
        error = one.std(ddof=1) / math.sqrt(len(one))
        assert abs(one.mean() - expected[kind]["mlp.up"]) < 4 * error


def test_bands_of_nested_tokens_give_the_slices_outputs():
    """When no token goes further than S, the model is the S slice."""
    base = small()
    routers = {i: np.array([[0.0, 0.0]] * 16, np.float32) for i in range(2)}
    twin = token_routing.twin(base, [4, 8], routers)
    tokens = [np.arange(6)]
    low = twin.forward(tokens, twin.new_cache(1))
    want = matformer.twin(base, "S").forward(tokens, base.new_cache(1))
    assert low == pytest.approx(want, abs=1e-5)
