"""The twin of ``sim/variants/pruning.py``: rows and columns of real weights cut away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.analytic.model import Attention
from sim.reference.transformer import Transformer
from sim.reference.variants.layer_choice import kept_layers

Array = NDArray[Any]


def twin(
    model: Transformer,
    *,
    layers: Sequence[int] | None = None,
    d_model: int | None = None,
    heads: Sequence[int] | None = None,
    ffn: Sequence[int] | None = None,
) -> Transformer:
    """What is left of a decoder: the ``layers`` named, then query heads and hidden units by kept layer, then width.

    Which heads, units and dimensions go is magnitude's choice: those with the largest products of norms stay. The meter
    is shared.
    """
    model = model if layers is None else kept_layers(model, layers)
    for i in range(len(model.shape.layers)):
        model = model if heads is None else _fewer_heads(model, i, heads[i])
        model = model if ffn is None else _fewer_units(model, i, ffn[i])
    return model if d_model is None else _narrower(model, d_model)


def zeroed(model: Transformer, share: float) -> Transformer:
    """Unstructured pruning: the ``share`` smallest weights of every layer matrix set to zero, shapes as they were."""
    weights = dict(model.weights)
    for key, w in model.weights.items():
        if key.startswith("layers.") and w.ndim == 2:
            weights[key] = np.where(np.abs(w) < np.quantile(np.abs(w), share), w.dtype.type(0), w)
    return replace(model, weights=weights)


def _fewer_heads(model: Transformer, i: int, heads: int) -> Transformer:
    """Whole groups of query heads, each with its key/value head."""
    kind, key = model.shape.layers[i].attention, f"layers.{i}."
    group = kind.heads // kind.kv_heads
    width = group * kind.value_dim
    sizes = np.linalg.norm(model.weights[f"{key}attn.out"].reshape(kind.kv_heads, -1), axis=1)
    kept = np.sort(np.argsort(-sizes)[: heads // group])
    columns = _group_columns(kind, kept)
    changed = {
        f"{key}attn.qkv": model.weights[f"{key}attn.qkv"][:, columns],
        f"{key}attn.out": model.weights[f"{key}attn.out"]
        .reshape(kind.kv_heads, width, -1)[kept]
        .reshape(len(kept) * width, -1),
    }
    if f"{key}attn.qkv.bias" in model.weights:
        changed[f"{key}attn.qkv.bias"] = model.weights[f"{key}attn.qkv.bias"][columns]
    return _with_layer(model, i, changed, attention=replace(kind, heads=heads, kv_heads=len(kept)))


def _group_columns(kind: Attention, kept: NDArray[np.int64]) -> NDArray[np.int64]:
    """Columns of the joint projection (queries, keys, values) that belong to these key/value heads."""
    group = kind.heads // kind.kv_heads
    parts, start = [], 0
    for width in (group * kind.head_dim, kind.head_dim, kind.value_dim):
        columns = start + np.arange(kind.kv_heads * width).reshape(kind.kv_heads, width)
        parts.append(columns[kept].ravel())
        start += kind.kv_heads * width
    return np.concatenate(parts)


def _fewer_units(model: Transformer, i: int, width: int) -> Transformer:
    ffn, key = model.shape.layers[i].ffn, f"layers.{i}."
    down, up = model.weights[f"{key}mlp.down"], model.weights[f"{key}mlp.up"]
    halves = up.reshape(up.shape[0], ffn.up_factor, ffn.width)
    sizes = np.linalg.norm(down, axis=1) * np.linalg.norm(halves, axis=0).prod(axis=0)
    kept = np.sort(np.argsort(-sizes)[:width])
    changed = {f"{key}mlp.down": down[kept], f"{key}mlp.up": halves[:, :, kept].reshape(up.shape[0], -1)}
    if f"{key}mlp.up.bias" in model.weights:
        bias = model.weights[f"{key}mlp.up.bias"].reshape(ffn.up_factor, ffn.width)
        changed[f"{key}mlp.up.bias"] = bias[:, kept].ravel()
    return _with_layer(model, i, changed, ffn=replace(ffn, width=width))


def _with_layer(model: Transformer, i: int, changed: Mapping[str, Array], **parts: Any) -> Transformer:
    layers = list(model.shape.layers)
    layers[i] = replace(layers[i], **parts)
    return replace(model, shape=replace(model.shape, layers=tuple(layers)), weights={**model.weights, **changed})


def _narrower(model: Transformer, d_model: int) -> Transformer:
    """The dimensions of the residual stream with the largest embeddings, cut out of every matrix that touches it."""
    kept = np.sort(np.argsort(-np.linalg.norm(model.weights["embed"], axis=0))[:d_model])
    weights = {key: _cut(key, w, kept) for key, w in model.weights.items()}
    return replace(model, shape=replace(model.shape, d_model=d_model), weights=weights)


OUTPUTS = ("embed", "attn.out", "mlp.down", "attn.out.bias", "mlp.down.bias")
INPUTS = ("attn.qkv", "mlp.up", "logits")


def _cut(key: str, w: Array, kept: NDArray[np.int64]) -> Array:
    """The last axis of what writes the stream (norms too), the first one of what reads it."""
    op = key.split(".", 2)[2] if key.startswith("layers.") else key
    if op in INPUTS:
        return w[kept]
    return w[..., kept] if op in OUTPUTS or op.startswith("norm.") else w
