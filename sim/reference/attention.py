"""Scaled dot-product attention over grouped heads (GQA, arXiv 2305.13245), counted: no loop over heads or queries."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.reference.meter import Meter
from sim.reference.numerics import cap, softmax

Array = NDArray[Any]


def attend(
    meter: Meter,
    op: str,
    q: Array,
    k: Array,
    v: Array,
    *,
    pairs: int,
    cached: int,
    visible: NDArray[np.bool_] | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    bias: Array | None = None,
) -> Array:
    """Attend queries [b, n, Hq, dh] to keys [b, Hkv, L, dh] and values [b, Hkv, L, dv] -> [b, n, Hq * dv].

    ``visible`` [b, n, L] (None: everything); ``bias`` [b, Hq, n, L] is added to the scores. Counts ``op.scores``,
    ``op.softmax`` and ``op.values``: ``pairs`` attended pairs are live, the rest of the rectangle is masked work;
    ``cached`` tokens of keys and values count as read. The scores are written out (standard attention).
    """
    b, n, heads, dim = q.shape
    groups, length, value_dim = k.shape[1], k.shape[2], v.shape[3]
    wasted = heads * (b * n * length - pairs)
    grouped = (q * q.dtype.type(dim**-0.5 if scale is None else scale)).reshape(b, n, groups, heads // groups, dim)
    grouped = grouped.transpose(0, 2, 3, 1, 4).reshape(b, groups, -1, dim)  # [b, Hkv, g * n, dh]
    scores = meter.matmul(
        f"{op}.scores",
        grouped,
        k.swapaxes(-1, -2),
        masked=2 * dim * wasted,
        kv=cached * groups * dim * k.itemsize,
        activations=q.nbytes,
    )  # [b, Hkv, g * n, dh] @ [b, Hkv, dh, L] -> [b, Hkv, g * n, L]
    live = heads * pairs
    meter.add(f"{op}.softmax", flops=5 * live, masked=5 * wasted, activations=4 * live * scores.itemsize)
    weights = _weights(scores, (b, heads, n, length), visible, soft_cap, bias)
    mixed = meter.matmul(
        f"{op}.values",
        weights.reshape(scores.shape),
        v,
        masked=2 * value_dim * wasted,
        kv=cached * groups * value_dim * v.itemsize,
        activations=b * n * heads * value_dim * v.itemsize,
    )  # [b, Hkv, g * n, L] @ [b, Hkv, L, dv] -> [b, Hkv, g * n, dv]
    return mixed.reshape(b, heads, n, value_dim).swapaxes(1, 2).reshape(b, n, heads * value_dim)


def _weights(
    scores: Array,
    shape: tuple[int, int, int, int],
    visible: NDArray[np.bool_] | None,
    soft_cap: float | None,
    bias: Array | None,
) -> Array:
    """Capped, biased, masked and normalised scores, [b, Hq, n, L]."""
    out = cap(scores.reshape(shape), soft_cap)
    if bias is not None:
        out += bias
    if visible is not None:
        np.copyto(out, -np.inf, where=~visible[:, None])
    return softmax(out)


def relative_buckets(distances: Array, buckets: int, max_distance: int, both_ways: bool) -> Array:
    """T5's bucket of each distance (key less query position): exact when near, logarithmic when far.

    ``both_ways`` (an encoder) spends half of the buckets on keys ahead. Source: arXiv 1910.10683, section 2.1.
    """
    ahead = np.zeros_like(distances)
    if both_ways:
        buckets //= 2
        ahead = (distances > 0) * buckets
        distances = np.abs(distances)
    else:
        distances = -np.minimum(distances, 0)
    exact = buckets // 2
    ratio = np.log(np.maximum(distances, 1).astype(np.float32) / np.float32(exact))
    far = exact + (ratio / np.float32(math.log(max_distance / exact)) * (buckets - exact)).astype(np.int64)
    out: Array = ahead + np.where(distances < exact, distances, np.minimum(far, buckets - 1))
    return out
