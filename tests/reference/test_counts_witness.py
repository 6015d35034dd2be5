"""What the meter counts equals the closed forms of docs/conventions.md, written here once more and independently."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import random_transformer, small_shape

from sim.analytic.model import Attention, Ffn, Layer, ModelShape
from sim.reference.batch import TreeMask
from sim.reference.meter import Meter
from sim.reference.transformer import Transformer

KINDS = ("flops", "bytes_weights", "bytes_kv", "bytes_activations")


@dataclass
class Watched(Transformer):
    """Remembers which experts ran: routing follows the numbers, so no closed form knows."""

    visits: Counter[str] = field(default_factory=Counter)

    def expert(self, key: str, ffn: Ffn, expert: int, x: Any) -> Any:
        """Note the visit, then run."""
        self.visits[key] += 1
        return super().expert(key, ffn, expert, x)


@dataclass
class Expected:
    """The page's table, one method a row; numbers are turned into bytes at the end."""

    shape: ModelShape
    flops: Counter[str] = field(default_factory=Counter)
    bytes_weights: Counter[str] = field(default_factory=Counter)
    bytes_kv: Counter[str] = field(default_factory=Counter)
    bytes_activations: Counter[str] = field(default_factory=Counter)

    def op(self, name: str, flops: int, weights: int = 0, activations: int = 0, kv: int = 0) -> None:
        self.flops[name] += flops
        self.bytes_weights[name] += weights
        self.bytes_activations[name] += activations
        self.bytes_kv[name] += kv

    def norm(self, name: str, rows: int) -> None:
        if rows:
            self.op(name, 4 * rows * self.shape.d_model, self.shape.norm_vectors * self.shape.d_model,
                    2 * rows * self.shape.d_model)  # fmt: skip

    def product(self, name: str, rows: int, k: int, n: int, bias: bool = False) -> None:
        self.op(name, 2 * rows * k * n, k * n + (n if bias else 0), rows * k + rows * n)

    def attention(self, name: str, kind: Attention, rows: int, pairs: int, reads: int) -> None:
        self.op(f"{name}.scores", 2 * kind.heads * kind.head_dim * pairs, 0, rows * kind.heads * kind.head_dim,
                reads * kind.kv_heads * kind.head_dim)  # fmt: skip
        self.op(f"{name}.softmax", 5 * kind.heads * pairs, 0, 4 * kind.heads * pairs)
        self.op(f"{name}.values", 2 * kind.heads * kind.value_dim * pairs, 0, rows * kind.heads * kind.value_dim,
                reads * kind.kv_heads * kind.value_dim)  # fmt: skip

    def self_attention(self, p: str, kind: Attention, rows: int, pairs: int, reads: int) -> None:
        d = self.shape.d_model
        q, kv = kind.heads * kind.head_dim, kind.kv_heads * (kind.head_dim + kind.value_dim)
        self.product(f"{p}attn.qkv", rows, d, q + kv, kind.qkv_bias)
        if kind.qk_norm:
            heads = rows * (kind.heads + kind.kv_heads) * kind.head_dim
            self.op(f"{p}attn.qkv", 0, 2 * kind.qk_norm)
            self.op("attn.qk_norm", 4 * heads, 0, 2 * heads)
        if kind.rope:
            turned = rows * (kind.heads + kind.kv_heads) * kind.head_dim
            self.op(f"{p}attn.rope", 3 * turned, 0, 2 * turned)
        if not p:
            self.op("kv.append", 0, kv=rows * kv)
        self.attention(f"{p}attn", kind, rows, pairs, reads)
        self.product(f"{p}attn.out", rows, kind.heads * kind.value_dim, d, kind.out_bias)

    def ffn(self, p: str, ffn: Ffn, rows: int, visited: int) -> None:
        d, up = self.shape.d_model, 2 if ffn.gated else 1
        name, visits = (f"{p}mlp", 1) if not ffn.experts else ("moe", visited)
        if ffn.experts:
            self.product("moe.router", rows, d, ffn.experts)
            rows *= ffn.experts_per_token
        f = ffn.width
        extra = (f * up, d) if ffn.bias else (0, 0)
        self.op(f"{name}.up", 2 * rows * d * f * up, visits * d * f * up + extra[0], rows * d + rows * f * up)
        self.op(f"{name}.act", rows * f * (5 if ffn.gated else 4), 0, rows * f * up + rows * f)
        self.op(f"{name}.down", 2 * rows * f * d, visits * f * d + extra[1], rows * f + rows * d)

    def decoder_pass(self, news: list[int], cached: list[int], logit_rows: int, visited: list[int]) -> None:
        """``news`` and ``cached`` tokens a sequence; ``visited`` experts a layer."""
        rows, d = sum(news), self.shape.d_model
        self.op("embed", 0, rows * d, rows * d)
        for layer, visits in zip(self.shape.layers, visited, strict=True):
            kind = layer.attention
            w = kind.window or 10**9
            pairs = sum(min(w, s + j + 1) for n, s in zip(news, cached, strict=True) for j in range(n))
            reads = sum(min(s, w - 1) for n, s in zip(news, cached, strict=True) if n)
            self.norm("norm.attn", rows)
            self.self_attention("", kind, rows, pairs, reads)
            self.norm("norm.mlp", rows)
            self.ffn("", layer.ffn, rows, visits)
            if layer.norms == 4:
                self.norm("norm.post_attn", rows)
                self.norm("norm.post_mlp", rows)
        self.head(logit_rows)

    def head(self, rows: int) -> None:
        if rows:
            self.norm("norm.final", rows)
            self.product("logits", rows, self.shape.d_model, self.shape.vocab)

    def check(self, meter: Meter, itemsize: int) -> None:
        for kind in KINDS:
            scale = itemsize if kind.startswith("bytes") else 1
            want = {name: count * scale for name, count in getattr(self, kind).items() if count}
            assert dict(getattr(meter, kind)) == want, kind


