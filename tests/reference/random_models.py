"""Random weights for any shape, and safetensors files written by hand, for tests that need no other library."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from sim.analytic.model import Attention, Ffn, Layer, ModelShape
from sim.reference.config_file import Config
from sim.reference.families import describe
from sim.reference.numerics import Numerics, RelativeBias
from sim.reference.rope import Rope
from sim.reference.transformer import Transformer


def random_transformer(
    shape: ModelShape, seed: int = 0, dtype: Any = np.float64, kind: type[Transformer] = Transformer, **options: Any
) -> Transformer:
    """A model of ``shape`` with Gaussian weights (float64: results compare to 1e-9)."""
    rng = np.random.default_rng(seed)
    d = shape.d_model
    weights = {"embed": rng.normal(size=(shape.vocab, d)), "logits": rng.normal(size=(d, shape.vocab)) / d**0.5}
    for prefix, layers in (("", shape.layers), ("encoder.", shape.encoder)):
        if layers:
            weights |= _norm(f"{prefix}norm.final", shape, rng)
        for i, layer in enumerate(layers):
            weights |= _layer(f"{prefix}layers.{i}.", shape, layer, rng)
        if shape.encoder:
            weights[f"{prefix}relative"] = rng.normal(size=(8, layers[0].attention.heads))
    first = (*shape.layers, *shape.encoder)[0].attention
    numerics = Numerics(
        rope=Rope(first.head_dim) if first.rope else None,
        relative=RelativeBias(8, 20) if shape.encoder else None,
        post_norms=shape.layers[0].norms == 4,
        **options,
    )
    return kind(shape, numerics, {k: np.asarray(v, dtype) for k, v in weights.items()})


def _layer(key: str, shape: ModelShape, layer: Layer, rng: np.random.Generator) -> dict[str, Any]:
    d, ffn, kind = shape.d_model, layer.ffn, layer.attention
    weights = {}
    names = ["norm.attn", "norm.mlp"] + (["norm.post_attn", "norm.post_mlp"] if layer.norms == 4 else [])
    for name in names + (["norm.cross"] if layer.cross else []):
        weights |= _norm(key + name, shape, rng)
    kv = kind.kv_heads * (kind.head_dim + kind.value_dim)
    q, mixed = kind.heads * kind.head_dim, kind.heads * kind.value_dim
    weights |= _matrix(f"{key}attn.qkv", d, q + kv, kind.qkv_bias, rng)
    weights |= _matrix(f"{key}attn.out", mixed, d, kind.out_bias, rng)
    if kind.qk_norm:
        weights |= {f"{key}attn.{n}_norm": 1 + rng.normal(size=kind.qk_norm) / 4 for n in "qk"}
    if layer.cross:
        weights |= _matrix(f"{key}cross.q", d, q, False, rng)
        weights |= _matrix(f"{key}cross.kv", d, kv, False, rng)
        weights |= _matrix(f"{key}cross.out", mixed, d, False, rng)
    wide = ffn.width * ffn.up_factor
    if ffn.experts:
        weights |= _matrix(f"{key}moe.router", d, ffn.experts, False, rng)
        weights[f"{key}moe.up"] = rng.normal(size=(ffn.experts, d, wide)) / d**0.5
        weights[f"{key}moe.down"] = rng.normal(size=(ffn.experts, ffn.width, d)) / ffn.width**0.5
        return weights
    weights |= _matrix(f"{key}mlp.up", d, wide, ffn.bias, rng)
    return weights | _matrix(f"{key}mlp.down", ffn.width, d, ffn.bias, rng)


def _matrix(key: str, rows: int, columns: int, bias: bool, rng: np.random.Generator) -> dict[str, Any]:
    out = {key: rng.normal(size=(rows, columns)) / rows**0.5}
    return out | ({f"{key}.bias": rng.normal(size=columns)} if bias else {})


def _norm(key: str, shape: ModelShape, rng: np.random.Generator) -> dict[str, Any]:
    out = {key: 1 + rng.normal(size=shape.d_model) / 4}
    return out | ({f"{key}.bias": rng.normal(size=shape.d_model) / 4} if shape.norm_vectors == 2 else {})


def small_shape(window: int | None = None, *, layers: int = 2, experts: int = 0, **attention: Any) -> ModelShape:
    """A decoder of two layers, grouped heads, values as wide as keys."""
    kind = Attention(**{"heads": 4, "kv_heads": 2, "head_dim": 6, "value_dim": 6, "window": window, **attention})
    ffn = Ffn(10, experts=experts, experts_per_token=2 if experts else 0)
    return ModelShape("small", 16, 31, (Layer(kind, ffn),) * layers)


LLAMA = {
    "model_type": "llama", "vocab_size": 11, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-6,
}  # fmt: skip


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], edit: Any = None) -> None:
    """Write float32 (or byte) tensors by the format's own description; ``edit(header)`` may spoil the header."""
    header: dict[str, Any] = {}
    at = 0
    for name, array in tensors.items():
        kind = "U8" if array.dtype == np.uint8 else "F32"
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    if edit:
        edit(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(a.tobytes() for a in tensors.values()))


def checkpoint_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random tensors under the names and shapes that a configuration asks for."""
    rng = np.random.default_rng(seed)
    sources = describe(Config("config.json", config)).sources.values()
    parts = [part for source in sources if not source.optional for part in source.parts]
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in parts}


def write_checkpoint(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray] | None = None) -> None:
    """A model folder: config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", checkpoint_tensors(config) if tensors is None else tensors)
