"""Products in real int8 arithmetic, and channels that make it fail: why LLM.int8() and SmoothQuant exist.

W8A8 with one scale a token and one a column ("vector-wise", LLM.int8(), arXiv 2208.07339, section 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sim.reference.meter import Meter
from sim.reference.transformer import Transformer

Array = NDArray[Any]
Method = Literal["vector-wise", "decomposed", "smoothed"]
OUTLIER = 6.0
"""An activation channel counts as outlying from this magnitude on (arXiv 2208.07339, section 3)."""


def quantised(x: Array, axis: int) -> tuple[Array, Array]:
    """Symmetric absmax rounding to -127..127 with one scale along ``axis``: (integers as float64, scales)."""
    scale = np.maximum(np.abs(x).max(axis=axis, keepdims=True), 1e-12) / 127.0
    return np.round(x / scale).astype(np.float64), scale.astype(np.float64)


def product(x: Array, w: Array) -> Array:
    """``[m, in] @ [in, out] -> [m, out]`` in int8: integer sums, exact in float64, rescaled once at the end."""
    xi, xs = quantised(x, axis=1)  # [m, in], [m, 1]
    wi, ws = quantised(w, axis=0)  # [in, out], [1, out]
    return np.asarray(xi @ wi * xs * ws)


def decomposed_product(x: Array, w: Array) -> Array:
    """LLM.int8(): channels where any |x| reaches 6 are multiplied in full precision, the others in int8."""
    out = np.abs(x).max(axis=0) >= OUTLIER
    return np.asarray(product(x[:, ~out], w[~out]) + x[:, out].astype(np.float64) @ w[out])


def smoothed_product(x: Array, w: Array, alpha: float = 0.5) -> Array:
    """SmoothQuant (arXiv 2211.10438, equation 4): channel j of x is divided by ``max|x_j|^a / max|w_j|^(1-a)``, row j
    of w multiplied by it, then int8. Scales come from x itself.
    """
    x_max, w_max = (np.maximum(np.abs(a).max(axis=axis), 1e-5) for a, axis in ((x, 0), (w, 1)))
    scale = x_max**alpha / w_max ** (1 - alpha)
    return product(x / scale, w * scale[:, None])


PRODUCTS = {"vector-wise": product, "decomposed": decomposed_product, "smoothed": smoothed_product}


@dataclass
class Int8(Transformer):
    """A model whose layer products run in int8 by ``method``; embedding, norms, attention and head stay as they are."""

    method: Method = "vector-wise"

    @staticmethod
    def of(model: Transformer, method: Method) -> Int8:
        """The same weights, multiplied in int8."""
        return Int8(model.shape, model.numerics, model.weights, Meter(), model.exact, method)

    def linear(self, op: str, key: str, x: Array) -> Array:
        """A layer's product in int8, [m, in] -> [m, out]."""
        if not key:  # the head
            return super().linear(op, key, x)
        out = PRODUCTS[self.method](x, self.weights[key + op]).astype(self.dtype)
        bias = self.weights.get(f"{key}{op}.bias")
        return out if bias is None else out + bias


def with_outliers(model: Transformer, channels: Sequence[int], factor: float) -> Transformer:
    """The same function of tokens, but with FFN and attention inputs ``factor`` times larger in some channels.

    Each norm's gain is multiplied there, the rows of the matrix that follows divided: exact arithmetic sees no
    difference, rounding with one scale a token does. This is how outliers sit in trained models of billions of
    parameters (arXiv 2208.07339, section 4); a model of a few million has none, so they are injected.
    """
    weights = dict(model.weights)
    for i in range(len(model.shape.layers)):
        for norm, matrix in (("norm.attn", "attn.qkv"), ("norm.mlp", "mlp.up")):
            gain, rows = weights[f"layers.{i}.{norm}"].copy(), weights[f"layers.{i}.{matrix}"].copy()
            gain[list(channels)] *= factor
            rows[list(channels)] /= factor
            weights[f"layers.{i}.{norm}"], weights[f"layers.{i}.{matrix}"] = gain, rows
    return replace(model, weights=weights, meter=Meter())
