"""Adapters that are really multiplied: a batch whose sequences each use one of several, beside the same weights.

The twin of ``sim/variants/peft.py`` for lora, adapter and prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.analytic.model import Attention
from sim.reference.attention import attend
from sim.reference.batch import Batch, Span
from sim.reference.cache import KVCache
from sim.reference.meter import Meter
from sim.reference.numerics import relu
from sim.reference.sampling import stream
from sim.reference.transformer import Transformer

Array = NDArray[Any]
Pair = tuple[Array, Array]


@dataclass
class Adapted(Transformer):
    """``pairs[adapter][key]``: the two matrices of an adapter by weight and target, such as ``layers.0.attn.qkv/q``.

    ``prefixes[adapter][layer]``: keys and values [Hkv, p, dh] in front of a layer's own. ``uses``: the adapter of every
    sequence of the cache. ``of_row`` and ``layer`` belong to the pass under way.
    """

    pairs: Sequence[dict[str, Pair]] = ()
    prefixes: Sequence[list[Pair]] = ()
    uses: Sequence[int] = ()
    of_row: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    layer: int = 0

    def forward(self, tokens: Any, cache: KVCache, sequences: Any = None, **more: Any) -> Any:
        """One pass; every row goes through its sequence's adapter."""
        places = range(len(tokens)) if sequences is None else sequences
        self.of_row = np.repeat([self.uses[s] for s in places], [len(t) for t in tokens])
        return super().forward(tokens, cache, sequences, **more)

    def linear(self, op: str, key: str, x: Array) -> Array:
        """The product, and what the adapters of its rows add."""
        out = super().linear(op, key, x)
        for target, columns in self._targets(op, key):
            for adapter in np.unique(self.of_row):
                rows = np.flatnonzero(self.of_row == adapter)
                a, b = self.pairs[adapter][f"{key}{op}/{target}"]
                h = self.meter.linear(f"lora.{target}.a", x[rows], a)
                added = self.meter.matmul(f"lora.{target}.b", h, b, weights=b.nbytes)
                self.meter.add(f"lora.{target}.b", activations=h.nbytes + 2 * added.nbytes)
                out[rows, columns] += added
        return out

    def _targets(self, op: str, key: str) -> list[tuple[str, slice]]:
        known = [k.split("/")[1] for k in (self.pairs[0] if self.pairs else ()) if k.startswith(f"{key}{op}/")]
        return [(t, columns_of(self, key, t)) for t in known if "bottleneck" not in t]

    def attention(self, i: int, x: Array, batch: Batch, cache: KVCache) -> Array:
        """Attention, then the bottleneck after it."""
        self.layer = i
        return self._bottleneck(i, "attn", super().attention(i, x, batch, cache))

    def ffn(self, i: int, x: Array, prefix: str = "") -> Array:
        """The feed-forward block, then the bottleneck after it."""
        return self._bottleneck(i, "mlp", super().ffn(i, x, prefix))

    def _bottleneck(self, i: int, place: str, x: Array) -> Array:
        """h + W2 relu(W1 h + b1) + b2; a row of ones carries the biases."""
        key = f"layers.{i}.{place}/bottleneck"
        if not self.pairs or key not in self.pairs[0]:
            return x
        out = x.copy()
        for adapter in np.unique(self.of_row):
            rows = np.flatnonzero(self.of_row == adapter)
            down, up = self.pairs[adapter][key]
            h = self.meter.linear(f"adapter.{place}.down", x[rows], down[:-1], down[-1])
            self.meter.add(f"adapter.{place}.act", flops=4 * h.size, activations=2 * h.nbytes)
            h = relu(h)
            added = self.meter.matmul(f"adapter.{place}.up", h, up[:-1], weights=up.nbytes) + up[-1]
            self.meter.add(f"adapter.{place}.up", activations=h.nbytes + 2 * added.nbytes)
            out[rows] += added
        return out

    def attend(self, kind: Attention, q: Array, k: Array, v: Array, span: Span, bias: Array | None = None) -> Array:
        """Attention over learned keys and values and the sequence's own, in one softmax."""
        own = super().attend(kind, q, k, v, span, bias)
        if not self.prefixes:
            return own
        out = np.empty_like(own)
        for j, sequence in enumerate(span.sequences):
            keys, values = self.prefixes[self.uses[sequence]][self.layer]
            self._count_prefix(kind, q[j], keys, values)
            k_all, v_all = (np.concatenate([a, b[j]], axis=1)[None] for a, b in ((keys, k), (values, v)))
            seen = np.ones((q.shape[1], k.shape[2]), bool) if span.visible is None else span.visible[j]
            visible = np.concatenate([np.ones((q.shape[1], keys.shape[1]), bool), seen], axis=1)[None]
            out[j] = attend(
                Meter(), "attn", q[j : j + 1], k_all, v_all, pairs=int(visible.sum()), cached=0, visible=visible,
                scale=self.numerics.attention_scale,
            )[0]  # fmt: skip
        for adapter in np.unique([self.uses[s] for s in span.sequences]):
            keys, values = self.prefixes[adapter][self.layer]
            self.meter.add("prompt.scores", kv=keys.nbytes)
            self.meter.add("prompt.values", kv=values.nbytes)
        return out

    def _count_prefix(self, kind: Attention, q: Array, keys: Array, values: Array) -> None:
        """Count one sequence's rows [n, Hq, dh] on the learned keys by multiplying them."""
        n, groups = len(q), kind.kv_heads
        by_group = q.reshape(n, groups, -1, kind.head_dim).transpose(1, 2, 0, 3).reshape(groups, -1, kind.head_dim)
        scores = self.meter.matmul("prompt.scores", by_group, keys.swapaxes(1, 2), activations=q.nbytes)
        self.meter.add("prompt.softmax", flops=5 * scores.size)
        out = self.meter.matmul("prompt.values", scores, values)
        self.meter.add("prompt.values", activations=out.nbytes)


