"""Drafters on the target's states with layers of their own: EAGLE, EAGLE-3, multi-token prediction, parallel layers.

Entry i of the drafter's cache is made of token i and the state of the token before it (zeros before the first). After
each round the entries of what was accepted are made again, of the target's true states: draft-extend.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sim.reference.batch import Batch, make_batch
from sim.reference.decoding import Tokens
from sim.reference.numerics import rms_norm
from sim.reference.sampling import softmax, stream
from sim.reference.transformer import Transformer
from sim.reference.twins._tree import Array, Context, Draft, Shape, children_of
from sim.reference.twins._tree_levels import Slots, level_batch, run

if TYPE_CHECKING:
    from numpy.random import Generator


@dataclass
class Wide(Transformer):
    """One layer whose query, key and value products read a second input beside the residual stream (EAGLE-3)."""

    beside: Array | None = None

    def linear(self, op: str, key: str, x: Array) -> Array:
        """The product of ``op``, over both inputs side by side where it makes queries, keys and values."""
        assert self.beside is not None
        return super().linear(op, key, np.concatenate([x, self.beside], axis=1) if op == "attn.qkv" else x)


@dataclass(frozen=True)
class FeatureWeights:
    """``net``: the layers, with the target's embedding and head; ``join``: product, wide or none.

    ``matrix`` [2d, d] of a product join; ``fuse`` [3d, d] of low, middle and high states (None: the last one alone);
    ``gains``: of the norms of embedding and state, as many as there are.
    """

    net: Transformer
    join: str = "product"
    matrix: Array | None = None
    fuse: Array | None = None
    gains: tuple[Array, ...] = ()


class FeatureTree:
    """EAGLE, multi-token prediction: a round's first pass extends over what was accepted, then comes a pass a depth."""

    def __init__(self, target: Transformer, weights: FeatureWeights, shape: Shape, sequences: int) -> None:
        """Children are always the drafter's best ones."""
        self.weights, self.shape, self.net = weights, shape, weights.net
        self.slots = Slots(shape, inner=True)
        self.cache = self.net.new_cache(sequences)
        deep = len(target.shape.layers)
        self.layers: tuple[int, ...] = (deep,) if weights.fuse is None else (1, (deep + 1) // 2, deep)
        self.unread: dict[int, Array] = {}  # true states of what comes next, [n, layers, d]

    def prefill(self, prompts: Sequence[Tokens], states: Sequence[Array]) -> None:
        """Read the prompts, each token with the state before it."""
        shifted = [np.concatenate([np.zeros_like(one[:1]), one[:-1]]) for one in states]
        for sequence, one in enumerate(states):
            self.unread[sequence] = one[-1:]
        with self.net.meter.prefix("draft."):
            self._extend(prompts, shifted, range(len(prompts)))

    def settle(self, sequence: int, context: Context, path: Sequence[int], states: Array) -> None:
        """Forget what was drafted; the true states of root and path are read next."""
        self.cache.truncate(sequence, len(context) - len(states))
        self.unread[sequence] = states

    def propose(self, contexts: Sequence[Context], active: Sequence[int]) -> list[Draft]:
        """Draft-extend, then the nodes that have children, level by level, on the drafter's own states."""
        tokens = np.zeros((len(active), len(self.shape.depths)), np.int64)
        states = np.zeros((len(active), len(self.shape.depths), self.net.shape.d_model), self.net.dtype)
        with self.net.meter.prefix("draft."):
            feeds = [np.array(contexts[s][int(self.cache.lengths[s]) :], np.int64) for s in active]
            x, batch = self._extend(feeds, [self.unread[s] for s in active], active)
            states[:, 0] = x[batch.offsets[1:] - 1]
            self._choose(0, states, tokens)
            for depth in range(1, self.shape.depth):
                self._level(depth, states, tokens, active)
                self._choose(depth, states, tokens)
        return [Draft(tuple(map(int, of_one[1:]))) for of_one in tokens]

    def _extend(self, feeds: Sequence[Tokens], states: Sequence[Array], active: Sequence[int]) -> tuple[Array, Batch]:
        batch = make_batch(feeds, list(active), self.cache.lengths, self.net.shape.vocab, None, self.net.exact)
        true = np.concatenate(states)  # [tokens, layers, d]
        if self.weights.fuse is None:
            features = true[:, -1]
        else:
            features = self.net.meter.linear("heads.hidden", true.reshape(len(true), -1), self.weights.fuse)
        return run(self.net, self._inputs(batch, features), batch, self.cache), batch

    def _level(self, depth: int, states: Array, tokens: Tokens, active: Sequence[int]) -> None:
        now = self.slots.level(depth)
        batch = level_batch(self.slots, depth, tokens[:, now].tolist(), active, self.cache, self.net.exact)
        parents = [self.shape.mask.parents[row] for row in now]
        features = states[:, parents].reshape(len(batch.ids), -1)
        x = run(self.net, self._inputs(batch, features), batch, self.cache)
        states[:, now] = x.reshape(len(active), len(now), -1)

    def _inputs(self, batch: Batch, features: Array) -> Array:
        """One input of states and embeddings, [tokens, d]."""
        if self.weights.join == "none":
            return features
        embedded = self.net.embed(batch.ids, batch.positions)
        if self.weights.gains:
            embedded = self._normed(embedded, self.weights.gains[0])
        if isinstance(self.net, Wide):
            self.net.beside = embedded
            return features
        if len(self.weights.gains) > 1:
            features = self._normed(features, self.weights.gains[1])
        assert self.weights.matrix is not None
        return self.net.meter.linear("feature.join", np.concatenate([features, embedded], axis=1), self.weights.matrix)

    def _normed(self, x: Array, gain: Array) -> Array:
        self.net.meter.add("feature.norm", flops=4 * x.size, weights=gain.nbytes, activations=2 * x.nbytes)
        return rms_norm(x, gain, self.net.numerics.eps)

    def _choose(self, depth: int, states: Array, tokens: Tokens) -> None:
        rows = self.shape.rows_at(depth, inner=True)
        logits = self.net.head(states[:, rows].reshape(len(tokens) * len(rows), -1))
        self.net.meter.sample(logits)
        soft = softmax(logits).reshape(len(tokens), len(rows), -1)
        for i, of_one in enumerate(soft):
            for row, one in zip(rows, of_one, strict=True):
                children = self.shape.children[row]
                tokens[i, list(children)] = children_of(one, len(children), "greedy", _NOBODY)


class LayerTree(FeatureTree):
    """A layer a depth, side by side on the target's last state (Gloeckle et al., arXiv 2404.19737)."""

    def propose(self, contexts: Sequence[Context], active: Sequence[int]) -> list[Draft]:
        """One pass; layer k speaks for depth k + 1, so that a node's token depends on its rank alone."""
        with self.net.meter.prefix("draft."):
            feeds = [np.array(contexts[s][int(self.cache.lengths[s]) :], np.int64) for s in active]
            x, batch = self._extend(feeds, [self.unread[s] for s in active], active)
            last = x.reshape(len(self.net.shape.layers), len(batch.ids), -1)[:, batch.offsets[1:] - 1]
            logits = self.net.head(last.reshape(-1, last.shape[-1]))
            self.net.meter.sample(logits)
        ranks = np.argsort(-logits.reshape(*last.shape[:2], -1), axis=-1, kind="stable")
        return [Draft(tuple(int(ranks[len(p) - 1, i, p[-1]]) for p in self.shape.paths)) for i in range(len(active))]

    def _extend(self, feeds: Sequence[Tokens], states: Sequence[Array], active: Sequence[int]) -> tuple[Array, Batch]:
        """Every layer on the same states, [layers * tokens, d]."""
        batch = make_batch(feeds, list(active), self.cache.lengths, self.net.shape.vocab, None, self.net.exact)
        x = np.concatenate(states)[:, -1]
        self.cache.reserve(int((batch.starts + batch.counts).max()))
        out = [self.net.block(i, x, batch, self.cache) for i in range(len(self.net.shape.layers))]
        self.cache.commit(batch.sequences, batch.counts)
        return np.concatenate(out), batch


_NOBODY: Generator = stream(0, "nobody draws")
