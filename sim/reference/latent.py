"""Latent attention (MLA, arXiv 2405.04434, section 2.1), run both ways: keys and values unpacked, or never made at all.

The cache holds each token's latent and one rotary key. *Decompressed*: keys and values of all tokens are made from the
latents, then attended to as usual. *Absorbed*: queries are taken into the latent space instead, ``q W_up^T``, and what
is attended there is taken back out; the numbers are the same, the work is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from sim.analytic.model import Attention, Latent
from sim.reference.attention import attend
from sim.reference.batch import Batch, Span
from sim.reference.cache import KVCache
from sim.reference.meter import rowwise
from sim.reference.numerics import rms_norm
from sim.reference.rope import rotate
from sim.reference.transformer import Transformer

Array = NDArray[Any]


class LatentCache(KVCache):
    """``keys[layer]`` [sequences, 1, capacity, rank + rope]: the latent, then the rotary key; ``values`` are empty."""

    def narrow(self, kinds: list[Attention]) -> LatentCache:
        """Put the latent's arrays in place of the plain ones."""
        for i, kind in enumerate(kinds):
            sequences, capacity, mla = self.sequences, self.capacity, cast(Latent, kind.latent)
            self.keys[i] = np.zeros((sequences, 1, capacity, mla.kv_rank + mla.rope_dim), self.keys[i].dtype)
            self.values[i] = np.zeros((sequences, 1, capacity, 0), self.keys[i].dtype)
        return self