@st.composite
def shapes(draw: st.DrawFn) -> ModelShape:
    """Decoders with any mix of what the page has a row for."""
    layers = []
    for _ in range(draw(st.integers(1, 3))):
        groups, dim = draw(st.integers(1, 3)), 2 * draw(st.integers(1, 4))
        kind = Attention(
            groups * draw(st.integers(1, 3)), groups, dim, draw(st.integers(1, 7)),
            window=draw(st.none() | st.integers(1, 9)), qkv_bias=draw(st.booleans()), out_bias=draw(st.booleans()),
            qk_norm=dim if draw(st.booleans()) else 0, rope=False,
        )  # fmt: skip
        experts = draw(st.sampled_from([0, 0, 2, 5]))
        ffn = Ffn(draw(st.integers(1, 12)), gated=draw(st.booleans()), bias=not experts and draw(st.booleans()),
                  experts=experts, experts_per_token=min(experts, 2))  # fmt: skip
        layers.append(Layer(kind, ffn, norms=2))
    norm = draw(st.sampled_from(["rms", "layer"]))
    return ModelShape("any", 2 * draw(st.integers(2, 8)), draw(st.integers(2, 40)), tuple(layers), norm=norm)


@settings(max_examples=60)
@given(
    shape=shapes(),
    passes=st.lists(st.lists(st.integers(0, 6), min_size=2, max_size=2), min_size=1, max_size=4),
    rows=st.sampled_from(["last", "all", "none"]),
    wide=st.booleans(),
    exact=st.booleans(),
)
def test_any_run_counts_as_the_page_says(
    shape: ModelShape, passes: list[list[int]], rows: Any, wide: bool, exact: bool
) -> None:
    """FLOPs and bytes of every op, over ragged chunked passes, in both modes and number types."""
    passes = [news for news in passes if sum(news)]
    model = random_transformer(shape, dtype=np.float64 if wide else np.float32, kind=Watched)
    model.exact = exact
    cache, expected = model.new_cache(2), Expected(shape)
    for news in passes:
        cached = cache.lengths.tolist()
        model.visits.clear()
        model.forward([np.arange(n) % shape.vocab for n in news], cache, rows=rows)
        emitting = {"last": sum(n > 0 for n in news), "all": sum(news), "none": 0}[rows]
        expected.decoder_pass(news, cached, emitting, [model.visits[f"layers.{i}."] for i in range(len(shape.layers))])
    expected.check(model.meter, 8 if wide else 4)
    if exact:
        assert not model.meter.masked_flops


def test_rope_and_post_norms_count() -> None:
    """The rows that random shapes leave out: RoPE and the norms after a block (Gemma 2)."""
    layers = tuple(replace(layer, norms=4) for layer in small_shape(3).layers)
    shape = replace(small_shape(3), layers=layers)
    model, expected = random_transformer(shape), Expected(shape)
    model.forward([np.arange(7)], model.new_cache())
    expected.decoder_pass([7], [0], 1, [0, 0])
    expected.check(model.meter, 8)


def test_hand_count_of_one_decode_step() -> None:
    """d 16, 4 heads of 6 over 2 groups, ffn 10, vocabulary 31, two layers: one token after five, counted by hand."""
    model = random_transformer(small_shape(), dtype=np.float32)
    cache = model.new_cache()
    model.forward([np.arange(5)], cache)
    model.meter.reset()
    model.forward([np.array([1])], cache)
    flops = model.meter.flops
    assert flops["attn.qkv"] == 2 * (2 * 16 * 48)  # 24 query, 12 key, 12 value columns
    assert flops["attn.scores"] == flops["attn.values"] == 2 * (2 * 4 * 6 * 6)  # six pairs
    assert flops["attn.softmax"] == 2 * (5 * 4 * 6)
    assert flops["attn.rope"] == 2 * (3 * 6 * 6)
    assert flops["mlp.up"] == 2 * (2 * 16 * 20) and flops["mlp.down"] == 2 * (2 * 10 * 16)
    assert flops["logits"] == 2 * 16 * 31 and flops["norm.final"] == 64
    assert model.meter.bytes_kv == {
        "kv.append": 2 * 24 * 4,
        "attn.scores": 2 * 5 * 12 * 4,
        "attn.values": 2 * 5 * 12 * 4,
    }
    assert model.meter.bytes_weights["logits"] == 16 * 31 * 4 and model.meter.bytes_weights["embed"] == 64
    assert not model.meter.masked_flops


