"""Heads on the target's last state: Medusa's, all depths at once, and Hydra's, one depth after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sim.reference.decoding import Tokens
from sim.reference.meter import Meter
from sim.reference.numerics import rms_norm, silu
from sim.reference.safetensors_file import read_index
from sim.reference.sampling import softmax, stream
from sim.reference.twins._tree import Array, Context, Draft, Shape, children_of

if TYPE_CHECKING:
    from sim.reference.transformer import Transformer


@dataclass(frozen=True)
class HeadWeights:
    """Heads on a target's normed state h [d]: ``logits_k = V_k norm(R_k h + SiLU(W_k x_k))``, x_k = h for Medusa.

    ``inner`` W_k [k d, d], ``residual`` R_k [d, d] (empty: the identity), ``logits`` V_k [d, V] (empty: the target's,
    in one product), ``gain`` of the norm [d] (None: no norm).
    """

    inner: tuple[Array, ...]
    residual: tuple[Array, ...] = ()
    logits: tuple[Array, ...] = ()
    gain: Array | None = None

    @classmethod
    def load(cls, folder: Path, target: Transformer) -> HeadWeights:
        """The trained heads of the shipped family (sim/reference/family/medusa), tied to the target's embedding."""
        stored = read_index(folder)
        count = sum(name.endswith("inner.weight") for name in stored)
        inner, residual = (
            tuple(np.array(stored[f"heads.{k}.{part}.weight"].read(), target.dtype).T for k in range(count))
            for part in ("inner", "residual")
        )
        return cls(inner, residual, (), target.weights["norm.final"])

    @classmethod
    def untrained(
        cls, target: Transformer, count: int, seed: int = 0, *, wide: bool = False, own: bool = True
    ) -> HeadWeights:
        """Gaussian heads; ``wide``: head k reads k + 1 embeddings too (Hydra); ``own``: a vocabulary each."""
        luck, d, v = stream(seed, "heads"), target.shape.d_model, target.shape.vocab
        widths = [(2 + k) * d if wide else d for k in range(count)]
        inner = tuple((luck.normal(size=(w, d)) / w**0.5).astype(target.dtype) for w in widths)
        logits = (luck.normal(size=(d, v)) / d**0.5 for _ in range(count if own else 0))
        return cls(inner, (), tuple(m.astype(target.dtype) for m in logits))

    def hidden(self, k: int, h: Array, x: Array, meter: Meter, eps: float) -> Array:
        """What head k multiplies by its vocabulary, [m, d] and [m, ...] -> [m, d]."""
        out = meter.linear("heads.hidden", h, self.residual[k]) if self.residual else h
        out = out + silu(meter.linear("heads.hidden", x, self.inner[k]))
        meter.add("heads.act", flops=5 * out.size, activations=3 * out.nbytes)
        if self.gain is None:
            return out
        meter.add("heads.norm", flops=4 * out.size, weights=self.gain.nbytes, activations=2 * out.nbytes)
        return rms_norm(out, self.gain, eps)


class HeadTree:
    """Medusa: every head reads the state of the last accepted token; a node's token depends on its rank alone."""

    def __init__(self, target: Transformer, weights: HeadWeights, shape: Shape, way: str) -> None:
        """Raise ValueError for a tree deeper than there are heads, or for a way that needs children to be drawn."""
        if shape.depth > len(weights.inner):
            said = f"tree is {shape.depth} deep; allowed: at most the {len(weights.inner)} heads"
            raise ValueError(f"policy tree: {said}")
        if way not in ("greedy", "typical"):
            raise ValueError(f"policy tree: verification is {way!r}; allowed with heads: greedy, typical")
        self.target, self.weights, self.shape = target, weights, shape
        self.layers: tuple[int, ...] = (len(target.shape.layers),)
        self.states: dict[int, Array] = {}

    def prefill(self, prompts: Sequence[Tokens], states: Sequence[Array]) -> None:
        """Remember the last state of each prompt."""
        for sequence, one in enumerate(states):
            self.states[sequence] = one[-1, 0]

    def settle(self, sequence: int, context: Context, path: Sequence[int], states: Array) -> None:
        """Remember the state of the last accepted token."""
        self.states[sequence] = states[-1, 0]

    def propose(self, contexts: Sequence[Context], active: Sequence[int]) -> list[Draft]:
        """One pass of all heads over one state a sequence."""
        h = self._normed(active)
        with self.target.meter.prefix("draft."):
            eps = self.target.numerics.eps
            out = [self.weights.hidden(k, h, h, self.target.meter, eps) for k in range(len(self.weights.inner))]
            soft = self._soft(out)  # [heads, b, V]
        ranks = np.argsort(-soft, axis=-1, kind="stable")
        return [Draft(tuple(int(ranks[len(p) - 1, i, p[-1]]) for p in self.shape.paths)) for i in range(len(active))]

    def _normed(self, active: Sequence[int]) -> Array:
        """The states as the target's own head sees them; it has paid for the norm."""
        h = np.stack([self.states[s] for s in active])
        return rms_norm(h, self.target.weights["norm.final"], self.target.numerics.eps)

    def _soft(self, hidden: Sequence[Array]) -> Array:
        meter, own = self.target.meter, self.weights.logits
        if own:
            logits = np.stack([meter.linear("heads.logits", x, w) for x, w in zip(hidden, own, strict=True)])
        else:
            rows = meter.linear("heads.logits", np.concatenate(hidden), self.target.weights["logits"])
            logits = rows.reshape(len(hidden), len(hidden[0]), -1)
        meter.sample(logits)
        return softmax(logits)


class HydraTree(HeadTree):
    """Hydra: head k reads the state, the root and the k tokens of a path, for every node at depth k with children."""

    def propose(self, contexts: Sequence[Context], active: Sequence[int]) -> list[Draft]:
        """A pass of one head a depth. The gather of embeddings is neglected, as the simulator does."""
        h, embed, shape = self._normed(active), self.target.weights["embed"], self.shape
        tokens = np.zeros((len(active), len(shape.depths)), np.int64)
        tokens[:, 0] = [contexts[s][-1] for s in active]
        with self.target.meter.prefix("draft."):
            for depth in range(shape.depth):
                rows = shape.rows_at(depth, inner=True)
                lines = [_line(shape.mask.parents, row) for row in rows]
                x = embed[tokens[:, lines]].reshape(len(active) * len(rows), -1)
                wide = np.repeat(h, len(rows), axis=0)
                self._choose(depth, rows, wide, np.concatenate([wide, x], axis=1), tokens)
        return [Draft(tuple(map(int, of_one[1:]))) for of_one in tokens]

    def _choose(self, depth: int, rows: Sequence[int], h: Array, x: Array, tokens: Tokens) -> None:
        meter = self.target.meter
        out = self.weights.hidden(depth, h, x, meter, self.target.numerics.eps)
        own = self.weights.logits
        logits = meter.linear("heads.logits", out, own[depth] if own else self.target.weights["logits"])
        meter.sample(logits)
        soft = softmax(logits).reshape(len(tokens), len(rows), -1)
        for i, of_one in enumerate(soft):
            for row, one in zip(rows, of_one, strict=True):
                children = self.shape.children[row]
                tokens[i, list(children)] = children_of(one, len(children), "greedy", stream(0, "none"))


def _line(parents: Sequence[int], row: int) -> list[int]:
    """Rows from the root to ``row``."""
    line = [row]
    while line[-1]:
        line.append(parents[line[-1]])
    return line[::-1]
