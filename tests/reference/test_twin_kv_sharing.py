"""Key/value heads shared otherwise, for real: counts, copies that change nothing, a latent both ways."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_twin_matformer import nats_and_choices
from variant_counts import differences, run

from sim.analytic.model import Attention, Ffn, Latent, Layer, ModelShape
from sim.analytic.work import Work
from sim.reference.checkpoint import load, shipped_names
from sim.reference.latent import LatentTransformer
from sim.reference.numerics import Numerics
from sim.reference.rope import Rope
from sim.reference.sampling import stream
from sim.reference.variants import kv_sharing
from sim.validation.stand_in import dense, stand_in
from sim.validation.tokens import held_out
from sim.variants.kv_sharing import KvSharing

PASSES = st.lists(st.lists(st.integers(0, 6), min_size=2, max_size=2).filter(sum), min_size=1, max_size=3)
family = pytest.mark.skipif("primary" not in shipped_names(), reason="no trained family")


def logits_of(net, length=9):
    """Of all tokens of one text."""
    return net.forward([np.arange(length) % net.shape.vocab], net.new_cache(1), rows="all")


@settings(max_examples=40, deadline=None)
@given(heads=st.sampled_from([1, 2, 4, 8]), passes=PASSES, rows=st.sampled_from(["last", "all", "none"]))
def test_other_heads_count_as_the_variant_says(heads, passes, rows):
    """MHA, groups and MQA of 8 query heads: FLOPs and bytes of every op."""
    base = stand_in(dense(16, 2, 8, 4, 24, 40))
    twin, variant = kv_sharing.twin(base, heads), KvSharing("gqa", heads)
    assert twin.shape == variant.reshape(base.shape)
    assert not differences(base.shape, run(twin, passes, rows), twin, variant)


def test_more_heads_are_copies_and_change_nothing():
    """MHA from 2 groups has the same logits; groups of the copies give the first model back."""
    base = stand_in(dense(16, 2, 8, 2, 24, 40))
    many = kv_sharing.twin(base, 8)
    assert logits_of(many) == pytest.approx(logits_of(base), abs=1e-5)
    assert logits_of(kv_sharing.twin(many, 2)) == pytest.approx(logits_of(base), abs=1e-5)
    assert logits_of(kv_sharing.twin(base, 1)) != pytest.approx(logits_of(base), abs=1e-2)


def latent_model(q_rank, rope, seed=0, norms=True, window=None):
    """A random decoder of two latent layers."""
    d, heads, nope, dv, rank = 16, 4, 6, 5, 7
    kind = Attention(heads, heads, nope + rope, dv, window=window, latent=Latent(q_rank, rank, rope, nope))
    shape = ModelShape("latent", d, 40, (Layer(kind, Ffn(24)),) * 2)
    luck = stream(seed, "latent")

    def matrix(rows, columns):
        return (luck.normal(size=(rows, columns)) / rows**0.5).astype(np.float32)

    ones = np.ones(d, np.float32)
    weights = {"embed": matrix(40, d) * 6, "logits": matrix(d, 40), "norm.final": ones}
    for i in range(2):
        key, wide = f"layers.{i}.", heads * (nope + rope)
        queries = {"attn.q": matrix(d, wide)}
        if q_rank is not None:
            queries = {"attn.q_down": matrix(d, q_rank), "attn.q_up": matrix(q_rank, wide)}
            queries |= {"attn.q_norm": np.ones(q_rank, np.float32)} if norms else {}
        own = {
            **queries, "attn.kv_down": matrix(d, rank + rope), "attn.kv_up": matrix(rank, heads * (nope + dv)),
            "attn.out": matrix(heads * dv, d), "mlp.up": matrix(d, 48), "mlp.down": matrix(24, d),
            "norm.attn": ones, "norm.mlp": ones, **({"attn.kv_norm": np.ones(rank, np.float32)} if norms else {}),
        }  # fmt: skip
        weights |= {key + name: w for name, w in own.items()}
    return LatentTransformer(shape, Numerics(rope=Rope(rope)), weights)


@pytest.mark.parametrize("q_rank", [None, 5])
@pytest.mark.parametrize("window", [None, 4])
def test_a_latent_absorbed_and_decompressed_gives_the_same_logits(q_rank, window):
    """Keys and values unpacked or never made: equal to float tolerance, whole prompts and single tokens alike."""
    net = latent_model(q_rank, 4, window=window)
    unpacked = replace(net, absorbed=False)
    want = logits_of(net)
    assert logits_of(unpacked) == pytest.approx(want, abs=1e-4)
    cache, steps = unpacked.new_cache(1), []
    unpacked.forward([np.arange(4)], cache)
    for t in range(4, 9):
        net = net if t % 2 else unpacked  # a cache filled one way is read the other way
        steps.append(net.forward([np.array([t])], cache)[0])
    assert np.array(steps) == pytest.approx(want[4:], abs=1e-4)


@settings(max_examples=40, deadline=None)
@given(q_rank=st.none() | st.just(5), rope=st.sampled_from([2, 4]), passes=PASSES,
       rows=st.sampled_from(["last", "all", "none"]))  # fmt: skip
def test_latent_passes_count_as_decodes(q_rank, rope, passes, rows):
    """Absorbed: every op of docs/conventions.md, the cache read once for scores and values."""
    net = latent_model(q_rank, rope)
    assert not differences(net.shape, run(net, passes, rows), net)


@settings(max_examples=40, deadline=None)
@given(q_rank=st.none() | st.just(5), rope=st.sampled_from([2, 4]), passes=PASSES)
def test_latent_passes_count_as_prefill(q_rank, rope, passes):
    """Decompressed: latents of new and cached tokens unpacked, then keys and values of cached tokens read."""
    net = replace(latent_model(q_rank, rope), absorbed=False)
    works = [
        Work(w.tokens, w.logit_rows, None, None, w.decode_pairs, w.decode_reads, w.tokens) for w in run(net, passes)
    ]
    assert not differences(net.shape, works, net)


def test_a_latent_of_full_rank_is_the_model_it_came_from():
    """Without rotation keys and values are a matrix times the input: rank 2 G dh is exact, less is not."""
    base = stand_in(dense(16, 2, 4, 2, 24, 40))
    plain = replace(base.shape.layers[0].attention, rope=False)
    shape = replace(base.shape, layers=tuple(replace(layer, attention=plain) for layer in base.shape.layers))
    base = stand_in(shape)
    full, half = kv_sharing.latent_twin(base, 16), kv_sharing.latent_twin(base, 4)
    assert logits_of(full) == pytest.approx(logits_of(base), abs=1e-4)
    assert logits_of(half) != pytest.approx(logits_of(base), abs=1e-2)
    assert full.new_cache(1).keys[0].shape == (1, 1, 64, 16)


@family
def test_merging_heads_without_training_costs_much():
    """The shipped primary (4 heads, 2 groups): MHA by copies loses nothing, MQA by means does."""
    base, tokens = load("primary"), np.array(held_out("a", 16, 128))
    nats, truth = nats_and_choices(base, tokens)
    copied, choices = nats_and_choices(kv_sharing.twin(base, 4), tokens)
    merged, others = nats_and_choices(kv_sharing.twin(base, 1), tokens)
    assert copied == pytest.approx(nats, abs=1e-4) and (choices == truth).mean() > 0.999
    assert merged > nats + 0.1 and (others == truth).mean() < 0.9
