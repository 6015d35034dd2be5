"""Contextual sparsity that really runs: counts of what predictors choose, and what their misses cost."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import small_shape
from variant_counting import counted

from sim.analytic.model import Attention, Ffn, Layer, ModelShape
from sim.analytic.work import Work
from sim.reference.checkpoint import load, shipped_names
from sim.reference.sampling import stream
from sim.reference.transformer import Transformer
from sim.reference.variants.contextual_sparsity import Keep, Sparse, fitted, source
from sim.validation.counts import measured, mismatches
from sim.validation.stand_in import stand_in
from sim.validation.tokens import held_out
from sim.variants.contextual_sparsity import ContextualSparsity

TRAINED = pytest.mark.skipif(not {"primary", "relu"} <= set(shipped_names()), reason="no trained family")
GATHERED = ("attn.qkv", "attn.out", "mlp.up", "mlp.down")


def texts(base: Transformer, count: int = 6) -> list[Any]:
    """Random texts to fit predictors on."""
    return [stream(4, "fit", i).integers(0, base.shape.vocab, 12) for i in range(count)]


def decoded(twin: Transformer, prompts: list[int], steps: int) -> list[Work]:
    """Prompts one by one, then decodes of all of them."""
    cache, works = twin.new_cache(len(prompts)), []
    for i, n in enumerate(prompts):
        works.append(Work.chunk(n, 0))
        twin.meter.sample(twin.forward([np.arange(n) % twin.shape.vocab], cache, [i]))
    for _ in range(steps):
        held = cache.lengths.tolist()
        works.append(Work(len(held), len(held), (sum(held) + len(held),), (sum(held),)))
        twin.meter.sample(twin.forward([np.array([i]) for i in range(len(held))], cache))
    return works


@settings(max_examples=60, deadline=None)
@given(
    heads=st.integers(1, 2), groups=st.integers(1, 3), gated=st.booleans(), biased=st.booleans(), qk_norm=st.booleans(),
    rank=st.integers(1, 5), lookahead=st.booleans(), prompt=st.integers(1, 4), data=st.data(),
)  # fmt: skip
def test_every_op_counts_as_the_heads_and_neurons_that_run(
    heads: int, groups: int, gated: bool, biased: bool, qk_norm: bool, rank: int, lookahead: bool, prompt: int,
    data: Any,
) -> None:  # fmt: skip
    """One sequence: FLOPs and bytes of every op exactly, predictors included; prompts are multiplied whole."""
    block = Attention(heads * groups, groups, 4, 6, qkv_bias=biased, out_bias=biased, qk_norm=4 if qk_norm else 0)
    shape = ModelShape("any", 8, 40, (Layer(block, Ffn(12, gated, biased, "relu")),) * 2)
    kept = data.draw(st.sampled_from([None, 1, groups]))
    neurons = data.draw(st.sampled_from([5, 12] if kept is None else [None, 5]))
    dense = 2 if prompt > 1 else 99
    base, keep = stand_in(shape), Keep(neurons, kept, rank, lookahead, dense)
    twin = Sparse.of(base, keep, fitted(base, texts(base), keep))
    works = decoded(twin, [prompt], 4)
    variant = ContextualSparsity(neurons, kept, rank, lookahead, dense_rows=dense, half_chunk_bytes=0)
    assert not [str(m) for m in mismatches(counted(shape, works, variant), measured(twin.meter))]


def test_a_batch_counts_alike_but_for_the_union_that_chance_makes() -> None:
    """Four sequences: all but the gathered weights exactly; those are what the rows touched."""
    base, keep = stand_in(small_shape(), 2), Keep(7, 1, 3, True)
    twin = Sparse.of(base, keep, fitted(base, texts(base), keep))
    works = decoded(twin, [1] * 4, 3)
    ours = counted(base.shape, works, ContextualSparsity(7, 1, 3, dense_rows=99, half_chunk_bytes=0))
    theirs = measured(twin.meter)
    for tally in (ours, theirs):
        for op in GATHERED:
            tally["bytes_weights"].pop(op)
    assert not mismatches(ours, theirs)


def test_keeping_all_changes_nothing() -> None:
    """All neurons and all groups of heads: the model's own logits, whatever the predictors say."""
    base = stand_in(small_shape(), 3)
    layer = base.shape.layers[0]
    keep = Keep(layer.ffn.width, layer.attention.kv_heads, 2, True)
    twin = Sparse.of(base, keep, fitted(base, texts(base), keep))
    a, b = base.new_cache(2), twin.new_cache(2)
    for news in ((5, 2), (1, 1), (1, 1), (0, 3)):
        tokens = [stream(1, "t", int(n), i).integers(0, base.shape.vocab, n) for i, n in enumerate(news)]
        assert np.allclose(base.forward(tokens, a), twin.forward(tokens, b), atol=1e-4)
    assert twin.tally.recall == 1.0


def test_predictors_look_one_block_ahead() -> None:
    """MLP from the input of its layer's attention, attention from the MLP before; the first block from its own."""
    assert [source(b, True) for b in ("attn0", "mlp0", "attn1", "mlp1")] == ["attn0", "attn0", "mlp0", "attn1"]
    assert source("mlp1", False) == "mlp1"


@cache
def fitting_texts() -> tuple[Any, ...]:
    """Held-out text B, for predictors; losses are measured on A."""
    return tuple(np.array(held_out("b", 24, 96)))


def relu_loss(keep: Keep) -> tuple[float, float, float]:
    """(recall, nats a token lost, equal argmaxes) of the trained ReLU model on held-out text A."""
    net, tokens = load("relu"), np.array(held_out("a", 8, 96))
    twin = Sparse.of(net, keep, fitted(net, fitting_texts(), keep))
    before, after = (m.forward(list(tokens), m.new_cache(8), rows="all").astype(np.float64) for m in (net, twin))
    chosen = tokens[:, 1:].ravel()

    def nats(logits: Any) -> float:
        x = logits.reshape(*tokens.shape, -1)[:, :-1].reshape(len(chosen), -1)
        x = x - x.max(axis=1, keepdims=True)
        return float((np.log(np.exp(x).sum(axis=1)) - x[np.arange(len(chosen)), chosen]).mean())

    same = (before.argmax(axis=1) == after.argmax(axis=1)).mean()
    return twin.tally.recall, nats(after) - nats(before), float(same)


@TRAINED
def test_predictor_error_costs_quality() -> None:
    """Half of the neurons: rank 64 loses under 0.02 nats, rank 16 several times that; looking ahead loses more."""
    kinds = ((64, True), (16, True), (64, False))
    good, small, own = (relu_loss(Keep(384, None, rank, ahead)) for rank, ahead in kinds)
    assert good[0] > 0.88 and good[1] < 0.02 and good[2] > 0.9
    assert small[0] < good[0] < own[0]
    assert small[1] > 3 * max(good[1], own[1])


@TRAINED
def test_fewer_neurons_lose_more() -> None:
    """A quarter of the neurons at rank 64: more nats than half of them, fewer equal argmaxes."""
    half, quarter = relu_loss(Keep(384, None, 64)), relu_loss(Keep(192, None, 64))
    assert quarter[1] > half[1] and quarter[2] < half[2] and quarter[0] < half[0]


def test_what_the_witness_cannot_do_is_refused() -> None:
    """Windows: one line."""
    with pytest.raises(ValueError, match="windows"):
        Sparse.of(stand_in(small_shape(window=4)), Keep(None, 1), {})
