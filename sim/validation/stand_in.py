"""Decoders with Gaussian weights in any shape: what they say means nothing, what they cost is real."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.analytic.model import Attention, Ffn, Layer, ModelShape
from sim.reference.numerics import Numerics
from sim.reference.rope import Rope
from sim.reference.sampling import stream
from sim.reference.transformer import Transformer

Array = NDArray[np.float32]


def stand_in(
    shape: ModelShape, seed: int = 0, kind: type[Transformer] = Transformer, sharpness: float = 1.0
) -> Transformer:
    """A float32 model of a decoder-only ``shape``; ``sharpness`` scales its logits. For shapes that the witness runs.

    Matrices are stored as checkpoints store them, [out, in], and used as views.
    """
    draw = _Draw(shape, stream(seed, "stand-in"))
    weights: dict[str, Any] = {
        "embed": draw.normal(shape.vocab, shape.d_model),
        "logits": sharpness * draw.matrix(shape.d_model, shape.vocab),
        **draw.norm("norm.final"),
    }
    for i, layer in enumerate(shape.layers):
        weights |= draw.layer(f"layers.{i}.", layer)
    rope = Rope(shape.layers[0].attention.head_dim) if shape.layers[0].attention.rope else None
    return kind(shape, Numerics(rope=rope, post_norms=shape.layers[0].norms >= 4), weights)


def dense(
    d: int, layers: int, heads: int, kv_heads: int, width: int, vocab: int, window: int | None = None
) -> ModelShape:
    """A Llama-like shape."""
    block = Attention(heads, kv_heads, d // heads, d // heads, window=window)
    return ModelShape(f"d{d}-l{layers}", d, vocab, (Layer(block, Ffn(width)),) * layers)


def with_encoder(shape: ModelShape, buckets: int, seed: int = 0) -> dict[str, Any]:
    """Gaussian weights of an encoder-decoder whose positions are relative, as T5's are: so many ``buckets``."""
    draw = _Draw(shape, stream(seed, "stand-in"))
    weights: dict[str, Any] = {"embed": draw.normal(shape.vocab, shape.d_model)}
    weights["logits"] = draw.matrix(shape.d_model, shape.vocab)
    for prefix, layers in (("", shape.layers), ("encoder.", shape.encoder)):
        weights |= draw.norm(f"{prefix}norm.final")
        weights[f"{prefix}relative"] = draw.normal(buckets, layers[0].attention.heads)
        for i, layer in enumerate(layers):
            weights |= draw.layer(f"{prefix}layers.{i}.", layer)
    return weights


class _Draw:
    """Weights of one shape from one stream."""

    def __init__(self, shape: ModelShape, luck: np.random.Generator) -> None:
        self.shape, self.luck = shape, luck

    def normal(self, *size: int) -> Array:
        return self.luck.standard_normal(size, dtype=np.float32)

    def matrix(self, rows: int, columns: int) -> Array:
        return (self.normal(columns, rows) / np.float32(rows**0.5)).T

    def norm(self, key: str) -> dict[str, Array]:
        d = self.shape.d_model
        out: dict[str, Array] = {key: np.ones(d, np.float32)}
        if self.shape.norm_vectors == 2:
            out[f"{key}.bias"] = self.normal(d) / np.float32(4)
        return out

    def layer(self, key: str, layer: Layer) -> dict[str, Array]:
        kind, d = layer.attention, self.shape.d_model
        queries, values = kind.heads * kind.head_dim, kind.heads * kind.value_dim
        kv = kind.kv_heads * (kind.head_dim + kind.value_dim)
        names = ["attn", "mlp", *(["post_attn", "post_mlp"] if layer.norms >= 4 else [])]
        norms = [self.norm(f"{key}norm.{name}") for name in names]
        return {
            **{k: v for norm in norms for k, v in norm.items()},
            **self._with_bias(f"{key}attn.qkv", d, queries + kv, kind.qkv_bias),
            **self._with_bias(f"{key}attn.out", values, d, kind.out_bias),
            **{f"{key}attn.{n}_norm": np.ones(kind.qk_norm, np.float32) for n in "qk" if kind.qk_norm},
            **(self.across(key, layer.cross) if layer.cross else {}),
            **self.feed_forward(key, layer.ffn),
        }

    def across(self, key: str, kind: Attention) -> dict[str, Array]:
        d, queries, values = self.shape.d_model, kind.heads * kind.head_dim, kind.heads * kind.value_dim
        kv = kind.kv_heads * (kind.head_dim + kind.value_dim)
        return {
            **self.norm(f"{key}norm.cross"),
            f"{key}cross.q": self.matrix(d, queries),
            f"{key}cross.kv": self.matrix(d, kv),
            f"{key}cross.out": self.matrix(values, d),
        }

    def feed_forward(self, key: str, ffn: Ffn) -> dict[str, Array]:
        d, wide = self.shape.d_model, ffn.width * ffn.up_factor
        if not ffn.experts:
            up = self._with_bias(f"{key}mlp.up", d, wide, ffn.bias)
            return up | self._with_bias(f"{key}mlp.down", ffn.width, d, ffn.bias)
        return {
            f"{key}moe.router": self.matrix(d, ffn.experts),
            f"{key}moe.up": np.stack([self.matrix(d, wide) for _ in range(ffn.experts)]),
            f"{key}moe.down": np.stack([self.matrix(ffn.width, d) for _ in range(ffn.experts)]),
        }

    def _with_bias(self, key: str, rows: int, columns: int, bias: bool) -> dict[str, Array]:
        return {key: self.matrix(rows, columns), **({f"{key}.bias": self.normal(columns)} if bias else {})}
