"""The twin of ``sim/variants/kv_sharing.py``: a trained or random model with other key/value heads, for real.

Fewer heads are means of those they replace (arXiv 2305.13245, section 2.1), more heads are copies, which change
nothing. A latent (arXiv 2405.04434, section 2.1) is the best approximation of the joint key and value matrix by rank.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.analytic.model import Attention, Latent, Layer
from sim.reference.latent import LatentTransformer
from sim.reference.transformer import Transformer

Array = NDArray[Any]


def twin(model: Transformer, kv_heads: int) -> Transformer:
    """The decoder with ``kv_heads`` key/value heads in each layer; the meter is shared.

    Raises ValueError unless old or new count divides the other, and the new one the query heads.
    """
    weights, layers = dict(model.weights), []
    for i, layer in enumerate(model.shape.layers):
        kind = layer.attention
        if kind.heads % kv_heads or max(kv_heads, kind.kv_heads) % min(kv_heads, kind.kv_heads):
            raise ValueError(f"kv_heads: {kv_heads} not allowed for {kind.heads} heads and {kind.kv_heads} KV heads")
        for key in (f"layers.{i}.attn.qkv", f"layers.{i}.attn.qkv.bias"):
            if key in weights:
                weights[key] = _shared(weights[key], kind, kv_heads)
        layers.append(replace(layer, attention=replace(kind, kv_heads=kv_heads)))
    return replace(model, shape=replace(model.shape, layers=tuple(layers)), weights=weights)


def _shared(w: Array, kind: Attention, kv_heads: int) -> Array:
    """[..., q + k + v] -> the same with ``kv_heads`` heads of keys and of values."""
    queries, keys = kind.heads * kind.head_dim, kind.kv_heads * kind.head_dim
    q, k, v = np.split(w, [queries, queries + keys], axis=-1)
    return np.concatenate([q, _merged(k, kind.kv_heads, kv_heads), _merged(v, kind.kv_heads, kv_heads)], axis=-1)


def _merged(w: Array, old: int, new: int) -> Array:
    heads = w.reshape(*w.shape[:-1], old, -1)
    if new >= old:
        return np.repeat(heads, new // old, axis=-2).reshape(*w.shape[:-1], -1)
    means: Array = heads.reshape(*w.shape[:-1], new, old // new, heads.shape[-1]).mean(axis=-2)
    return means.reshape(*w.shape[:-1], -1)


def latent_twin(model: Transformer, rank: int) -> LatentTransformer:
    """A decoder without RoPE, biases and norms on keys whose keys and values come from a latent of ``rank`` numbers.

    With the full rank the logits stay; the latent's norm is left out, as its gain would have to be trained. Raises
    ValueError for other models.
    """
    weights, layers = dict(model.weights), []
    for i, layer in enumerate(model.shape.layers):
        kind = layer.attention
        if kind.rope or kind.qkv_bias or kind.qk_norm:
            raise ValueError(f"{model.shape.name}: only plain keys without rotation have an exact latent")
        q, down, up = _factors(weights.pop(f"layers.{i}.attn.qkv"), kind, rank)
        weights |= {f"layers.{i}.attn.q": q, f"layers.{i}.attn.kv_down": down, f"layers.{i}.attn.kv_up": up}
        layers.append(_latent_layer(layer, rank))
    shape = replace(model.shape, layers=tuple(layers))
    return LatentTransformer(shape, model.numerics, weights, model.meter, model.exact)


def _latent_layer(layer: Layer, rank: int) -> Layer:
    kind = layer.attention
    return replace(layer, attention=replace(kind, kv_heads=kind.heads, latent=Latent(None, rank, 0, kind.head_dim)))


def _factors(w: Array, kind: Attention, rank: int) -> tuple[Array, Array, Array]:
    """(queries [d, Hq*dh], down [d, rank], up [rank, Hq*(dh+dv)]), keys and values repeated for each query head."""
    queries, keys = kind.heads * kind.head_dim, kind.kv_heads * kind.head_dim
    q, k, v = np.split(w, [queries, queries + keys], axis=-1)
    heads = [_merged(x, kind.kv_heads, kind.heads).reshape(len(w), kind.heads, -1) for x in (k, v)]
    joint = np.concatenate(heads, axis=-1).reshape(len(w), -1).astype(np.float64)
    u, s, vt = np.linalg.svd(joint, full_matrices=False)
    root = np.sqrt(s[:rank])
    down, up = u[:, :rank] * root, root[:, None] * vt[:rank]
    missing = rank - len(s[:rank])
    down, up = np.pad(down, ((0, 0), (0, missing))), np.pad(up, ((0, missing), (0, 0)))
    return np.ascontiguousarray(q), down.astype(w.dtype), up.astype(w.dtype)
