"""Contextual sparsity that really runs: fitted low-rank predictors choose, the other heads and neurons are skipped.

The twin of ``sim/variants/contextual_sparsity.py``. Predictors are linear (as Deja Vu's, arXiv 2310.17157, section 4)
and of reduced rank, fitted by least squares to the sizes of activations and of heads' outputs on sample text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.analytic.model import Attention, Ffn
from sim.reference.attention import attend
from sim.reference.batch import Batch, Span
from sim.reference.cache import KVCache
from sim.reference.meter import Meter
from sim.reference.transformer import Transformer
from sim.reference.variants.choosing import Copy, Tally, best, columns_product, rows_product

Array = NDArray[Any]


@dataclass(frozen=True)
class Keep:
    """``neurons`` and groups of ``heads`` kept by each token (None: all); ``rank`` of the predictors.

    ``lookahead``: predictors see the input of the block before. From ``dense_rows`` rows a pass multiplies whole
    matrices (None: never), and prompts are always read by all heads.
    """

    neurons: int | None = None
    heads: int | None = None
    rank: int = 16
    lookahead: bool = True
    dense_rows: int | None = None

    def is_dense(self, rows: int) -> bool:
        """Whether a pass of that many rows multiplies whole matrices."""
        return self.dense_rows is not None and rows >= self.dense_rows


@dataclass
class Watching(Transformer):
    """A model that remembers what enters each block and how large its units come out."""

    entered: dict[str, list[Array]] = field(default_factory=dict)
    sizes: dict[str, list[Array]] = field(default_factory=dict)

    def ffn(self, i: int, x: Array, prefix: str = "") -> Array:
        """Note the input and the sizes of the activations."""
        self.entered.setdefault(f"mlp{i}", []).append(x)
        up = x @ self.weights[f"layers.{i}.mlp.up"] + self.weights.get(f"layers.{i}.mlp.up.bias", 0.0)
        hidden = self.activate("", self.shape.layers[i].ffn, up)
        self.sizes.setdefault(f"mlp{i}", []).append(np.abs(hidden))
        return super().ffn(i, x, prefix)

    def attention(self, i: int, x: Array, batch: Batch, cache: KVCache) -> Array:
        """Note the input."""
        self.entered.setdefault(f"attn{i}", []).append(x)
        return super().attention(i, x, batch, cache)

    def linear(self, op: str, key: str, x: Array) -> Array:
        """Note how large each group of heads makes the output of attention."""
        if op == "attn.out":
            i = int(key.split(".")[1])
            groups = self.shape.layers[i].attention.kv_heads
            parts = zip(np.split(x, groups, axis=1), np.split(self.weights[key + op], groups), strict=True)
            norms = [np.linalg.norm(part @ w, axis=1) for part, w in parts]
            self.sizes.setdefault(f"attn{i}", []).append(np.stack(norms, axis=1))
        return super().linear(op, key, x)


def fitted(model: Transformer, texts: Sequence[Array], keep: Keep) -> dict[str, Copy]:
    """Predictors by block ("mlp0", "attn0" ...), fitted on the sample ``texts``."""
    watch = Watching(model.shape, model.numerics, model.weights, Meter())
    watch.forward(texts, watch.new_cache(len(texts)), rows="none")
    wanted = [kind for kind, said in (("mlp", keep.neurons), ("attn", keep.heads)) if said is not None]
    blocks = [f"{kind}{i}" for kind in wanted for i in range(len(model.shape.layers))]
    return {
        block: _predictor(np.concatenate(watch.entered[source(block, keep.lookahead)]),
                          np.concatenate(watch.sizes[block]), keep.rank)
        for block in blocks
    }  # fmt: skip


def source(block: str, lookahead: bool) -> str:
    """Whose input the predictor of a block sees: with look-ahead the block before (the first one's own)."""
    if not lookahead or block == "attn0":
        return block
    return f"attn{block[3:]}" if block.startswith("mlp") else f"mlp{int(block[4:]) - 1}"


def _predictor(x: Array, y: Array, rank: int) -> Copy:
    """Reduced-rank regression of y [t, n] on x [t, d]: least squares, then the leading directions of its fit."""
    wide = np.asarray(x, np.float64)
    power = wide.T @ wide
    ridge = 1e-3 * np.trace(power) / len(power) * np.eye(len(power))
    slopes = np.linalg.solve(power + ridge, wide.T @ y)
    main = np.linalg.svd(wide @ slopes, full_matrices=False)[2][:rank]
    main = np.pad(main, ((0, rank - len(main)), (0, 0)))  # fewer units than the rank
    return Copy((slopes @ main.T).astype(x.dtype), main.astype(x.dtype))


@dataclass
class Sparse(Transformer):
    """A model with ``predictors`` by block; ``inputs`` and ``groups`` are those of the pass under way."""

    keep: Keep = field(default_factory=Keep)
    predictors: Mapping[str, Copy] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    inputs: dict[str, Array] = field(default_factory=dict)
    groups: Array | None = None

    @staticmethod
    def of(model: Transformer, keep: Keep, predictors: Mapping[str, Copy]) -> Sparse:
        """The same model, sparse. Raises ValueError for experts, windows or biased scores."""
        layers = model.shape.layers
        if any(la.ffn.experts for la in layers) and keep.neurons is not None:
            raise ValueError(f"{model.shape.name}: experts: not supported by the witness of contextual sparsity")
        if keep.heads is not None and (model.numerics.relative or any(la.attention.window for la in layers)):
            raise ValueError(f"{model.shape.name}: windows or biased scores: not supported by this witness")
        return Sparse(model.shape, model.numerics, model.weights, Meter(), model.exact, keep, predictors)

    # -- neurons

    def ffn(self, i: int, x: Array, prefix: str = "") -> Array:
        """The feed-forward block of the predicted neurons, [tokens, d] -> [tokens, d]."""
        self.inputs[f"mlp{i}"] = x
        if self.keep.neurons is None or prefix or self.keep.is_dense(len(x)):
            return super().ffn(i, x, prefix)
        block, key = self.shape.layers[i].ffn, f"layers.{i}."
        chosen = self._predicted(f"mlp{i}", "mlp.predict", self.keep.neurons)
        self._compare(block, key, x, chosen)
        hidden = self.activate("mlp.act", block, self._up(block, key, x, chosen))
        return self._down("mlp.down", key, hidden, chosen)

    def _compare(self, block: Ffn, key: str, x: Array, chosen: Array) -> None:
        bias = self.weights.get(f"{key}mlp.up.bias", 0.0)
        quiet = Sparse(self.shape, self.numerics, self.weights)
        exact = np.abs(quiet.activate("", block, x @ self.weights[f"{key}mlp.up"] + bias))
        self.tally.compare(exact, chosen, chosen.shape[1])

    def _up(self, block: Ffn, key: str, x: Array, chosen: Array) -> Array:
        w, bias = self.weights[f"{key}mlp.up"], self.weights.get(f"{key}mlp.up.bias")
        columns = np.concatenate([chosen + part * block.width for part in range(block.up_factor)], axis=1)
        out = columns_product(x, w, columns)
        per_unit = block.up_factor * (len(w) * w.itemsize + (0 if bias is None else bias.itemsize))
        read = self.tally.touch(f"{key}mlp.up", chosen) * per_unit
        self.meter.add("mlp.up", flops=2 * out.size * len(w), weights=read, activations=x.nbytes + out.nbytes)
        return out if bias is None else out + bias[columns]

    def _down(self, op: str, key: str, hidden: Array, chosen: Array) -> Array:
        """Each row with its own rows of a matrix [n, d]: [m, k], [m, k] -> [m, d]."""
        w, bias = self.weights[key + op], self.weights.get(f"{key}{op}.bias")
        out = rows_product(hidden, w, chosen)
        read = len(np.unique(chosen)) * w.shape[1] * w.itemsize + (0 if bias is None else bias.nbytes)
        flops = 2 * hidden.size * w.shape[1]
        self.meter.add(op, flops=flops, weights=read, activations=hidden.nbytes + out.nbytes)
        return out if bias is None else out + bias

    def _predicted(self, block: str, base: str, count: int) -> Array:
        scores = self.predictors[block].scores(self.meter, base, self.inputs[source(block, self.keep.lookahead)])
        self.meter.add(f"{base}.select", flops=scores.size, activations=scores.nbytes)
        return best(scores, count)

    # -- heads

    def attention(self, i: int, x: Array, batch: Batch, cache: KVCache) -> Array:
        """Self-attention; decoding tokens attend with the predicted groups of heads."""
        self.inputs[f"attn{i}"] = x
        if self.keep.heads is not None:
            self.groups = self._predicted(f"attn{i}", "attn.predict", self.keep.heads)
        return super().attention(i, x, batch, cache)

    def linear(self, op: str, key: str, x: Array) -> Array:
        """Queries and output projection of the chosen groups; any other product as ever."""
        if self.groups is None or op not in ("attn.qkv", "attn.out") or self.keep.is_dense(len(x)):
            return super().linear(op, key, x)
        kind = self.shape.layers[int(key.split(".")[1])].attention
        if op == "attn.out":
            chosen = _numbers(self.groups, kind.heads // kind.kv_heads * kind.value_dim)
            return self._down(op, key, np.take_along_axis(x, chosen, axis=1), chosen)
        return self._queries(kind, key, x)

    def _queries(self, kind: Attention, key: str, x: Array) -> Array:
        """[m, d] -> [m, all queries, keys, values]; queries that were not chosen are zero."""
        assert self.groups is not None
        w, bias = self.weights[f"{key}attn.qkv"], self.weights.get(f"{key}attn.qkv.bias")
        width = kind.heads * kind.head_dim
        chosen = _numbers(self.groups, width // kind.kv_heads)
        made, others = columns_product(x, w, chosen), x @ w[:, width:]
        out = np.zeros((len(x), w.shape[1]), x.dtype)
        np.put_along_axis(out, chosen, made if bias is None else made + bias[chosen], axis=1)
        out[:, width:] = others if bias is None else others + bias[width:]
        touched = self.tally.touch(f"{key}attn.qkv", self.groups) * (width // kind.kv_heads)
        numbers = (touched + others.shape[1]) * (len(w) + (bias is not None))
        size, flops = made.size + others.size, 2 * (made.size + others.size) * len(w)
        moved = x.nbytes + size * x.itemsize
        self.meter.add("attn.qkv", flops=flops, weights=numbers * w.itemsize, activations=moved)
        return out

    def project(self, i: int, x: Array, positions: Array, lengths: Array, prefix: str = "") -> tuple[Array, ...]:
        """As ever, but only the chosen queries are rotated (and counted)."""
        meter, self.meter = self.meter, Meter()
        try:
            q, k, v = super().project(i, x, positions, lengths, prefix)
            done = self.meter
        finally:
            self.meter = meter
        share = self._rotated(i, x)
        for name in done.flops | done.bytes_weights | done.bytes_activations:
            part = share if name == "attn.rope" else 1.0
            self.meter.add(name, flops=round(done.flops[name] * part), weights=done.bytes_weights[name],
                           activations=round(done.bytes_activations[name] * part))  # fmt: skip
        return q, k, v

    def _rotated(self, i: int, x: Array) -> float:
        """Share of heads, those of keys included, that RoPE turns."""
        kind = self.shape.layers[i].attention
        if self.groups is None or self.keep.is_dense(len(x)):
            return 1.0
        kept = self.groups.shape[1] * (kind.heads // kind.kv_heads)
        return float((kept + kind.kv_heads) / (kind.heads + kind.kv_heads))

    def attend(self, kind: Attention, q: Array, k: Array, v: Array, span: Span, bias: Array | None = None) -> Array:
        """Attention of single new tokens by their chosen groups, a sequence at a time; zeros for the others."""
        if self.groups is None or q.shape[1] != 1 or not span.cached:
            return super().attend(kind, q, k, v, span, bias)
        lengths = [k.shape[2]] * len(q) if span.visible is None else span.visible[:, 0].sum(axis=1).tolist()
        chosen = self.groups[span.rows[:, 0]]
        each = enumerate(zip(lengths, chosen, strict=True))
        return np.stack([self._one(kind, q[j], k[j, c, :n], v[j, c, :n], c) for j, (n, c) in each])

    def _one(self, kind: Attention, q: Array, k: Array, v: Array, chosen: Array) -> Array:
        """One query [1, Hq, dh] by the chosen groups, whose keys are [h, L, dh] -> [1, Hq * dv]."""
        own = q.reshape(kind.kv_heads, -1, kind.head_dim)[chosen].reshape(1, 1, -1, kind.head_dim)
        mixed = attend(
            self.meter, "attn", own, k[None], v[None], pairs=k.shape[1], cached=k.shape[1] - 1,
            scale=self.numerics.attention_scale, soft_cap=self.numerics.attention_cap,
        )  # fmt: skip
        out = np.zeros((kind.kv_heads, kind.heads // kind.kv_heads * kind.value_dim), self.dtype)
        out[chosen] = mixed.reshape(len(chosen), -1)
        return out.reshape(1, -1)


def _numbers(groups: Array, each: int) -> Array:
    """Columns of chosen groups of ``each`` adjacent ones, [m, h] -> [m, h * each]."""
    return np.asarray((groups[..., None] * each + np.arange(each)).reshape(len(groups), -1))
