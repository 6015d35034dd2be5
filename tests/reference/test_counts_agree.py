"""The simulator's FLOPs and bytes equal what the witness's meter read, op by op, exactly."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import random_transformer, small_shape

from sim.analytic.config import shape_from_config
from sim.analytic.model import Attention, Ffn, Layer, ModelShape
from sim.analytic.work import Work
from sim.policies.autoregressive import Autoregressive
from sim.policies.speculative import Speculative
from sim.reference.checkpoint import load, shipped_names
from sim.reference.decoding import decode
from sim.reference.sampling import stream
from sim.reference.twins import autoregressive, speculative
from sim.validation.counts import Watched, added, decoded, measured, mismatches, ragged, simulated
from sim.validation.models import SMOLLM2, known
from sim.validation.stand_in import stand_in
from workloads import models

family = pytest.mark.skipif(not {"primary", "drafter"} <= set(shipped_names()), reason="no trained family yet")


@st.composite
def shapes(draw, experts=(0, 0, 3, 6)):
    """Decoders with any mix of what the page has a row for, grouped heads and odd widths included."""
    layers, dim = [], 2 * draw(st.integers(1, 4))
    rope, norms = draw(st.booleans()), draw(st.sampled_from([2, 4]))
    for _ in range(draw(st.integers(1, 3))):
        groups = draw(st.integers(1, 3))
        kind = Attention(
            groups * draw(st.integers(1, 3)), groups, dim, draw(st.integers(1, 7)),
            window=draw(st.none() | st.integers(1, 9)), qkv_bias=draw(st.booleans()), out_bias=draw(st.booleans()),
            qk_norm=dim if draw(st.booleans()) else 0, rope=rope,
        )  # fmt: skip
        many = draw(st.sampled_from(experts))
        ffn = Ffn(draw(st.integers(1, 12)), gated=draw(st.booleans()), bias=not many and draw(st.booleans()),
                  experts=many, experts_per_token=min(many, draw(st.integers(1, 3))))  # fmt: skip
        layers.append(Layer(kind, ffn, norms=norms))
    norm = draw(st.sampled_from(["rms", "layer"]))
    return ModelShape("any", 2 * draw(st.integers(2, 8)), draw(st.integers(2, 40)), tuple(layers), norm=norm)


def clash(ours, theirs):
    """What differs, as text: a failing test shows it."""
    return [str(m) for m in mismatches(ours, theirs)]


@settings(max_examples=80)
@given(
    shape=shapes(),
    passes=st.lists(st.lists(st.integers(0, 6), min_size=3, max_size=3), min_size=1, max_size=4),
    rows=st.sampled_from(["last", "all", "none"]),
    exact=st.booleans(),
)
def test_any_chunking_of_any_batch_counts_alike(shape, passes, rows, exact):
    """Ragged chunked passes of a random decoder, experts as visited: FLOPs, weights, KV and activations of every op."""
    model = stand_in(shape, kind=Watched)
    model.exact = exact
    cache, works = model.new_cache(3), []
    for news in (p for p in passes if sum(p)):
        logits = {"last": sum(n > 0 for n in news), "all": sum(news), "none": 0}[rows]
        works.append(ragged(news, cache.lengths.tolist(), shape.windows, logits))
        out = model.forward([np.arange(n) % shape.vocab for n in news], cache, rows=rows)
        model.meter.sample(out)
    assert not clash(simulated(shape, works, visits=model.visits), measured(model.meter))


@settings(max_examples=30)
@given(
    target=shapes(experts=(0,)), draft=shapes(experts=(0,)), gamma=st.integers(1, 4),
    batch=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 14)), min_size=1, max_size=3), seed=st.integers(0, 99),
)  # fmt: skip
def test_speculative_rounds_count_alike(target, draft, gamma, batch, seed):
    """Draft and target passes of real rounds: prefill, catch-up after full acceptance, sequences that end early."""
    draft = replace(draft, vocab=target.vocab)
    big, small = stand_in(target, seed, sharpness=0.2), stand_in(draft, seed + 1, sharpness=0.2)
    prompts = [stream(seed, "prompt", i).integers(0, target.vocab, n) for i, (n, _) in enumerate(batch)]
    texts = decode(speculative.Twin(small, gamma), big, prompts, [n for _, n in batch], seed=seed)
    passes = list(decoded(Speculative("draft", gamma), texts, (target.windows, draft.windows)))
    ours = added(
        simulated(target, [w for model, w in passes if model == 0]),
        simulated(draft, [w for model, w in passes if model == 1], "draft."),
    )
    assert not clash(ours, added(measured(big.meter), measured(small.meter)))


@settings(max_examples=20)
@given(
    shape=shapes(), seed=st.integers(0, 99),
    batch=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9)), min_size=1, max_size=3),
)  # fmt: skip
def test_autoregressive_rounds_count_alike(shape, seed, batch):
    """A batch that shrinks, token by token, windows and experts included."""
    model = stand_in(shape, seed, kind=Watched)
    prompts = [np.arange(n) % shape.vocab for n, _ in batch]
    texts = decode(autoregressive.Twin(), model, prompts, [n for _, n in batch], seed=seed)
    works = [work for _, work in decoded(Autoregressive(), texts, (shape.windows,))]
    assert not clash(simulated(shape, works, visits=model.visits), measured(model.meter))


def test_drafts_are_kept_and_lost_in_these_rounds():
    """The comparison above sees rounds that keep all (a catch-up follows), some and none of their drafts."""
    shape = small_shape()
    model = stand_in(shape, sharpness=0.5)
    [text] = decode(speculative.Twin(stand_in(shape, 1, sharpness=0.5), 2), model, [np.arange(3)], 80)
    assert {r.accepted for r in text.rounds[1:-1]} == {0, 1, 2}


@pytest.mark.parametrize("exact", [False, True])
def test_encoder_and_cross_attention_count_alike(exact):
    """T5's kind: encoder ops under their prefix, cross keys and values once, the source read in every decoder pass."""
    own = Attention(2, 2, 6, 6, rope=False)
    ffn = Ffn(10, gated=False, activation="relu")
    shape = ModelShape("t5", 16, 31, (Layer(own, ffn, norms=3, cross=own),) * 2,
                       (Layer(replace(own, causal=False), ffn),) * 3)  # fmt: skip
    model = random_transformer(shape, dtype=np.float32)
    model.exact = exact
    cache, sources = model.new_cache(2), [7, 4]
    model.encode([np.arange(n) for n in sources], cache)
    squares = sum(n * n for n in sources)
    works = [Work(0, 0, encoder_tokens=11, encoder_pairs=squares, cross_kv_tokens=11)]
    for news, cached in (([3, 2], [0, 0]), ([1, 1], [3, 2])):
        model.meter.sample(model.forward([np.arange(n) for n in news], cache))
        work = ragged(news, cached, shape.windows, 2)
        cross = sum(n * s for n, s in zip(news, sources, strict=True))
        works.append(work._replace(cross_pairs=cross, cross_reads=11))
    assert not clash(simulated(shape, works), measured(model.meter))


