"""The twin of ``sim/variants/token_routing.py``: each token goes through as many nested bands as its router says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.reference.transformer import Transformer

Array = NDArray[Any]


@dataclass
class Routed(Transformer):
    """A model whose dense FFNs are cut into nested bands at ``edges`` (hidden units, rising).

    Router weights are ``layers.{i}.mlp.router`` [d, bands]; the largest score is the token's number of bands less one.
    ``reached`` counts tokens by (layer, band) and ``visited`` passes in which a band ran.
    """

    edges: tuple[int, ...] = ()
    reached: Counter[tuple[int, int]] = field(default_factory=Counter)
    visited: Counter[tuple[int, int]] = field(default_factory=Counter)

    def ffn(self, i: int, x: Array, prefix: str = "") -> Array:
        """Band after band on the tokens that go so far, [tokens, d] -> [tokens, d]."""
        key = f"{prefix}layers.{i}."
        levels = self.linear("mlp.router", key, x).argmax(axis=-1)
        out = np.zeros_like(x)
        for band, (low, high) in enumerate(zip((0, *self.edges), self.edges, strict=False)):
            rows = np.flatnonzero(levels >= band)
            if len(rows):
                self.reached[i, band] += len(rows)
                self.visited[i, band] += 1
                out[rows] += self._band(i, key, x[rows], low, high)
        return out

    def _band(self, i: int, key: str, x: Array, low: int, high: int) -> Array:
        """Hidden units ``low`` to ``high`` on some tokens, [m, d] -> [m, d]."""
        ffn = self.shape.layers[i].ffn
        gates = np.split(self.weights[f"{key}mlp.up"].T, ffn.up_factor)
        up = np.concatenate([part[low:high] for part in gates]).T
        hidden = self.activate("mlp.act", ffn, self.meter.linear("mlp.up", x, up, exact=self.exact))
        down = self.weights[f"{key}mlp.down"][low:high]
        return self.meter.linear("mlp.down", hidden, down, exact=self.exact)


def twin(model: Transformer, edges: Sequence[int], routers: Mapping[int, Array]) -> Routed:
    """``model`` with a router [d, bands] for each layer. The meter is shared."""
    weights = {**model.weights, **{f"layers.{i}.mlp.router": router for i, router in routers.items()}}
    own = {f.name: getattr(model, f.name) for f in fields(Transformer)}
    return Routed(**{**own, "weights": weights}, edges=tuple(edges))
