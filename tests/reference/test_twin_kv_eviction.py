"""Caches that really evict: counts, what they keep, rollback, and what it costs the trained model in quality."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import small_shape
from variant_counting import counted

from sim.reference.checkpoint import load, shipped_names
from sim.reference.sampling import stream
from sim.reference.variants.kv_eviction import Evicting, Rule
from sim.validation.counts import measured, mismatches, ragged
from sim.validation.stand_in import stand_in
from sim.validation.tokens import held_out
from sim.variants.kv_eviction import METHODS, KvEviction

METHOD = pytest.mark.parametrize("method", METHODS)


@settings(max_examples=60)
@given(
    method=st.sampled_from(METHODS), budget=st.integers(4, 9), sinks=st.integers(0, 2), rope=st.booleans(),
    passes=st.lists(st.lists(st.integers(0, 6), min_size=2, max_size=2), min_size=1, max_size=6),
)  # fmt: skip
def test_every_op_counts_as_the_cache_that_evicts(
    method: str, budget: int, sinks: int, rope: bool, passes: list[list[int]]
) -> None:
    """Ragged chunked passes, grouped heads: FLOPs and bytes of every op, exactly; never more held than allowed."""
    shape = small_shape(rope=rope)
    variant = KvEviction(budget, method, sinks)
    twin = Evicting.of(stand_in(shape), Rule(budget, method, sinks))
    cache, works, most = twin.new_cache(2), [], 0
    for news in (p for p in passes if sum(p)):
        works.append(ragged(news, cache.lengths.tolist(), (budget,), sum(n > 0 for n in news)))
        twin.meter.sample(twin.forward([np.arange(n) % shape.vocab for n in news], cache))
        most = max(most, *news)
    assert not [str(m) for m in mismatches(counted(shape, works, variant), measured(twin.meter))]
    assert cache.held <= budget if method == "h2o" else cache.held <= budget - 1 + most


@METHOD
def test_a_budget_above_the_context_changes_nothing(method: str) -> None:
    """Logits of a prompt and ten steps are those of the whole cache (to float rounding)."""
    base = stand_in(small_shape(), 2)
    twin = Evicting.of(base, Rule(64, method))
    a, b = base.new_cache(), twin.new_cache()
    for news in ([7], *[[1]] * 10):
        tokens = [stream(len(news), "t", int(a.lengths[0])).integers(0, 31, n) for n in news]
        assert np.allclose(base.forward(tokens, a), twin.forward(tokens, b), atol=1e-4)


def test_a_window_is_the_model_with_that_window() -> None:
    """Eviction of the oldest gives the logits of masked attention over the whole cache."""
    base = stand_in(small_shape(window=6), 2)
    twin = Evicting.of(stand_in(small_shape(), 2), Rule(6, "window"))
    a, b = base.new_cache(), twin.new_cache()
    for n in (9, 1, 1, 3, 1):
        tokens = [stream(n, "t", int(a.lengths[0])).integers(0, 31, n)]
        assert np.allclose(base.forward(tokens, a, rows="all"), twin.forward(tokens, b, rows="all"), atol=1e-4)


def test_one_pass_or_many_keep_the_same() -> None:
    """Streaming and H2O read a text in one pass as token by token."""
    for method in ("streaming", "h2o"):
        twin = Evicting.of(stand_in(small_shape(), 4), Rule(7, method, 2))
        text = stream(1, "text").integers(0, 31, 20)
        whole, each = twin.new_cache(), twin.new_cache()
        at_once = twin.forward([text], whole, rows="all")
        steps = [twin.forward([text[i : i + 1]], each) for i in range(20)]
        assert np.allclose(at_once, np.concatenate(steps), atol=1e-4)


def test_streaming_counts_positions_inside_the_cache() -> None:
    """Texts with the same sinks and last tokens, more or less between them, end in the same logits (one layer)."""
    twin = Evicting.of(stand_in(small_shape(layers=1), 5), Rule(6, "streaming", 2))
    head, tail = [3, 4], [7, 8, 9, 10]
    out = []
    for middle in (4, 40):
        cache = twin.new_cache()
        text = np.array([*head, *[1] * middle, *tail])
        out.append(twin.forward([text], cache))
        assert set(cache.places[0]) >= {0, 1}
    assert np.allclose(out[0], out[1], atol=1e-3)


@pytest.mark.parametrize("method", ["streaming", "window"])
def test_a_rejected_draft_is_rolled_back(method: str) -> None:
    """Verify four drafts, keep one: what follows is as if the other three had never been."""
    twin = Evicting.of(stand_in(small_shape(), 6), Rule(7, method, 2))
    text, drafts = stream(2, "text").integers(0, 31, 15), np.array([1, 2, 3, 4])
    a, b = twin.new_cache(), twin.new_cache()
    twin.forward([text], a)
    twin.forward([drafts], a, rows="all")
    a.truncate(0, 16)
    twin.forward([np.append(text, 1)], b)
    for n in range(3):
        assert np.allclose(twin.forward([np.array([n])], a), twin.forward([np.array([n])], b), atol=1e-4)


def test_heavy_hitters_stay() -> None:
    """After a long text every head holds its recent tokens, and the others have had more weight than a random one."""
    twin = Evicting.of(stand_in(small_shape(), 7), Rule(8, "h2o", recent=4))
    cache = twin.new_cache()
    twin.forward([stream(3, "text").integers(0, 31, 60)], cache)
    for layer in cache.births:
        for head in layer[0]:
            assert {56, 57, 58, 59} <= set(head.tolist()) and len(set(head.tolist())) == 8
    assert min(b[0].min() for b in cache.births) < 50


@pytest.fixture(scope="module")
def family() -> Any:
    """(primary, windows of text B, its logits)."""
    if "primary" not in shipped_names():
        pytest.skip("no trained family")
    model, text = load("primary"), np.array(held_out("b", 8, 128))
    return model, text, model.forward(list(text), model.new_cache(len(text)), rows="all").reshape(*text.shape, -1)


def quality(family: Any, rule: Rule) -> tuple[float, float]:
    """Nats a token lost, and equal argmaxes, over the last 64 tokens of each window."""
    model, text, plain = family
    twin = Evicting.of(model, rule)
    out = twin.forward(list(text), twin.new_cache(len(text)), rows="all").reshape(*text.shape, -1)
    losses = []
    for logits in (plain, out):
        logits = logits[:, 63:-1].astype(np.float64)
        spread = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
        chosen = np.take_along_axis(logits, text[:, 64:, None], axis=-1)[..., 0]
        losses.append(float((spread - chosen).mean()))
    return losses[1] - losses[0], float((plain[:, 63:].argmax(-1) == out[:, 63:].argmax(-1)).mean())


@METHOD
def test_a_larger_budget_loses_less(family: Any, method: str) -> None:
    """8 < 32 < 128 of 128 tokens; the whole budget loses nothing (docs/policies/kv-eviction.md has the numbers)."""
    lost, agree = zip(*(quality(family, Rule(b, method)) for b in (8, 32, 128)), strict=True)
    assert lost[0] > lost[1] > -0.02 and abs(lost[2]) < 1e-3
    assert agree[0] < agree[1] <= agree[2] and agree[2] > 0.999


def test_the_rule_defaults_to_half_recent() -> None:
    assert Rule(20, "h2o").last == 10 and replace(Rule(20, "h2o"), recent=3).last == 3
