"""Other ways to attend, really run: counts, and what they compute against its definition."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import random_transformer, small_shape
from variant_counting import counted

from sim.analytic.model import Attention as Block
from sim.analytic.model import Ffn, Layer, ModelShape
from sim.analytic.work import Work
from sim.reference.sampling import stream
from sim.reference.variants.attention import BlockSparse, Linear, Linformer
from sim.validation.counts import measured, mismatches, ragged
from sim.validation.stand_in import stand_in
from sim.variants.attention import Attention

OWN = Block(2, 2, 6, 6, causal=False, rope=False)
ENCODER = ModelShape("e", 16, 31, (), (Layer(OWN, Ffn(10, gated=False, activation="relu")),) * 2, head=False,
                     max_context=40)  # fmt: skip


@settings(max_examples=40)
@given(features=st.sampled_from([0, 3, 8]), first=st.lists(st.integers(20, 30), min_size=2, max_size=2),
       later=st.lists(st.lists(st.integers(0, 4), min_size=2, max_size=2), max_size=3))  # fmt: skip
def test_linear_attention_counts_alike(features: int, first: list[int], later: list[list[int]]) -> None:
    """FLOPs and bytes of every op, exactly, once a text is longer than its state is large (and when it is new)."""
    shape = small_shape()
    variant = Attention("performer" if features else "linear", features=features or 1)
    twin = Linear.of(stand_in(shape), features)
    cache, works = twin.new_cache(2), []
    windows = variant.reshape(shape).windows
    assert windows[0] is not None and windows[0] <= 20
    for news in (p for p in (first, *later) if sum(p)):
        works.append(ragged(news, cache.lengths.tolist(), windows, sum(n > 0 for n in news)))
        twin.meter.sample(twin.forward([np.arange(n) % shape.vocab for n in news], cache))
    assert not [str(m) for m in mismatches(counted(shape, works, variant), measured(twin.meter))]


@settings(max_examples=20)
@given(rank=st.integers(1, 12), sources=st.lists(st.integers(1, 30), min_size=1, max_size=3))
def test_linformer_counts_alike(rank: int, sources: list[int]) -> None:
    """An encoder over texts of any length."""
    decoder = replace(ENCODER, layers=(Layer(OWN, ENCODER.encoder[0].ffn, norms=3, cross=OWN),))
    base = random_transformer(decoder, dtype=np.float32)
    twin = Linformer.of(base, rank, 40)
    twin.encode([np.arange(n) % 31 for n in sources], twin.new_cache(len(sources)))
    tokens = sum(sources)
    work = Work(0, 0, encoder_tokens=tokens, encoder_pairs=sum(n * n for n in sources), cross_kv_tokens=tokens)
    ours = counted(decoder, [work], Attention("linformer", rank=rank))
    assert not [str(m) for m in mismatches(ours, measured(twin.meter))]


@pytest.mark.parametrize(("block", "every", "length"), [(4, 2, 40), (4, 4, 64), (1, 3, 30)])
def test_block_sparse_attention_multiplies_its_share_of_pairs(block: int, every: int, length: int) -> None:
    """FLOPs of scores, softmax and values by the density that the mask really has; the rest unchanged."""
    shape = small_shape()
    twin = BlockSparse.of(stand_in(shape), block, every)
    twin.meter.sample(twin.forward([np.arange(length) % 31], twin.new_cache()))
    density = twin.live / twin.whole
    assert density == pytest.approx(1 / every, rel=0.3)
    work = ragged([length], [0], (None,), 1)
    ours, theirs = counted(shape, [work], Attention("block_sparse", density=density))["flops"], twin.meter.flops
    assert {op: pytest.approx(n) for op, n in ours.items() if n} == dict(theirs)


def test_a_state_is_the_sum_over_all_keys() -> None:
    """Recurrent linear attention gives phi(q) sum phi(k) v / phi(q) sum phi(k), however the text is cut."""
    shape = small_shape(layers=1, rope=False)
    twin = Linear.of(stand_in(shape, 3))
    text = stream(0, "t").integers(0, 31, 12)
    one, cut = (twin.new_cache() for _ in range(2))
    whole = twin.forward([text], one, rows="all")
    pieces = [twin.forward([text[a:b]], cut, rows="all") for a, b in ((0, 5), (5, 6), (6, 12))]
    assert np.allclose(whole, np.concatenate(pieces), atol=1e-4)
    kind, x = shape.layers[0].attention, stream(1, "x").normal(size=(9, 16)).astype(np.float32)
    cache = twin.new_cache()
    from sim.reference.batch import make_batch

    batch = make_batch([np.arange(9)], [0], cache.lengths, 31)
    mixed = np.linalg.lstsq(twin.weights["layers.0.attn.out"].T, twin.attention(0, x, batch, cache).T, rcond=None)[0].T
    q, k, v = twin.project(0, x, np.arange(9), np.arange(9))
    q, k = (np.where(a > 0, a + 1, np.exp(np.minimum(a, 0))) for a in (q * 6**-0.25, k * 6**-0.25))
    k, v = (np.repeat(a, 2, axis=1) for a in (k, v))
    scores = np.einsum("ihf,jhf->hij", q, k) * np.tri(9)
    truth = np.einsum("hij,jhd->ihd", scores / scores.sum(-1, keepdims=True), v).reshape(9, kind.heads * 6)
    projected = truth @ twin.weights["layers.0.attn.out"]
    assert np.allclose(mixed @ twin.weights["layers.0.attn.out"], projected, atol=1e-3)


def test_random_features_approach_softmax_attention() -> None:
    """Performer: error against exact attention falls with features, by about their square root."""
    shape = small_shape(layers=1)
    base = stand_in(shape, 3)
    text = stream(0, "t").integers(0, 31, 24)
    truth = base.forward([text], base.new_cache(), rows="all")

    def error(features: int) -> float:
        twin = Linear.of(base, features)
        return float(np.abs(twin.forward([text], twin.new_cache(), rows="all") - truth).mean())

    errors = [error(f) for f in (16, 256, 8192)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.5 * errors[0]
