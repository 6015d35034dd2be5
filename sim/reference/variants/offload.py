"""Weights and cache that lie in another memory and are copied over before use; ``fetched`` counts the bytes copied.

The twin of ``sim/variants/offload.py``: it counts, and computes what the model computes. Nothing is slower for it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.analytic.model import Attention
from sim.reference.batch import Batch, Span
from sim.reference.cache import KVCache
from sim.reference.meter import Meter
from sim.reference.transformer import Transformer

Array = NDArray[Any]


@dataclass
class Offloaded(Transformer):
    """The first ``rows`` share of every layer matrix's rows and ``heads`` share of the KV heads lie elsewhere."""

    rows: float = 0.0
    heads: float = 0.0
    fetched: Counter[str] = field(default_factory=Counter)
    elsewhere: dict[str, Array] = field(default_factory=dict)

    @staticmethod
    def of(model: Transformer, rows: float, heads: float) -> Offloaded:
        """The same model, with its layers' matrices cut in two: here, and elsewhere."""
        weights, far = dict(model.weights), {}
        for name, w in model.weights.items():
            if name.startswith("layers.") and w.ndim == 2 and ".norm" not in name:
                cut = round(rows * len(w))
                far[name], weights[name] = w[:cut].copy(), w[cut:]
        return Offloaded(model.shape, model.numerics, weights, Meter(), model.exact, rows, heads, Counter(), far)

    def linear(self, op: str, key: str, x: Array) -> Array:
        """The product, after the other part of the matrix was copied to stand before the one that is here."""
        far = self.elsewhere.get(key + op)
        if far is None:
            return super().linear(op, key, x)
        copied = far.copy() if len(x) else far[:0]
        self.fetched[op] += copied.nbytes
        whole = np.concatenate([far, self.weights[key + op]])
        return self.meter.linear(op, x, whole, self.weights.get(f"{key}{op}.bias"), exact=self.exact)

    def attention(self, i: int, x: Array, batch: Batch, cache: KVCache) -> Array:
        """Attention; new keys and values of the heads that lie elsewhere go there."""
        kind = self.shape.layers[i].attention
        width = self._far_heads(kind) * (kind.head_dim + kind.value_dim)
        self.fetched["kv.append"] += len(x) * width * self.dtype.itemsize
        return super().attention(i, x, batch, cache)

    def attend(self, kind: Attention, q: Array, k: Array, v: Array, span: Span, bias: Array | None = None) -> Array:
        """Attention, after cached keys and values of those heads were copied here, once a pass."""
        far = self._far_heads(kind)
        for name, array in (("attn.scores", k), ("attn.values", v)):
            one_token = array[0, :far, 0].copy()
            self.fetched[name] += span.cached * one_token.nbytes
        return super().attend(kind, q, k, v, span, bias)

    def _far_heads(self, kind: Attention) -> int:
        return round(self.heads * kind.kv_heads)
