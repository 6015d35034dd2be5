"""Caches that really evict: sliding windows, StreamingLLM's sinks, H2O's heavy hitters. One sequence after another.

The twin of ``sim/variants/kv_eviction.py``. A window or streaming cache evicts when the next pass begins, so that a
rejected draft is rolled back with ``truncate``; H2O (arXiv 2306.14048, algorithm 1) evicts token by token and cannot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sim.analytic.model import Attention, ModelShape
from sim.reference.batch import Batch
from sim.reference.cache import KVCache
from sim.reference.meter import Meter
from sim.reference.numerics import softmax
from sim.reference.rope import rotate
from sim.reference.transformer import Rows, Transformer

Array = NDArray[Any]


@dataclass(frozen=True)
class Rule:
    """``budget`` tokens kept; ``method`` streaming, h2o or window; ``sinks`` and ``recent`` tokens never evicted."""

    budget: int
    method: str = "streaming"
    sinks: int = 4
    recent: int | None = None

    @property
    def first(self) -> int:
        """Tokens at the start that stay for good."""
        return self.sinks if self.method == "streaming" else 0

    @property
    def last(self) -> int:
        """Tokens before the newest that h2o may not evict."""
        return self.budget // 2 if self.recent is None else self.recent


class EvictingCache(KVCache):
    """``lengths`` counts tokens seen; ``places[sequence]`` [slots] the positions held, common to all layers.

    Of H2O: ``births`` and ``scores`` [Hkv, slots] by layer and sequence: positions held by each head, and the attention
    weights that each token has had.
    """

    def __init__(self, shape: ModelShape, sequences: int, dtype: DTypeLike, rule: Rule) -> None:
        super().__init__(shape, sequences, dtype)
        self.rule = rule
        self.places: list[Array] = [np.zeros(0, np.int64) for _ in range(sequences)]
        heads = [layer.attention.kv_heads for layer in shape.layers]
        self.births = [[np.zeros((h, 0), np.int64) for _ in range(sequences)] for h in heads]
        self.scores = [[np.zeros((h, 0), np.float32) for _ in range(sequences)] for h in heads]

    def evict(self, sequence: int) -> None:
        """Keep what the next token may see beside itself: budget - 1 tokens."""
        rule, seen, places = self.rule, int(self.lengths[sequence]), self.places[sequence]
        places = places[places < seen]  # the rest was rolled back
        kept = np.flatnonzero((places < rule.first) | (places >= seen - (rule.budget - 1 - rule.first)))
        for array in (*self.keys, *self.values):
            array[sequence, :, : len(kept)] = array[sequence][:, kept]
        self.places[sequence] = places[kept]

    @property
    def held(self) -> int:
        """Most tokens that a sequence has in memory."""
        own = [one.shape[1] for layer in self.births for one in layer]
        return max(*own, *(len(p) for p in self.places))


@dataclass
class Evicting(Transformer):
    """A model whose caches evict by ``rule``."""

    rule: Rule = Rule(1024)

    @staticmethod
    def of(model: Transformer, rule: Rule) -> Evicting:
        """The same model with another cache."""
        return Evicting(model.shape, model.numerics, model.weights, Meter(), model.exact, rule)

    def new_cache(self, sequences: int = 1) -> EvictingCache:
        """An empty cache."""
        return EvictingCache(self.shape, sequences, self.dtype, self.rule)

    def forward(self, tokens: Any, cache: KVCache, sequences: Any = None, *, rows: Rows = "last", **more: Any) -> Any:
        """One pass; what the last one left beyond the budget is evicted first. Trees are not supported."""
        assert isinstance(cache, EvictingCache) and more.get("tree") is None
        places = range(len(tokens)) if sequences is None else sequences
        if self.rule.method != "h2o":
            for sequence in places:
                cache.evict(sequence)
        out = super().forward(tokens, cache, sequences, rows=rows, **more)
        for sequence, ids in zip(places, tokens, strict=True):
            new = int(cache.lengths[sequence]) - np.arange(len(ids), 0, -1)
            if self.rule.method != "h2o":
                cache.places[sequence] = np.concatenate([cache.places[sequence], new])
        return out

    def attention(self, i: int, x: Array, batch: Batch, cache: KVCache) -> Array:
        """Self-attention of layer i over what is held, [tokens, d] -> [tokens, d]."""
        assert isinstance(cache, EvictingCache)
        kind = self.shape.layers[i].attention
        q, k, v = self.project(i, x, batch.positions, batch.lengths)
        again = self._reindexed(kind, q, batch.positions)
        self.meter.add("kv.append", kv=k.nbytes + v.nbytes)
        mixed = np.empty((len(x), kind.heads * kind.value_dim), self.dtype)
        for place, sequence in enumerate(batch.sequences):
            new = slice(batch.offsets[place], batch.offsets[place + 1])
            if new.stop == new.start:
                continue
            if self.rule.method == "h2o":
                mixed[new] = self._heavy(i, int(sequence), int(batch.starts[place]), cache, q[new], k[new], v[new])
            else:
                mixed[new] = self._masked(i, int(sequence), cache, q[new], again[new], k[new], v[new])
        return self.linear("attn.out", f"layers.{i}.", mixed)

    def _reindexed(self, kind: Attention, q: Array, positions: Array) -> Array:
        """Queries rotated back to where they stand inside a full cache, as the sinks shall see them."""
        if self.rule.method != "streaming" or not kind.rope or self.numerics.rope is None:
            return q
        self.meter.add("attn.reindex", flops=3 * q.size, activations=2 * q.nbytes)
        return np.asarray(rotate(q, *self.rotation(kind, np.minimum(positions, self.rule.budget - 1) - positions)))

    def _masked(self, i: int, sequence: int, cache: EvictingCache, q: Array, again: Array, k: Array, v: Array) -> Array:
        """Window or streaming: every query of the pass sees the sinks and the last tokens, by a mask."""
        rule, kind, held, n = self.rule, self.shape.layers[i].attention, cache.places[sequence], len(q)
        seen = int(cache.lengths[sequence])
        cache.write(i, sequence, len(held), k, v)
        keys, values = (a[i][sequence, :, : len(held) + n] for a in (cache.keys, cache.values))
        at, of = seen + np.arange(n), np.concatenate([held, seen + np.arange(n)])
        visible = (of <= at[:, None]) & ((of < rule.first) | (of > at[:, None] - (rule.budget - rule.first)))
        cached = min(seen, rule.budget - 1)
        sinks = int((of < rule.first).sum())
        weights = self._weights(kind, [again, q], np.split(keys, [sinks], axis=1), visible, cached)
        return self._mixed(kind, weights, values, int(visible.sum()), cached)

    def _heavy(self, i: int, sequence: int, start: int, cache: EvictingCache, q: Array, k: Array, v: Array) -> Array:
        """H2O: token by token; the one with the smallest sum of weights makes room, unless it is recent."""
        rule, kind = self.rule, self.shape.layers[i].attention
        keys, values = cache.keys[i][sequence], cache.values[i][sequence]
        births: Array = cache.births[i][sequence]
        scores: Array = cache.scores[i][sequence]
        heads = np.arange(kind.kv_heads)
        out = np.empty((len(q), kind.heads * kind.value_dim), self.dtype)
        cached = min(start, rule.budget - 1)
        state = scores.itemsize * kind.kv_heads
        self.meter.add("attn.evict", kv=2 * state * cached, activations=state * len(q))
        for t in range(len(q)):
            position = start + t
            if births.shape[1] < rule.budget:
                slots = np.full(kind.kv_heads, births.shape[1])
                births, scores = (np.pad(a, ((0, 0), (0, 1))) for a in (births, scores))
            else:
                slots = np.where(births < position - rule.last, scores, np.inf).argmin(axis=1)
            births[heads, slots], scores[heads, slots] = position, 0
            keys[heads, slots], values[heads, slots] = k[t], v[t]
            held = births.shape[1]
            weights = self._weights(kind, [q[t : t + 1]], [keys[:, :held]], None, cached if t == 0 else 0)
            scores += weights.reshape(kind.kv_heads, -1, held).sum(axis=1)
            self.meter.add("attn.evict", flops=(kind.heads + kind.kv_heads) * held)
            out[t] = self._mixed(kind, weights, values[:, :held], held, cached if t == 0 else 0)[0]
        cache.births[i][sequence], cache.scores[i][sequence] = births, scores
        return out

    def _weights(
        self, kind: Attention, queries: list[Array], keys: list[Array], visible: Array | None, cached: int
    ) -> Array:
        """Attention weights [Hkv, g, n, L] of queries [n, Hq, dh] on pieces of keys [Hkv, L, dh], one query a piece."""
        n, groups = len(queries[-1]), kind.kv_heads
        rows = n * sum(piece.shape[1] for piece in keys)
        live = rows if visible is None else int(visible.sum())
        scale = np.float32(kind.head_dim**-0.5)
        parts = []
        for q, piece in zip(queries[-len(keys) :], keys, strict=True):
            by_group = (q * scale).reshape(n, groups, -1, kind.head_dim).transpose(1, 2, 0, 3)  # [Hkv, g, n, dh]
            parts.append(by_group @ piece.swapaxes(1, 2)[:, None])
        scores = np.concatenate(parts, axis=-1)
        if visible is not None:
            scores = np.where(visible, scores, -np.inf)
        per_pair = kind.heads * 2 * kind.head_dim
        read = cached * groups * kind.head_dim * self.dtype.itemsize
        self.meter.add(
            "attn.scores", flops=per_pair * live, masked=per_pair * (rows - live), kv=read,
            activations=queries[-1].nbytes,
        )  # fmt: skip
        self.meter.add("attn.softmax", flops=5 * kind.heads * live, activations=4 * kind.heads * live * 4)
        return softmax(np.asarray(scores, self.dtype))

    def _mixed(self, kind: Attention, weights: Array, values: Array, live: int, cached: int) -> Array:
        """Weights [Hkv, g, n, L] on values [Hkv, L, dv] -> [n, Hq * dv]."""
        n, per_pair = weights.shape[2], kind.heads * 2 * kind.value_dim
        out = (weights @ values[:, None]).transpose(2, 0, 1, 3).reshape(n, -1)  # [n, Hkv, g, dv]
        rows = n * values.shape[1]
        read = cached * kind.kv_heads * kind.value_dim * self.dtype.itemsize
        self.meter.add(
            "attn.values", flops=per_pair * live, masked=per_pair * (rows - live), kv=read, activations=out.nbytes
        )
        return np.asarray(out)