@dataclass
class LatentTransformer(Transformer):
    """A decoder whose layers all have ``attention.latent``.

    Weights of layer i: ``attn.q`` [d, Hq*(nope+rope)] or ``attn.q_down`` [d, r] and ``attn.q_up`` [r, Hq*(nope+rope)],
    ``attn.kv_down`` [d, rank+rope], ``attn.kv_up`` [rank, Hq*(nope+dv)], a head's keys before its values; optional
    norms ``attn.q_norm`` [r] and ``attn.kv_norm`` [rank]. ``absorbed``: the way the passes go.
    """

    absorbed: bool = True

    def __post_init__(self) -> None:
        """Other things than a latent may still be more than the witness runs."""
        for layer in self.shape.layers:
            if layer.attention.latent is None or layer.cross is not None or layer.ffn.experts:
                raise ValueError(f"{self.shape.name}: latent attention runs in dense decoders, in every layer")

    def new_cache(self, sequences: int = 1) -> KVCache:
        """An empty cache of latents."""
        return LatentCache(self.shape, sequences, self.dtype).narrow([a.attention for a in self.shape.layers])

    def attention(self, i: int, x: Array, batch: Batch, cache: KVCache) -> Array:
        """Self-attention of layer i, [tokens, d] -> [tokens, d]; writes the new latents to the cache."""
        kind, key = self.shape.layers[i].attention, f"layers.{i}."
        mla = cast(Latent, kind.latent)
        q = self.queries(key, mla, x).reshape(len(x), kind.heads, kind.head_dim)
        latent = self.linear("attn.kv_down", key, x)
        self._count_norm("attn.kv_down", f"{key}attn.kv_norm")
        latent = np.concatenate(
            [self._normed(f"{key}attn.kv_norm", latent[:, : mla.kv_rank]), latent[:, mla.kv_rank :]], 1
        )
        q, latent = self._rotated(kind, mla, q, latent, batch)
        self.meter.add("kv.append", kv=latent.nbytes)
        for place, sequence in enumerate(batch.sequences):
            new = slice(batch.offsets[place], batch.offsets[place + 1])
            rows = latent[new, None]
            cache.write(i, int(sequence), int(batch.starts[place]), rows, rows[..., :0])
        mixed = np.empty((len(x), kind.heads * kind.value_dim), self.dtype)
        up = self.weights[f"{key}attn.kv_up"].reshape(mla.kv_rank, kind.heads, mla.nope_dim + kind.value_dim)
        self._count_up(kind, mla, len(x), up)
        for span in batch.spans(kind.window):
            stored = span.gather(cache.keys[i])[:, 0]  # [b, L, rank + rope]
            way = self._absorbed if self.absorbed else self._decompressed
            mixed[span.rows] = way(kind, mla, q[span.rows], stored, span, up)
        return self.linear("attn.out", key, mixed)

    def queries(self, key: str, mla: Latent, x: Array) -> Array:
        """[tokens, d] -> [tokens, Hq*(nope+rope)], through a low rank where the model has one."""
        if mla.q_rank is None:
            return self.linear("attn.q", key, x)
        low = self.linear("attn.q_down", key, x)
        self._count_norm("attn.q_down", f"{key}attn.q_norm")
        return self.linear("attn.q_up", key, self._normed(f"{key}attn.q_norm", low))

    def _normed(self, key: str, x: Array) -> Array:
        return rms_norm(x, self.weights[key], self.numerics.eps) if key in self.weights else x

    def _count_norm(self, op: str, key: str) -> None:
        """The norm's weights are read with the product before it (docs/conventions.md)."""
        if key in self.weights:
            self.meter.add(op, weights=self.weights[key].nbytes)

    def _rotated(self, kind: Attention, mla: Latent, q: Array, latent: Array, batch: Batch) -> tuple[Array, Array]:
        """Turn the last ``rope`` dimensions of each query head and of the shared key."""
        if not (kind.rope and mla.rope_dim):
            return q, latent
        size = q.shape[0] * (kind.heads + 1) * mla.rope_dim
        self.meter.add("attn.rope", flops=3 * size, activations=2 * size * q.itemsize)
        cos, sin = self.rotation(kind, batch.positions, batch.lengths)
        turned = rotate(np.ascontiguousarray(q[..., mla.nope_dim :]), cos, sin)
        shared = rotate(np.ascontiguousarray(latent[:, None, mla.kv_rank :]), cos, sin)[:, 0]
        q = np.concatenate([q[..., : mla.nope_dim], turned], axis=-1)
        return q, np.concatenate([latent[:, : mla.kv_rank], shared], axis=-1)

    def _count_up(self, kind: Attention, mla: Latent, tokens: int, up: Array) -> None:
        """Absorbed: both products of all tokens, their weights read once a pass."""
        if not self.absorbed:
            self.meter.add("attn.kv_up", weights=up.nbytes)
            return
        for op, k, n in (("q", mla.nope_dim, mla.kv_rank), ("v", mla.kv_rank, kind.value_dim)):
            self.meter.add(f"attn.{op}_absorb", weights=kind.heads * k * n * up.itemsize)

    def _absorbed(self, kind: Attention, mla: Latent, q: Array, stored: Array, span: Span, up: Array) -> Array:
        """[b, n, Hq, nope+rope] on [b, L, rank+rope] -> [b, n, Hq*dv], keys and values never made."""
        b, n = q.shape[:2]
        taken = self._product("attn.q_absorb", q[..., : mla.nope_dim], up[..., : mla.nope_dim].transpose(1, 2, 0))
        wide = np.concatenate([taken, q[..., mla.nope_dim :]], axis=-1)
        mixed = self._attend(wide, stored[:, None], stored[:, None, :, : mla.kv_rank], span, kind, True)
        heads = mixed.reshape(b, n, kind.heads, mla.kv_rank)
        out = self._product("attn.v_absorb", heads, up[..., mla.nope_dim :].transpose(1, 0, 2))
        return out.reshape(b, n, -1)

    def _decompressed(self, kind: Attention, mla: Latent, q: Array, stored: Array, span: Span, up: Array) -> Array:
        """The same through keys [b, Hq, L, nope+rope] and values [b, Hq, L, dv] of every token."""
        b, length = stored.shape[:2]
        rows = span.cached + b * span.rows.shape[1]
        made = stored[..., : mla.kv_rank] @ up.reshape(mla.kv_rank, -1)  # [b, L, Hq * (nope + dv)]
        self.meter.add(
            "attn.kv_up",
            flops=2 * rows * up.size,
            kv=span.cached * stored.shape[2] * stored.itemsize,
            activations=rows * (mla.kv_rank + up.size // mla.kv_rank) * stored.itemsize,
        )
        made = made.reshape(b, length, kind.heads, -1).swapaxes(1, 2)  # [b, Hq, L, nope + dv]
        turned = np.broadcast_to(stored[:, None, :, mla.kv_rank :], (*made.shape[:3], mla.rope_dim))
        keys = np.concatenate([made[..., : mla.nope_dim], turned], axis=-1)
        return self._attend(q, keys, made[..., mla.nope_dim :], span, kind, False)

    def _attend(self, q: Array, k: Array, v: Array, span: Span, kind: Attention, once: bool) -> Array:
        """``once``: keys and values are the same numbers, read with the scores."""
        scale = self.numerics.attention_scale or kind.head_dim**-0.5
        before = self.meter.bytes_kv["attn.values"]
        out = attend(
            self.meter, "attn", q, k, v, pairs=span.pairs, cached=span.cached, visible=span.visible, scale=scale
        )  # fmt: skip
        if once:
            self.meter.bytes_kv["attn.values"] = before
        return out

    def _product(self, op: str, x: Array, w: Array) -> Array:
        """[b, n, Hq, k] @ [Hq, k, m] -> [b, n, Hq, m], a matrix a head."""
        flat = np.moveaxis(x, 2, 0).reshape(x.shape[2], -1, x.shape[3])
        out = np.stack([rowwise(a, m) if self.exact else a @ m for a, m in zip(flat, w, strict=True)])
        self.meter.add(op, flops=2 * out.size * w.shape[1], activations=flat.nbytes + out.nbytes)
        return np.moveaxis(out.reshape(x.shape[2], *x.shape[:2], -1), 0, 2)
