"""HiRE that really runs: approximate copies of the matrices score, exact columns and rows are gathered and multiplied.

The twin of ``sim/variants/hire.py``. ``tally`` says how many of the true best were found (exact scores are computed
beside, unmetered) and which units a pass touched. Attention at decode picks, for each key/value head, the key
dimensions in which the group's queries are largest, as SparQ does (arXiv 2312.04985, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.analytic.model import Attention, Ffn
from sim.reference.attention import attend
from sim.reference.batch import Span
from sim.reference.meter import Meter
from sim.reference.numerics import ACTIVATIONS, cap, softmax
from sim.reference.transformer import Transformer
from sim.reference.variants.choosing import Copy, Tally, best, columns_product, rows_product

Array = NDArray[Any]


@dataclass(frozen=True)
class TwoPhase:
    """``candidates`` units fetched a row, the ``keep`` best of them kept; ``rank`` and ``bits`` of the copy.

    ``group`` neighbouring units are chosen together, each of ``shards`` blocks of units names its own share; from
    ``dense_rows`` rows a pass runs the exact product (None: never).
    """

    candidates: int
    keep: int
    rank: int | None = None
    bits: int | None = 4
    block: int | str = "channel"
    group: int = 1
    shards: int = 1
    dense_rows: int | None = None

    def is_dense(self, rows: int) -> bool:
        """Whether a pass of that many rows runs the exact product."""
        return self.dense_rows is not None and rows >= self.dense_rows


@dataclass(frozen=True)
class KeyReach:
    """Attention: ``dims`` key dimensions score, ``candidates`` cached tokens beside the own one are attended to."""

    candidates: int
    dims: int


@dataclass
class Hire(Transformer):
    """A model with ``copies`` of some matrices, by weight name."""

    softmax: TwoPhase | None = None
    neurons: TwoPhase | None = None
    reach: KeyReach | None = None
    copies: Mapping[str, Copy] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)

    @staticmethod
    def of(
        model: Transformer,
        softmax: TwoPhase | None = None,
        neurons: TwoPhase | None = None,
        reach: KeyReach | None = None,
        inputs: Mapping[str, Array] | None = None,
    ) -> Hire:
        """The same model in two phases. ``inputs``: sample inputs of a matrix by weight name, for its low rank.

        Raises ValueError for experts, or attention over windows or with a bias.
        """
        blocks = [layer.attention for layer in model.shape.layers]
        if any(layer.ffn.experts for layer in model.shape.layers) and neurons is not None:
            raise ValueError(f"{model.shape.name}: experts: not supported by the witness of HiRE")
        if reach is not None and (model.numerics.relative or any(b.window is not None for b in blocks)):
            raise ValueError(f"{model.shape.name}: windows or biased scores: not supported by the witness of HiRE")
        copies = {}
        for name, phases in (("logits", softmax), *((f"layers.{i}.mlp.up", neurons) for i in range(len(blocks)))):
            if phases is not None:
                w = model.weights[name]
                w = w if name == "logits" else w[:, : model.shape.layers[int(name.split(".")[1])].ffn.width]
                sample = None if inputs is None else inputs.get(name)
                copies[name] = Copy.of(w, phases.rank, phases.bits, phases.block, sample)
        return Hire(model.shape, model.numerics, model.weights, Meter(), model.exact, softmax, neurons, reach, copies)

    def head(self, x: Array) -> Array:
        """Logits of the candidates, minus infinity for all others, [m, d] -> [m, V]."""
        phases = self.softmax
        if phases is None or not len(x) or phases.is_dense(len(x)):
            return super().head(x)
        x = self.final_norm(x) if self.shape.final_norm else x
        x = x * self.dtype.type(self.numerics.logit_scale)
        w = self.weights["logits"]
        chosen = best(self._scores("logits", "logits", x), phases.candidates, 1, phases.shards)
        exact = columns_product(x, w, chosen)
        read = self.tally.touch("logits", chosen) * len(w) * w.itemsize
        self.meter.add("logits", flops=2 * exact.size * len(w), weights=read, activations=x.nbytes + exact.nbytes)
        self.tally.compare(x @ w, chosen, phases.keep)
        out = np.full((len(x), self.shape.vocab), -np.inf, self.dtype)
        np.put_along_axis(out, chosen, cap(exact, self.numerics.logit_cap), axis=1)
        return out

    def ffn(self, i: int, x: Array, prefix: str = "") -> Array:
        """The feed-forward block of the candidates, the best ``keep`` of them kept, [tokens, d] -> [tokens, d]."""
        phases = self.neurons
        if phases is None or prefix or phases.is_dense(len(x)):
            return super().ffn(i, x, prefix)
        key, block = f"layers.{i}.", self.shape.layers[i].ffn
        chosen = self._candidates(key, block, x, phases)
        hidden = self.activate("mlp.act", block, self._up(key, block, x, chosen))
        kept = best(np.abs(hidden), min(phases.keep, hidden.shape[1]), phases.group, phases.shards)
        self.meter.add("mlp.keep", flops=hidden.size, activations=hidden.nbytes)
        mask = np.zeros(hidden.shape, bool)
        np.put_along_axis(mask, kept, True, axis=1)
        return self._down(key, np.where(mask, hidden, 0).astype(self.dtype), chosen)

    def attend(self, kind: Attention, q: Array, k: Array, v: Array, span: Span, bias: Array | None = None) -> Array:
        """Attention of single new tokens in two phases, a sequence at a time; of more tokens as ever."""
        if self.reach is None or q.shape[1] != 1 or not span.cached:
            return super().attend(kind, q, k, v, span, bias)
        lengths = [k.shape[2]] * len(q) if span.visible is None else span.visible[:, 0].sum(axis=1).tolist()
        return np.concatenate([self._one(kind, q[i], k[i, :, :n], v[i, :, :n]) for i, n in enumerate(lengths)])

    # -- phase 1

    def _scores(self, base: str, name: str, x: Array) -> Array:
        scores = self.copies[name].scores(self.meter, base, x)
        self.meter.add(f"{base}.select", flops=scores.size, activations=scores.nbytes)
        return scores

    def _candidates(self, key: str, block: Ffn, x: Array, phases: TwoPhase) -> Array:
        """Columns [m, k'] whose activations look largest; of gated blocks those of the gate."""
        act, bias = ACTIVATIONS[block.activation], self.weights.get(f"{key}mlp.up.bias")
        offset = 0.0 if bias is None else bias[: block.width]
        if bias is not None:
            self.meter.add("mlp.approx", weights=bias[: block.width].nbytes)
        guessed = np.abs(act(self._scores("mlp", f"{key}mlp.up", x) + offset))
        chosen = best(guessed, phases.candidates, phases.group, phases.shards)
        exact = np.abs(act(x @ self.weights[f"{key}mlp.up"][:, : block.width] + offset))
        self.tally.compare(exact, chosen, phases.keep, phases.group)
        return chosen

    # -- phase 2

    def _up(self, key: str, block: Ffn, x: Array, chosen: Array) -> Array:
        w, bias = self.weights[f"{key}mlp.up"], self.weights.get(f"{key}mlp.up.bias")
        columns = np.concatenate([chosen + part * block.width for part in range(block.up_factor)], axis=1)
        out = columns_product(x, w, columns)
        per_unit = block.up_factor * (len(w) * w.itemsize + (0 if bias is None else bias.itemsize))
        read = self.tally.touch(f"{key}mlp.up", chosen) * per_unit
        self.meter.add("mlp.up", flops=2 * out.size * len(w), weights=read, activations=x.nbytes + out.nbytes)
        return out if bias is None else out + bias[columns]

    def _down(self, key: str, hidden: Array, chosen: Array) -> Array:
        w, bias = self.weights[f"{key}mlp.down"], self.weights.get(f"{key}mlp.down.bias")
        out = rows_product(hidden, w, chosen)
        read = len(np.unique(chosen)) * w.shape[1] * w.itemsize + (0 if bias is None else bias.nbytes)
        flops = 2 * hidden.size * w.shape[1]
        self.meter.add("mlp.down", flops=flops, weights=read, activations=hidden.nbytes + out.nbytes)
        return out if bias is None else out + bias

    # -- attention

    def _one(self, kind: Attention, q: Array, k: Array, v: Array) -> Array:
        """One query [1, Hq, dh] on its keys [Hkv, L, dh], the last of them its own -> [1, 1, Hq * dv]."""
        assert self.reach is not None
        cached, group = k.shape[1] - 1, kind.heads // kind.kv_heads
        queries = q[0].reshape(kind.kv_heads, group, -1)  # [Hkv, g, dh]
        scores = self._approximate(queries, k)  # [Hkv, g, L]
        kept = min(self.reach.candidates, cached)
        order = np.argsort(-scores.max(axis=1)[:, :cached], axis=1, kind="stable")[:, :kept]
        own = np.full((len(k), 1), cached)
        seen = np.concatenate([np.sort(order, axis=1), own], axis=1)[..., None]  # [Hkv, k' + 1, 1]
        self._weigh(queries, k, seen)
        keys, values = np.take_along_axis(k, seen, axis=1), np.take_along_axis(v, seen, axis=1)
        return attend(
            self.meter, "attn", q[None], keys[None], values[None], pairs=kept + 1, cached=kept,
            scale=self.numerics.attention_scale, soft_cap=self.numerics.attention_cap,
        )  # fmt: skip

    def _approximate(self, queries: Array, k: Array) -> Array:
        assert self.reach is not None
        largest = np.argsort(-np.abs(queries).sum(axis=1), axis=1, kind="stable")
        dims = largest[:, None, : self.reach.dims]  # [Hkv, 1, r]
        few, short = np.take_along_axis(queries, dims, axis=2), np.take_along_axis(k, dims, axis=2)
        read = short[:, :-1].nbytes
        scores = self.meter.matmul("attn.approx", few, short.swapaxes(1, 2), kv=read, activations=few.nbytes)
        self.meter.add("attn.select", flops=scores.size, activations=2 * scores.nbytes)
        return scores

    def _weigh(self, queries: Array, k: Array, seen: Array) -> None:
        """Note how much of the exact softmax falls on what was chosen, mean over heads."""
        scale = queries.shape[2] ** -0.5 if self.numerics.attention_scale is None else self.numerics.attention_scale
        weights = softmax((queries @ k.swapaxes(1, 2)) * scale)  # [Hkv, g, L]
        picked = np.take_along_axis(weights, seen.swapaxes(1, 2), axis=2)
        self.tally.masses.append(float(picked.sum(axis=2).mean()))