def smollm2_like():
    """SmolLM2-135M's shape, one layer's weights shared by all thirty so that it fits anywhere."""
    found = models.find("smollm2-135m")
    shape = shape_from_config(*found)
    one = stand_in(replace(shape, layers=shape.layers[:1], vocab=8))
    embed = np.zeros((shape.vocab, shape.d_model), np.float32)
    weights = {"embed": embed, "logits": embed.T, "norm.final": one.weights["norm.final"]}
    for i in range(len(shape.layers)):
        weights |= {f"layers.{i}.{k[9:]}": v for k, v in one.weights.items() if k.startswith("layers.0.")}
    return replace(one, shape=shape, weights=weights)


def test_smollm2_counts_alike():
    """Thirty layers, nine heads in three groups, 49,152 tokens: a prompt in two chunks and two decode steps."""
    model = smollm2_like()
    cache, works = model.new_cache(), []
    for n, rows in ((5, "none"), (4, "last"), (1, "last"), (1, "last")):
        works.append(ragged([n], cache.lengths.tolist(), (None,), int(rows == "last")))
        model.meter.sample(model.forward([np.arange(n)], cache, rows=rows))
    ours = simulated(model.shape, works)
    assert not clash(ours, measured(model.meter))
    assert ours["bytes_weights"]["logits"] == 3 * 4 * 576 * 49152


@family
@pytest.mark.parametrize("name", [name for name in known() if name != SMOLLM2])
def test_the_trained_models_count_alike(name):
    """Every member of the family, as loaded: a ragged prompt and a decode step."""
    model = load(name)
    cache, works = model.new_cache(2), []
    for news in ([6, 3], [1, 1]):
        works.append(ragged(news, cache.lengths.tolist(), model.shape.windows, 2))
        model.meter.sample(model.forward([np.arange(n) for n in news], cache))
    assert not clash(simulated(model.shape, works), measured(model.meter))


@family
@pytest.mark.parametrize("gamma", [1, 4])
def test_the_trained_pair_counts_alike(gamma):
    """Primary and drafter, a ragged batch decoded speculatively."""
    target, draft = load("primary"), load("drafter")
    prompts = [stream(gamma, "p", i).integers(0, 1024, n) for i, n in enumerate((9, 4, 17))]
    texts = decode(speculative.Twin(draft, gamma), target, prompts, [20, 3, 31])
    passes = list(decoded(Speculative("drafter", gamma), texts, (target.shape.windows, draft.shape.windows)))
    ours = [simulated(m.shape, [w for i, w in passes if i == k], p) for k, (m, p) in
            enumerate(((target, ""), (draft, "draft.")))]  # fmt: skip
    assert not clash(added(*ours), added(measured(target.meter), measured(draft.meter)))


def test_expected_experts_are_the_mean_of_visited_ones():
    """Tokens routed uniformly at random visit E(1 - (1 - k/E)^n) experts on average, which the simulator charges."""
    shape = small_shape(experts=6)
    luck, tokens, tries = stream(0, "routes"), 5, 4000
    chosen = luck.random((tries, tokens, 6)).argsort(axis=-1)[..., :2].reshape(tries, -1)
    visited = np.mean([len(set(row)) for row in chosen.tolist()])
    expected = simulated(shape, [ragged([tokens], [0], (None,), 1)])["bytes_weights"]["moe.down"]
    one = 2 * shape.layers[0].ffn.expert_parameters(16)["mlp.down"] * 4
    assert visited == pytest.approx(expected / one, rel=0.01)


@pytest.mark.parametrize("kind", ["flops", "bytes_weights", "bytes_kv", "bytes_activations"])
def test_a_count_that_is_off_by_one_is_found(kind):
    """The comparison names the op and both numbers when a single count differs by one."""
    tally = simulated(small_shape(), [ragged([3], [2], (None,), 1)])
    off = {k: Counter(v) for k, v in tally.items()}
    op = next(iter(k for k, v in tally[kind].items() if v))
    off[kind][op] += 1
    [found] = mismatches(tally, off)
    assert (found.kind, found.op, found.measured - found.simulated) == (kind, op, 1)
    assert op in str(found)
