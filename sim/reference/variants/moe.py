"""Routing that is watched: which experts each token chose, and buffers of fixed capacity that are really multiplied.

GShard (arXiv 2006.16668, section 2.2): every expert runs on ``ceil(capacity * n * k / E)`` rows; first choices are
seated first, in order of tokens, and a choice that finds its expert full adds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.reference.meter import Meter
from sim.reference.numerics import softmax
from sim.reference.transformer import Transformer

Array = NDArray[Any]
Choices = NDArray[np.int64]  # [tokens, k]


@dataclass
class RoutedMoe(Transformer):
    """A model that notes ``choices`` (by layer, one array a pass) and what it ``dropped``.

    ``capacity``: capacity factor; None: every expert runs on the rows that chose it.
    """

    capacity: float | None = None
    choices: dict[int, list[Choices]] = field(default_factory=dict)
    dropped: int = 0

    @staticmethod
    def of(model: Transformer, capacity: float | None = None) -> RoutedMoe:
        """The same model, watched."""
        return RoutedMoe(model.shape, model.numerics, model.weights, Meter(), model.exact, capacity)

    def moe(self, i: int, x: Array) -> Array:
        """Top-k routing of layer i, [tokens, d] -> [tokens, d]."""
        ffn, key = self.shape.layers[i].ffn, f"layers.{i}."
        scores = softmax(self.linear("moe.router", key, x))
        chosen = np.argsort(-scores, axis=-1, kind="stable")[:, : ffn.experts_per_token]
        self.choices.setdefault(i, []).append(chosen)
        share = np.take_along_axis(scores, chosen, axis=-1)
        if self.numerics.router_renormalise:
            share /= share.sum(axis=-1, keepdims=True)
        each = self._rows_of_expert(ffn.experts, chosen)
        rows = _seats(chosen, ffn.experts, each)
        parts = np.zeros((*chosen.shape, x.shape[1]), self.dtype)
        for expert in range(ffn.experts):
            tokens, ranks = rows[expert]
            buffer = self._buffer(x[tokens], each)
            if len(buffer):
                parts[tokens, ranks] = self.expert(key, ffn, expert, buffer)[: len(tokens)]
        self.dropped += chosen.size - sum(len(tokens) for tokens, _ in rows)
        return np.asarray((parts * share[..., None]).sum(axis=1))

    def _rows_of_expert(self, experts: int, chosen: Choices) -> int | None:
        return None if self.capacity is None else ceil(self.capacity * chosen.size / experts - 1e-9)

    def _buffer(self, x: Array, rows: int | None) -> Array:
        return x if rows is None else np.concatenate([x, np.zeros((rows - len(x), x.shape[1]), x.dtype)])


def _seats(chosen: Choices, experts: int, rows: int | None) -> list[tuple[Array, Array]]:
    """(tokens, ranks) that each expert runs, first choices first."""
    out = []
    for expert in range(experts):
        ranks, tokens = np.nonzero(np.equal(chosen.T, expert))
        out.append((tokens[:rows], ranks[:rows]))
    return out


def popularity(choices: Sequence[Choices], experts: int) -> Array:
    """Share of tokens that chose each expert, [E]; it adds up to k."""
    every = np.concatenate(choices)
    return np.asarray(np.bincount(every.ravel(), minlength=experts) / len(every))


def visited(choices: Sequence[Choices]) -> list[int]:
    """Experts that each pass visited."""
    return [len(np.unique(one)) for one in choices]
