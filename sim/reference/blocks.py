"""The products a layer is made of: projections, rotation, attention, FFN, experts, norms. All of them metered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.analytic.model import Attention, Ffn, Layer, ModelShape
from sim.reference.attention import attend, relative_buckets
from sim.reference.batch import Span
from sim.reference.meter import Meter
from sim.reference.numerics import ACTIVATIONS, Numerics, layer_norm, rms_norm, softmax
from sim.reference.rope import rotate

Array = NDArray[Any]


@dataclass
class Blocks:
    """Shape, numerics and weights with the meter that counts; the seams that variants override.

    Weights are a mapping by name: ``embed`` [V, d], ``layers.{i}.{op}`` with the op names of docs/conventions.md
    (``attn.qkv`` [d, Hq*dh + Hkv*(dh+dv)], ``mlp.up`` [d, 2f] with the gate first, ``mlp.down`` [f, d] ...; matrices
    are ``[in, out]``), ``norm.final``, ``logits`` [d, V]; a ``.bias`` beside any of them; the encoder's under
    ``encoder.``. ``exact``: a row's result does not depend on the other rows of the pass (see `meter.rowwise`).
    """

    shape: ModelShape
    numerics: Numerics
    weights: Mapping[str, Array]
    meter: Meter = field(default_factory=Meter)
    exact: bool = False

    def __post_init__(self) -> None:
        for layer in (*self.shape.layers, *self.shape.encoder):
            kind, ffn = layer.attention, layer.ffn
            if kind.latent or kind.sinks or ffn.shared_width or ffn.router_bias:
                what = "latent attention, sinks, shared experts or a router bias"
                raise ValueError(f"{self.shape.name}: {what}: not supported by the witness")

    @property
    def dtype(self) -> np.dtype[Any]:
        """Number type of weights, activations and cache."""
        return self.weights["embed"].dtype

    def linear(self, op: str, key: str, x: Array) -> Array:
        """The weight product of ``op`` with the weights ``key + op``, bias included, [m, in] -> [m, out]."""
        bias = self.weights.get(f"{key}{op}.bias")
        return self.meter.linear(op, x, self.weights[key + op], bias, exact=self.exact)

    def norm(self, op: str, key: str, x: Array) -> Array:
        """RMSNorm or LayerNorm with the weights ``key + op``, [m, d] -> [m, d]."""
        weight, bias = self.weights[key + op], self.weights.get(f"{key}{op}.bias")
        read = weight.nbytes + (0 if bias is None else bias.nbytes)
        self.meter.add(op, flops=4 * x.size, weights=read, activations=2 * x.nbytes)
        if self.shape.norm == "layer":
            return layer_norm(x, weight, bias, self.numerics.eps)
        return rms_norm(x, weight, self.numerics.eps)

    def _qk_norm(self, key: str, q: Array, k: Array) -> tuple[Array, Array]:
        ones, twos = self.weights[f"{key}attn.q_norm"], self.weights[f"{key}attn.k_norm"]
        size, read = q.size + k.size, q.nbytes + k.nbytes
        self.meter.add("attn.qkv", weights=ones.nbytes + twos.nbytes)
        self.meter.add("attn.qk_norm", flops=4 * size, activations=2 * read)
        return rms_norm(q, ones, self.numerics.eps), rms_norm(k, twos, self.numerics.eps)

    def project(self, i: int, x: Array, positions: Array, lengths: Array, prefix: str = "") -> tuple[Array, ...]:
        """Queries [tokens, Hq, dh], keys [tokens, Hkv, dh] and values of layer i; normed and rotated as the model does.

        ``lengths`` [tokens]: tokens of each one's sequence after the pass (dynamic RoPE). ``prefix``: of the weights.
        """
        stack = self.shape.encoder if prefix else self.shape.layers
        kind = stack[i].attention
        q, k, v = _split_heads(self.linear("attn.qkv", f"{prefix}layers.{i}.", x), kind)
        if kind.qk_norm:
            q, k = self._qk_norm(f"{prefix}layers.{i}.", q, k)
        if kind.rope and self.numerics.rope is not None:
            self.meter.add("attn.rope", flops=3 * (q.size + k.size), activations=2 * (q.nbytes + k.nbytes))
            cos, sin = self.rotation(kind, positions, lengths)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        return q, k, v

    def rotation(self, kind: Attention, positions: Array, lengths: Array | None = None) -> tuple[Array, Array]:
        """RoPE's cosines and sines at ``positions``, each [tokens, 1, dh / 2], for an attention kind of this model."""
        local = self.numerics.rope_local
        rope = local if local is not None and kind.window is not None else self.numerics.rope
        if rope is None:
            raise ValueError(f"rope: model {self.shape.name} has no rotary embedding")
        if rope.rule == "dynamic":
            reach = positions + 1 if lengths is None else lengths
            angles = np.stack([rope.angles(p, int(n)) for p, n in zip(positions, reach, strict=True)])
        else:
            angles = rope.angles(positions)
        scale, angles = rope.attention_factor, angles[:, None]
        return (np.cos(angles) * scale).astype(self.dtype), (np.sin(angles) * scale).astype(self.dtype)

    def attend(self, kind: Attention, q: Array, k: Array, v: Array, span: Span, bias: Array | None = None) -> Array:
        """Attention of one rectangle: [b, n, Hq, dh] on [b, Hkv, L, dh] -> [b, n, Hq * dv]."""
        return attend(
            self.meter, "attn", q, k, v, pairs=span.pairs, cached=span.cached, visible=span.visible, bias=bias,
            scale=self.numerics.attention_scale, soft_cap=self.numerics.attention_cap,
        )  # fmt: skip

    def bias(self, prefix: str, distances: Array) -> Array | None:
        """T5's relative bias at ``distances`` [b, n, L] -> [b, Hq, n, L]; None for models without."""
        rule = self.numerics.relative
        if rule is None:
            return None
        table = self.weights[f"{prefix}relative"]  # [buckets, Hq]
        buckets = relative_buckets(distances, rule.buckets, rule.max_distance, both_ways=bool(prefix))
        return np.moveaxis(table[buckets], -1, 1)

    def count_bias(self, prefix: str) -> None:
        """Count the read of T5's table of relative positions, once a pass and stack."""
        if self.numerics.relative is not None:
            self.meter.add("attn.bias", weights=self.weights[f"{prefix}relative"].nbytes)

    def ffn(self, i: int, x: Array, prefix: str = "") -> Array:
        """The feed-forward block of layer i, dense or a mixture of experts, [tokens, d] -> [tokens, d]."""
        layer = self._layer(i, prefix)
        if layer.ffn.experts:
            return self.moe(i, x)
        up = self.linear("mlp.up", f"{prefix}layers.{i}.", x)
        return self.linear("mlp.down", f"{prefix}layers.{i}.", self.activate("mlp.act", layer.ffn, up))

    def activate(self, op: str, ffn: Ffn, up: Array) -> Array:
        """The non-linearity: gated [m, 2f] -> [m, f] (gate first), else [m, f] -> [m, f]."""
        act = ACTIVATIONS[ffn.activation]
        width = up.shape[-1] // ffn.up_factor
        out = act(up[:, :width]) * up[:, width:] if ffn.gated else act(up)
        self.meter.add(op, flops=(5 if ffn.gated else 4) * out.size, activations=up.nbytes + out.nbytes)
        return out

    def moe(self, i: int, x: Array) -> Array:
        """Top-k routing (arXiv 2401.04088, section 2.1): each expert runs once, on the tokens that chose it."""
        ffn, key = self.shape.layers[i].ffn, f"layers.{i}."
        scores = softmax(self.linear("moe.router", key, x))  # [tokens, E]
        chosen = np.argsort(-scores, axis=-1, kind="stable")[:, : ffn.experts_per_token]  # [tokens, k]
        share = np.take_along_axis(scores, chosen, axis=-1)
        if self.numerics.router_renormalise:
            share /= share.sum(axis=-1, keepdims=True)
        parts = np.zeros((*chosen.shape, x.shape[1]), self.dtype)
        for expert in np.unique(chosen):
            rows, ranks = np.nonzero(chosen == expert)
            parts[rows, ranks] = self.expert(key, ffn, int(expert), x[rows])
        parts *= share[..., None]
        out: Array = parts[:, 0].copy()
        for rank in range(1, ffn.experts_per_token):  # in order of rank, so that a row never depends on others
            out += parts[:, rank]
        return out

    def expert(self, key: str, ffn: Ffn, expert: int, x: Array) -> Array:
        """One expert on its tokens, [m, d] -> [m, d]."""
        up = self.meter.linear("moe.up", x, self.weights[f"{key}moe.up"][expert], exact=self.exact)
        hidden = self.activate("moe.act", ffn, up)
        return self.meter.linear("moe.down", hidden, self.weights[f"{key}moe.down"][expert], exact=self.exact)

    def _layer(self, i: int, prefix: str) -> Layer:
        return (self.shape.encoder if prefix else self.shape.layers)[i]


def _split_heads(qkv: Array, kind: Attention) -> tuple[Array, Array, Array]:
    """[tokens, Hq*dh + Hkv*(dh+dv)] -> q [tokens, Hq, dh], k [tokens, Hkv, dh], v [tokens, Hkv, dv]."""
    queries, keys = kind.heads * kind.head_dim, kind.kv_heads * kind.head_dim
    q, k, v = np.split(qkv, [queries, queries + keys], axis=-1)
    return (
        q.reshape(-1, kind.heads, kind.head_dim),
        k.reshape(-1, kind.kv_heads, kind.head_dim),
        v.reshape(-1, kind.kv_heads, kind.value_dim),
    )
