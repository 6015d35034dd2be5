"""A transformer in plain NumPy: decoder, optionally with an encoder, KV cache, ragged batches, all of it metered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from sim.analytic.model import Attention, Layer
from sim.reference.attention import attend
from sim.reference.batch import Batch, TreeMask, make_batch
from sim.reference.blocks import Blocks
from sim.reference.cache import KVCache
from sim.reference.numerics import cap

Array = NDArray[Any]
Rows = Literal["last", "all", "none"] | Sequence[int]


@dataclass
class Transformer(Blocks):
    """A model that runs: ``shape``, ``numerics`` and ``weights``, with the ``meter`` that counts what it does.

    ``exact`` makes greedy speculative output identical to greedy target output; slower, since every row reads the
    weights by itself. The methods ``attention``, ``ffn``, ``linear`` and ``norm`` are the seams of variants.
    """

    def new_cache(self, sequences: int = 1) -> KVCache:
        """An empty KV cache for ``sequences`` sequences."""
        return KVCache(self.shape, sequences, self.dtype)

    def forward(
        self,
        tokens: Sequence[Array],
        cache: KVCache,
        sequences: Sequence[int] | None = None,
        *,
        rows: Rows = "last",
        tree: TreeMask | Sequence[TreeMask | None] | None = None,
        return_hidden: bool | Sequence[int] = False,
    ) -> Any:
        """One pass: ``tokens[i]`` are the new tokens of ``sequences[i]`` (default: 0, 1, ...), added to ``cache``.

        ``rows``: which tokens get logits: each sequence's last, all, none, or a list of indices into the tokens of
        the batch laid end to end. ``tree``: the new tokens form a tree. Returns logits [rows, V]; with
        ``return_hidden`` the pair (logits, {k: [tokens, d]}), k = 0 the embedded tokens, k the states after k layers
        (before the final norm). Raises ValueError on bad tokens, sequences or trees, the cache untouched.
        """
        places = range(len(tokens)) if sequences is None else sequences
        batch = make_batch(tokens, list(places), cache.lengths, self.shape.vocab, tree, self.exact)
        wanted = self._rows(batch, rows)
        layers = self._hidden_layers(return_hidden)
        self._check_room(batch, cache)
        cache.reserve(int((batch.starts + batch.counts).max()))
        self.count_bias("")
        x = self.embed(batch.ids, batch.positions)
        hidden = {0: x} if 0 in layers else {}
        for i in range(len(self.shape.layers)):
            x = self.block(i, x, batch, cache)
            if i + 1 in layers:
                hidden[i + 1] = x
        cache.commit(batch.sequences, batch.counts)
        logits = self.head(x[wanted])
        return logits if return_hidden is False else (logits, hidden)

    def embed(self, ids: Array, positions: Array) -> Array:
        """Gather the tokens' vectors, [tokens] -> [tokens, d]."""
        x: Array = self.weights["embed"][ids]
        self.meter.add("embed", weights=x.nbytes, activations=x.nbytes)
        if "positions" in self.weights:
            x = x + self.weights["positions"][positions]
            self.meter.add("embed.positions", weights=x.nbytes)
        scale = self.numerics.embedding_scale
        return x if scale == 1.0 else x * self.dtype.type(scale)

    def block(self, i: int, x: Array, batch: Batch, cache: KVCache) -> Array:
        """Layer i on the residual stream, [tokens, d] -> [tokens, d]."""
        post = self.numerics.post_norms
        h = self.attention(i, self.norm("norm.attn", f"layers.{i}.", x), batch, cache)
        x = x + (self.norm("norm.post_attn", f"layers.{i}.", h) if post else h)
        if self.shape.layers[i].cross is not None:
            x = x + self.cross(i, self.norm("norm.cross", f"layers.{i}.", x), batch, cache)
        h = self.ffn(i, self.norm("norm.mlp", f"layers.{i}.", x))
        return x + (self.norm("norm.post_mlp", f"layers.{i}.", h) if post else h)

    def attention(self, i: int, x: Array, batch: Batch, cache: KVCache) -> Array:
        """Self-attention of layer i, [tokens, d] -> [tokens, d]; writes the new keys and values to the cache."""
        kind = self.shape.layers[i].attention
        q, k, v = self.project(i, x, batch.positions, batch.lengths)
        self.meter.add("kv.append", kv=k.nbytes + v.nbytes)
        for place, sequence in enumerate(batch.sequences):
            new = slice(batch.offsets[place], batch.offsets[place + 1])
            cache.write(i, int(sequence), int(batch.starts[place]), k[new], v[new])
        mixed = np.empty((len(x), kind.heads * kind.value_dim), self.dtype)
        for span in batch.spans(kind.window):
            keys, values = span.gather(cache.keys[i]), span.gather(cache.values[i])
            if self.exact:  # the same memory layout whatever the rest of the pass was
                keys, values = np.ascontiguousarray(keys), np.ascontiguousarray(values)
            mixed[span.rows] = self.attend(kind, q[span.rows], keys, values, span, self.bias("", span.distances))
        return self.linear("attn.out", f"layers.{i}.", mixed)

    def cross(self, i: int, x: Array, batch: Batch, cache: KVCache) -> Array:
        """Attention of layer i to the encoder's tokens (see :meth:`encode`), [tokens, d] -> [tokens, d]."""
        kind = cast(Attention, self.shape.layers[i].cross)
        q = self.linear("cross.q", f"layers.{i}.", x).reshape(-1, kind.heads, kind.head_dim)
        mixed = np.empty((len(x), kind.heads * kind.value_dim), self.dtype)
        for place, sequence in enumerate(batch.sequences):
            if not cache.cross[sequence]:
                raise ValueError(f"sequence {sequence}: encode its source text before decoding")
            k, v = cache.cross[sequence][i]
            new = slice(batch.offsets[place], batch.offsets[place + 1])
            step = 1 if self.exact else max(len(q[new]), 1)
            for at in range(new.start, new.stop, step):
                piece = slice(at, min(at + step, new.stop))
                count = piece.stop - piece.start
                read = k.shape[1] if at == new.start else 0
                mixed[piece] = attend(
                    self.meter, "cross", q[None, piece], k[None], v[None], pairs=count * k.shape[1], cached=read,
                    scale=self.numerics.attention_scale,
                )[0]  # fmt: skip
        return self.linear("cross.out", f"layers.{i}.", mixed)

    def encode(self, tokens: Sequence[Array], cache: KVCache, sequences: Sequence[int] | None = None) -> list[Array]:
        """Run the encoder over source texts and keep the cross-attention keys and values in ``cache``.

        Returns the encoder's states, one [n_i, d] a sequence. Raises ValueError for a model without an encoder.
        """
        if not self.shape.encoder:
            raise ValueError(f"encode: model {self.shape.name} has no encoder")
        places = range(len(tokens)) if sequences is None else sequences
        batch = make_batch(tokens, list(places), np.zeros_like(cache.lengths), self.shape.vocab, None, self.exact)
        with self.meter.prefix("encoder."):
            self.count_bias("encoder.")
            x = self.embed(batch.ids, batch.positions)
            for i in range(len(self.shape.encoder)):
                x = x + self._encoder_attention(i, self.norm("norm.attn", f"encoder.layers.{i}.", x), batch)
                x = x + self.ffn(i, self.norm("norm.mlp", f"encoder.layers.{i}.", x), "encoder.")
            x = self.norm("norm.final", "encoder.", x)
        states = np.split(x, batch.offsets[1:-1])
        fresh: list[list[tuple[Array, Array]]] = [[] for _ in states]
        for i in range(len(self.shape.layers)):
            k, v = self._cross_kv(i, x)
            for place, pairs in enumerate(fresh):
                piece = slice(batch.offsets[place], batch.offsets[place + 1])
                pairs.append((k[piece].swapaxes(0, 1).copy(), v[piece].swapaxes(0, 1).copy()))
        for sequence, pairs in zip(batch.sequences, fresh, strict=True):
            cache.cross[sequence] = pairs
        return states

    def _cross_kv(self, i: int, states: Array) -> tuple[Array, Array]:
        kind = cast(Attention, self.shape.layers[i].cross)
        both = self.linear("cross.kv", f"layers.{i}.", states)
        self.meter.add("cross.kv", kv=both.nbytes)
        k, v = np.split(both, [kind.kv_heads * kind.head_dim], axis=-1)
        return k.reshape(-1, kind.kv_heads, kind.head_dim), v.reshape(-1, kind.kv_heads, kind.value_dim)

    def _encoder_attention(self, i: int, x: Array, batch: Batch) -> Array:
        kind = self.shape.encoder[i].attention
        q, k, v = self.project(i, x, batch.positions, batch.lengths, "encoder.")
        mixed = np.empty((len(x), kind.heads * kind.value_dim), self.dtype)
        for start, stop in zip(batch.offsets[:-1], batch.offsets[1:], strict=True):
            at, n = np.arange(stop - start), int(stop - start)
            bias = self.bias("encoder.", (at[None] - at[:, None])[None])
            keys, values = k[start:stop].swapaxes(0, 1)[None], v[start:stop].swapaxes(0, 1)[None]
            mixed[start:stop] = attend(
                self.meter, "attn", q[None, start:stop], keys, values, pairs=n * n, cached=0, bias=bias,
                scale=self.numerics.attention_scale, soft_cap=self.numerics.attention_cap,
            )[0]  # fmt: skip
        return self.linear("attn.out", f"encoder.layers.{i}.", mixed)

    def final_norm(self, x: Array) -> Array:
        """The norm before the head, [m, d] -> [m, d]."""
        return self.norm("norm.final", "", x)

    def head(self, x: Array) -> Array:
        """Logits of residual states, [m, d] -> [m, V]; with no rows nothing is read or counted."""
        if not len(x):
            return np.zeros((0, self.shape.vocab), self.dtype)
        x = self.final_norm(x) if self.shape.final_norm else x
        scale = self.numerics.logit_scale
        logits = self.linear("logits", "", x if scale == 1.0 else x * self.dtype.type(scale))
        return cap(logits, self.numerics.logit_cap)

    def early_exit(self, layers: int) -> Transformer:
        """The same model stopped after its first ``layers`` layers, head included (weights and meter shared)."""
        if not 1 <= layers <= len(self.shape.layers):
            raise ValueError(f"layers: {layers} is not allowed, the model has 1..{len(self.shape.layers)}")
        return replace(self, shape=replace(self.shape, layers=self.shape.layers[:layers]))

    def sliced(self, widths: int | Sequence[int]) -> Transformer:
        """MatFormer (arXiv 2310.07707): the model of the first hidden units of every dense FFN.

        ``widths``: one for all layers, or one for each. Weights are views and the meter is shared. Raises ValueError
        for widths that the model does not have.
        """
        weights = dict(self.weights)
        layers: list[Layer] = []
        each = [widths] * len(self.shape.layers) if isinstance(widths, int) else widths
        for i, (layer, width) in enumerate(zip(self.shape.layers, each, strict=True)):
            if layer.ffn.experts or not 1 <= width <= layer.ffn.width:
                raise ValueError(f"width: {width} is not allowed in layer {i}, its dense FFN has 1..{layer.ffn.width}")
            weights |= _slice_ffn(weights, f"layers.{i}.", layer, width)
            layers.append(replace(layer, ffn=replace(layer.ffn, width=width)))
        return replace(self, shape=replace(self.shape, layers=tuple(layers)), weights=weights)

    def _rows(self, batch: Batch, rows: Rows) -> Array:
        total = len(batch.ids)
        if isinstance(rows, str):
            if rows not in ("last", "all", "none"):
                raise ValueError(f"rows: {rows!r} is not allowed, use 'last', 'all', 'none' or a list of indices")
            last = batch.offsets[1:][batch.counts > 0] - 1
            return {"last": last, "all": np.arange(total), "none": np.arange(0)}[rows]
        wanted = np.asarray(rows, np.int64)
        if ((wanted < 0) | (wanted >= total)).any():
            raise ValueError(f"rows: {list(rows)} not allowed, the pass has tokens 0..{total - 1}")
        return wanted

    def _hidden_layers(self, asked: bool | Sequence[int]) -> set[int]:
        every = set(range(len(self.shape.layers) + 1))
        if isinstance(asked, bool):
            return every if asked else set()
        if not set(asked) <= every:
            raise ValueError(f"return_hidden: {list(asked)} not allowed, layers are 0..{len(self.shape.layers)}")
        return set(asked)

    def _check_room(self, batch: Batch, cache: KVCache) -> None:
        if len(cache.keys) < len(self.shape.layers):
            raise ValueError(f"cache: {len(cache.keys)} layers are not enough for {self.shape.name}")
        table = self.weights.get("positions")
        if table is not None and batch.positions.size and batch.positions.max() >= len(table):
            raise ValueError(f"tokens: position {batch.positions.max()} is beyond the {len(table)} learned positions")


def _slice_ffn(weights: Mapping[str, Array], key: str, layer: Layer, width: int) -> dict[str, Array]:
    """The first ``width`` hidden units of one dense FFN: columns of each up matrix, rows of the down matrix."""
    parts = layer.ffn.up_factor
    out = {f"{key}mlp.down": weights[f"{key}mlp.down"][:width]}
    for name in (f"{key}mlp.up", f"{key}mlp.up.bias"):
        if name in weights:
            halves = np.split(weights[name].T, parts)
            out[name] = np.concatenate([half[:width] for half in halves]).T
    return out