def columns_of(model: Transformer, key: str, target: str) -> slice:
    """Where a target's outputs lie in its product: q, k and v are one matrix, gate and up another."""
    layer = model.shape.layers[int(key.split(".")[1])]
    block, f = layer.attention, layer.ffn.width
    q, k = block.heads * block.head_dim, block.kv_heads * block.head_dim
    v = block.kv_heads * block.value_dim
    return {
        "q": slice(0, q), "k": slice(q, q + k), "v": slice(q + k, q + k + v), "o": slice(None), "down": slice(None),
        "gate": slice(0, f), "up": slice(f * (layer.ffn.up_factor - 1), f * layer.ffn.up_factor),
    }[target]  # fmt: skip


HOME = {"q": "attn.qkv", "k": "attn.qkv", "v": "attn.qkv", "o": "attn.out", "gate": "mlp.up", "up": "mlp.up",
        "down": "mlp.down"}  # fmt: skip


def with_lora(model: Transformer, rank: int, targets: Sequence[str], adapters: int, uses: Sequence[int]) -> Adapted:
    """Random adapters of rank ``rank`` (a trained one has learned numbers in the same places)."""
    luck = stream(0, "lora")
    pairs: list[dict[str, Pair]] = []
    for _ in range(adapters):
        pairs.append({})
        for i in range(len(model.shape.layers)):
            for t in targets:
                key = f"layers.{i}.{HOME[t]}"
                w = model.weights[key][:, columns_of(model, key, t)]
                a, b = luck.normal(size=(len(w), rank)), luck.normal(size=(rank, w.shape[1]))
                pairs[-1][f"{key}/{t}"] = (_as(model, a / len(w)), _as(model, b / rank))
    return Adapted(model.shape, model.numerics, model.weights, Meter(), model.exact, pairs, (), tuple(uses))


def with_bottlenecks(model: Transformer, width: int, places: int, adapters: int, uses: Sequence[int]) -> Adapted:
    """Random bottlenecks after the feed-forward block, and after attention where ``places`` is 2."""
    luck, d = stream(0, "adapter"), model.shape.d_model
    names = ("mlp", "attn")[:places]
    pairs = [
        {
            f"layers.{i}.{name}/bottleneck": (
                _as(model, luck.normal(size=(d + 1, width)) / d), _as(model, luck.normal(size=(width + 1, d)) / width)
            )
            for i in range(len(model.shape.layers))
            for name in names
        }
        for _ in range(adapters)
    ]  # fmt: skip
    return Adapted(model.shape, model.numerics, model.weights, Meter(), model.exact, pairs, (), tuple(uses))


def with_prefixes(model: Transformer, tokens: int, adapters: int, uses: Sequence[int]) -> Adapted:
    """Random keys and values of ``tokens`` virtual tokens in front of every layer's own."""
    luck = stream(0, "prefix")
    blocks = [layer.attention for layer in model.shape.layers]
    prefixes = [
        [
            (_as(model, luck.normal(size=(b.kv_heads, tokens, b.head_dim))),
             _as(model, luck.normal(size=(b.kv_heads, tokens, b.value_dim))))
            for b in blocks
        ]
        for _ in range(adapters)
    ]  # fmt: skip
    return Adapted(model.shape, model.numerics, model.weights, Meter(), model.exact, (), prefixes, tuple(uses))


def merged(model: Adapted, adapter: int) -> Transformer:
    """The plain model with one LoRA adapter added into its weights: W + A B."""
    weights = dict(model.weights)
    for name, (a, b) in model.pairs[adapter].items():
        key, target = name.split("/")
        changed = weights[key].copy()
        changed[:, columns_of(model, key, target)] += a @ b
        weights[key] = changed
    return Transformer(model.shape, model.numerics, weights, Meter(), model.exact)


def reset(model: Adapted, uses: Sequence[int]) -> Adapted:
    """The same adapters, used by other sequences."""
    return replace(model, uses=tuple(uses), meter=Meter())


def _as(model: Transformer, numbers: Array) -> Array:
    return np.asarray(numbers, model.dtype)
