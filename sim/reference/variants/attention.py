"""Attention in other ways, for real: linear with a state, random features, low rank, blocks left out.

The twin of ``sim/variants/attention.py``. ``standard`` is the witness's own attention, ``local`` a shape with a window.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.analytic.model import Attention as Block
from sim.reference.attention import attend
from sim.reference.batch import Batch, Span
from sim.reference.cache import KVCache
from sim.reference.meter import Meter
from sim.reference.sampling import stream
from sim.reference.transformer import Transformer

Array = NDArray[Any]


@dataclass
class Linear(Transformer):
    """Linear attention (arXiv 2006.16236, equations 16 to 20): phi(q) on sums of phi(k) v^T and phi(k), no cache.

    phi(x) = elu(x) + 1, or, with ``features``, FAVOR+'s positive random features (arXiv 2009.14794, lemma 1).
    """

    features: int = 0
    states: dict[tuple[int, int], Array] = field(default_factory=dict)

    @staticmethod
    def of(model: Transformer, features: int = 0) -> Linear:
        """The same weights, attending by features."""
        return Linear(model.shape, model.numerics, model.weights, Meter(), model.exact, features)

    def attention(self, i: int, x: Array, batch: Batch, cache: KVCache) -> Array:
        """Token by token; a sequence's state is [Hkv, F, dv + 1], the last column the sum of phi(k)."""
        kind = self.shape.layers[i].attention
        q, k, v = self.project(i, x, batch.positions, batch.lengths)
        q, k = self._phi(kind, i, q, k)
        ones = np.ones((*v.shape[:2], 1), self.dtype)
        v = np.concatenate([v, ones], axis=2)
        mixed = np.empty((len(x), kind.heads * kind.value_dim), self.dtype)
        for place, sequence in enumerate(batch.sequences):
            tokens = range(batch.offsets[place], batch.offsets[place + 1])
            state = self._read(kind, i, int(sequence), int(batch.starts[place]), bool(tokens))
            for t in tokens:
                state = state + k[t][:, :, None] * v[t][:, None]
                out = q[t].reshape(kind.kv_heads, -1, q.shape[2]) @ state  # [Hkv, g, F] @ [Hkv, F, dv + 1]
                mixed[t] = (out[..., :-1] / out[..., -1:]).ravel()
            self.states[i, int(sequence)] = state
        heads = kind.heads + kind.kv_heads
        moved = q.size + k.size + len(x) * (kind.kv_heads + kind.heads) * kind.value_dim
        flops = 2 * heads * q.shape[2] * (kind.value_dim + 1) * len(x)
        self.meter.add("attn.linear", flops=flops, activations=moved * self.dtype.itemsize)
        return self.linear("attn.out", f"layers.{i}.", mixed)

    def _phi(self, kind: Block, i: int, q: Array, k: Array) -> tuple[Array, Array]:
        both = np.concatenate([q, k], axis=1) * self.dtype.type(kind.head_dim**-0.25)
        if self.features:
            w = np.asarray(stream(i, "features").normal(size=(kind.head_dim, self.features)), self.dtype)
            product = both @ w
            self.meter.add(
                "attn.project", flops=2 * product.size * kind.head_dim, weights=w.nbytes,
                activations=both.nbytes + product.nbytes,
            )  # fmt: skip
            square = (both * both).sum(axis=-1, keepdims=True) / 2
            both = np.exp(product - square) / self.features**0.5
        else:
            both = np.where(both > 0, both + 1, np.exp(np.minimum(both, 0)))
        self.meter.add("attn.features", flops=2 * both.size, activations=2 * both.nbytes)
        return both[:, : kind.heads], both[:, kind.heads :]

    def _read(self, kind: Block, i: int, sequence: int, start: int, runs: bool) -> Array:
        width = self.features or kind.head_dim
        if not start:
            return np.zeros((kind.kv_heads, width, kind.value_dim + 1), self.dtype)
        state = self.states[i, sequence]
        self.meter.add("attn.state", kv=2 * state.nbytes * runs)
        return state


@dataclass
class BlockSparse(Transformer):
    """Attention over some of the blocks: query block a sees key block b where (a - b) is a multiple of ``every``.

    The first block is always among them, so that every query sees something. ``live`` and ``whole`` count pairs.
    """

    size: int = 4
    every: int = 2
    live: int = 0
    whole: int = 0

    @staticmethod
    def of(model: Transformer, size: int, every: int) -> BlockSparse:
        """The same weights, blocks left out."""
        return BlockSparse(model.shape, model.numerics, model.weights, Meter(), model.exact, size, every)

    def attend(self, kind: Block, q: Array, k: Array, v: Array, span: Span, bias: Array | None = None) -> Array:
        """The same with a mask of blocks on top of the causal one."""
        n, slots = q.shape[1], span.slots
        at = slots[-1] - n + 1 + np.arange(n)
        seen = ((at[:, None] // self.size - slots // self.size) % self.every == 0)[None]
        visible = seen if span.visible is None else seen & span.visible
        pairs = int(visible.sum()) * (len(q) if span.visible is None else 1)
        self.live, self.whole = self.live + pairs, self.whole + span.pairs
        return attend(
            self.meter, "attn", q, k, v, pairs=pairs, cached=span.cached,
            visible=np.broadcast_to(visible, (len(q), n, len(slots))), scale=self.numerics.attention_scale,
        )  # fmt: skip


@dataclass
class Linformer(Transformer):
    """An encoder whose keys and values are projected along the text to ``rank`` rows (arXiv 2006.04768, equation 7)."""

    rank: int = 8
    longest: int = 64

    @staticmethod
    def of(model: Transformer, rank: int, longest: int) -> Linformer:
        """The same weights; the two projections are random, shared by heads, [rank, longest] each."""
        return Linformer(model.shape, model.numerics, model.weights, Meter(), model.exact, rank, longest)

    def _encoder_attention(self, i: int, x: Array, batch: Batch) -> Array:
        kind = self.shape.encoder[i].attention
        q, k, v = self.project(i, x, batch.positions, batch.lengths, "encoder.")
        luck = stream(i, "linformer")
        e, f = (np.asarray(luck.normal(size=(self.rank, self.longest)) / self.rank**0.5, self.dtype) for _ in "ef")
        self.meter.add("attn.project", weights=e.nbytes + f.nbytes, activations=k.nbytes + v.nbytes)
        mixed = np.empty((len(x), kind.heads * kind.value_dim), self.dtype)
        for start, stop in zip(batch.offsets[:-1], batch.offsets[1:], strict=True):
            n = int(stop - start)
            keys, values = (
                self.meter.matmul("attn.project", m[:, :n], a[start:stop].swapaxes(0, 1))[None]  # [r, n] @ [h, n, d]
                for m, a in ((e, k), (f, v))
            )
            q_one = q[None, start:stop]
            mixed[start:stop] = attend(
                self.meter, "attn", q_one, keys, values, pairs=n * self.rank, cached=0,
                scale=self.numerics.attention_scale,
            )[0]  # fmt: skip
        return self.linear("attn.out", f"encoder.layers.{i}.", mixed)
