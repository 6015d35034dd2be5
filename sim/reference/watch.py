"""A transformer that takes notes: attention weights, what each head and each neuron contributes, FFN inputs.

Only for looking inside on short texts; it computes attention a second time to see the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.analytic.model import Attention, Ffn
from sim.reference.batch import Batch, Span
from sim.reference.cache import KVCache
from sim.reference.meter import Meter
from sim.reference.numerics import cap, softmax
from sim.reference.transformer import Transformer

Array = NDArray[Any]
Note = Callable[[str, int, Array], None]


@dataclass
class Watched(Transformer):
    """Calls ``note(kind, layer, array)`` for one sequence run without a cache.

    Kinds: ``weights`` [Hq, n, L] attention weights, ``heads`` [n, Hq] norm of each head's share of the layer's output,
    ``neurons`` [n, f] activations, ``energy`` [n, f] squared norm of each neuron's share of the FFN's output,
    ``ffn_input`` [n, d].
    """

    note: Note = lambda kind, layer, array: None
    layer: int = field(default=0, repr=False)

    @staticmethod
    def of(model: Transformer, note: Note) -> Watched:
        """The same model, watched."""
        return Watched(model.shape, model.numerics, model.weights, Meter(), model.exact, note)

    def run(self, ids: Array) -> tuple[Array, dict[int, Array]]:
        """Logits [n, V] and hidden states of every layer on one text [n]."""
        logits, hidden = self.forward([ids], self.new_cache(1), rows="all", return_hidden=True)
        return logits, hidden

    def attention(self, i: int, x: Array, batch: Batch, cache: KVCache) -> Array:
        """Remember the layer, for :meth:`attend`."""
        self.layer = i
        return super().attention(i, x, batch, cache)

    def attend(self, kind: Attention, q: Array, k: Array, v: Array, span: Span, bias: Array | None = None) -> Array:
        """Note the weights, and what each head adds to the residual stream."""
        out = super().attend(kind, q, k, v, span, bias)
        self.note("weights", self.layer, self._weights(kind, q, k, span, bias)[0])
        parts = out[0].reshape(-1, kind.heads, kind.value_dim).swapaxes(0, 1)  # [Hq, n, dv]
        matrix = self.weights[f"layers.{self.layer}.attn.out"].reshape(kind.heads, kind.value_dim, -1)
        added = parts @ matrix  # [Hq, n, dv] @ [Hq, dv, d] -> [Hq, n, d]
        self.note("heads", self.layer, np.linalg.norm(added, axis=-1).T)
        return out

    def _weights(self, kind: Attention, q: Array, k: Array, span: Span, bias: Array | None) -> Array:
        scale = self.numerics.attention_scale or kind.head_dim**-0.5
        keys = np.repeat(k, kind.heads // kind.kv_heads, axis=1)  # [b, Hq, L, dh]
        scores = cap(q.swapaxes(1, 2) @ keys.swapaxes(2, 3) * scale, self.numerics.attention_cap)
        scores = scores if bias is None else scores + bias
        hidden = np.zeros_like(scores) if span.visible is None else np.where(span.visible[:, None], 0, -np.inf)
        return softmax(np.asarray(scores + hidden))  # [b, Hq, n, L]

    def ffn(self, i: int, x: Array, prefix: str = "") -> Array:
        """Note what the FFN reads, and remember the layer."""
        self.layer = i
        self.note("ffn_input", i, x)
        return super().ffn(i, x, prefix)

    def activate(self, op: str, ffn: Ffn, up: Array) -> Array:
        """Note the neurons' activations and the energy that each one sends on."""
        hidden = super().activate(op, ffn, up)
        if op == "mlp.act":
            down = self.weights[f"layers.{self.layer}.mlp.down"]  # [f, d]
            self.note("neurons", self.layer, hidden)
            self.note("energy", self.layer, hidden**2 * (down**2).sum(axis=1))
        return hidden


def smallest_share(energy: Array, part: float) -> Array:
    """Share of units that together hold ``part`` of a row's energy, largest first, [n, units] -> [n]."""
    order = -np.sort(-np.asarray(energy, dtype=np.float64), axis=-1)
    mass = np.cumsum(order, axis=-1)
    needed = (mass < part * mass[:, -1:]).sum(axis=-1) + 1
    return np.asarray(needed / energy.shape[-1])


def with_matrices(model: Transformer, change: Callable[[Array], Array]) -> Transformer:
    """A copy whose layer matrices went through ``change``, each of q, k, v, gate and up by itself; all are [in, out].

    Embedding, head and norms stay.
    """
    weights = dict(model.weights)
    for i, layer in enumerate(model.shape.layers):
        a, key = layer.attention, f"layers.{i}."
        queries, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
        cuts = {"attn.qkv": [queries, queries + keys], "mlp.up": [layer.ffn.width] if layer.ffn.gated else []}
        for op in ("attn.qkv", "attn.out", "mlp.up", "mlp.down"):
            parts = np.split(weights[key + op], cuts.get(op, []), axis=1)
            weights[key + op] = np.concatenate([change(part) for part in parts], axis=1)
    return replace(model, weights=weights, meter=Meter())


def ternary(matrix: Array) -> Array:
    """Absmean ternary rounding (BitNet b1.58, arXiv 2402.17764, equations 1-3): -s, 0 or s with s = mean |w|."""
    scale = np.abs(matrix).mean() + 1e-5
    return np.asarray(np.clip(np.round(matrix / scale), -1, 1) * scale, dtype=matrix.dtype)