def test_masked_work_is_the_rest_of_the_square() -> None:
    """A causal prefill multiplies the whole rectangle: what the mask hides is reported beside the live work."""
    model = random_transformer(small_shape(layers=1))
    cache = model.new_cache()
    model.forward([np.arange(4)], cache)
    model.meter.reset()
    model.forward([np.arange(5)], cache)
    hidden = 5 * 9 - (5 * 4 + 15)
    assert hidden == 10
    per_pair = {"attn.scores": 2 * 4 * 6, "attn.values": 2 * 4 * 6, "attn.softmax": 5 * 4}
    assert model.meter.masked_flops == {name: hidden * n for name, n in per_pair.items()}
    assert model.meter.flops["attn.scores"] == 35 * 48


def test_a_tree_counts_the_pairs_its_mask_lets_through() -> None:
    """Three cached tokens, a root with two children: each sees the cache, its ancestors and itself."""
    model = random_transformer(small_shape(layers=1))
    cache = model.new_cache()
    model.forward([np.arange(3)], cache)
    model.meter.reset()
    model.forward([np.arange(3)], cache, tree=TreeMask((-1, 0, 0)), rows="all")
    assert model.meter.flops["attn.scores"] == 2 * 4 * 6 * (4 + 5 + 5)
    assert model.meter.bytes_kv["attn.scores"] == 3 * 12 * 8


@pytest.mark.parametrize("exact", [False, True])
def test_encoder_decoder_counts(exact: bool) -> None:
    """Encoder ops under their prefix, cross keys and values once, the source read in every decoder pass."""
    own = Attention(2, 2, 6, 6, rope=False)
    ffn = Ffn(10, gated=False, activation="relu")
    shape = ModelShape("t5", 16, 31, (Layer(own, ffn, norms=3, cross=own),) * 2,
                       (Layer(replace(own, causal=False), ffn),) * 3)  # fmt: skip
    model, expected = random_transformer(shape), Expected(shape)
    model.exact = exact
    cache = model.new_cache(2)
    sources = [7, 4]
    model.encode([np.arange(n) for n in sources], cache)
    _encoder(expected, sources)
    for news, cached in (([3, 2], [0, 0]), ([1, 1], [3, 2])):
        model.forward([np.arange(n) for n in news], cache)
        expected.decoder_pass(news, cached, 2, [0, 0])
        expected.op("attn.bias", 0, 8 * 2)
        for _ in shape.layers:
            expected.norm("norm.cross", sum(news))
            expected.product("cross.q", sum(news), 16, 12)
            expected.attention("cross", own, sum(news), sum(n * s for n, s in zip(news, sources, strict=True)), 11)
            expected.product("cross.out", sum(news), 12, 16)
    expected.check(model.meter, 8)


def _encoder(expected: Expected, sources: list[int]) -> None:
    rows, shape = sum(sources), expected.shape
    expected.op("encoder.embed", 0, rows * 16, rows * 16)
    expected.op("encoder.attn.bias", 0, 8 * 2)
    for layer in shape.encoder:
        expected.norm("encoder.norm.attn", rows)
        expected.self_attention("encoder.", layer.attention, rows, sum(n * n for n in sources), 0)
        expected.norm("encoder.norm.mlp", rows)
        expected.ffn("encoder.", layer.ffn, rows, 0)
    expected.norm("encoder.norm.final", rows)
    for _ in shape.layers:
        expected.product("cross.kv", rows, 16, 24)
        expected.op("cross.kv", 0, kv=rows * 24)


def test_prefixes_nest_and_end() -> None:
    """Ops of a draft model are counted under its prefix, those after the block without."""
    meter = Meter()
    with meter.prefix("draft."), meter.prefix("encoder."):
        meter.linear("mlp.up", np.ones((2, 3)), np.ones((3, 4)))
    meter.linear("mlp.up", np.ones((2, 3)), np.ones((3, 4)))
    assert meter.flops == {"draft.encoder.mlp.up": 48, "mlp.up": 48}
    meter.sample(np.zeros((2, 7), np.float64))
    assert meter.flops["sample"] == 70 and meter.bytes_activations["sample"] == 56
