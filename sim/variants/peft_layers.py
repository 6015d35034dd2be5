"""What adapters add to one layer: sizes of their matrices, and the ops beside the product that they adapt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from sim.analytic.model import Attention, Layer, ModelShape
from sim.analytic.ops import Op
from sim.variants.layer_ops import tag_of

__all__ = ["HOMES", "TARGETS", "Beside", "biases", "lora_sizes", "total_biases"]

Count = Any
# The op that computes what a target adapts.
HOMES: Mapping[str, str] = MappingProxyType(
    {
        "q": "attn.qkv", "k": "attn.qkv", "v": "attn.qkv", "o": "attn.out",
        "gate": "mlp.up", "up": "mlp.up", "down": "mlp.down",
    }
)  # fmt: skip
TARGETS = tuple(HOMES)


def lora_sizes(layer: Layer, shape: ModelShape, target: str, key: str) -> tuple[int, int]:
    """(inputs, outputs) of the matrix that a target adapts. Raises ValueError for experts and gates that are not."""
    block, ffn, d = layer.attention, layer.ffn, shape.d_model
    if target in ("gate", "up", "down") and ffn.experts:
        raise ValueError(f"{key}: {target}: {shape.name} has experts, whose adapters are not modelled")
    if target == "gate" and not ffn.gated:
        raise ValueError(f"{key}: gate: {shape.name} has no gated feed-forward blocks")
    return {
        "q": (d, block.heads * block.head_dim),
        "k": (d, block.kv_heads * block.head_dim),
        "v": (d, block.kv_heads * block.value_dim),
        "o": (block.heads * block.value_dim, d),
        "gate": (d, ffn.width),
        "up": (d, ffn.width),
        "down": (ffn.width, d),
    }[target]


def biases(layer: Layer, shape: ModelShape) -> dict[str, int]:
    """Biases of one layer by op name, those of LayerNorms included."""
    block, ffn, d = layer.attention, layer.ffn, shape.d_model
    qkv = block.heads * block.head_dim + block.kv_heads * (block.head_dim + block.value_dim)
    norms = d if shape.norm_vectors == 2 else 0
    many = max(1, ffn.experts)
    return {
        "attn.qkv": qkv * block.qkv_bias,
        "attn.out": d * block.out_bias,
        "mlp.up": many * ffn.up_factor * ffn.width * ffn.bias,
        "mlp.down": many * d * ffn.bias,
        "norm.attn": norms,
        "norm.mlp": norms * (layer.norms > 1),
    }


def total_biases(shape: ModelShape) -> int:
    """Biases of all layers, of the final norm and of the embedding's norm."""
    layers = sum(sum(biases(layer, shape).values()) for layer in (*shape.layers, *shape.encoder))
    stacks = bool(shape.layers) + bool(shape.encoder)
    final = stacks * shape.final_norm * (shape.norm_vectors - 1) * shape.d_model
    return layers + final + sum(size // 2 for name, size in shape.extra if name == "norm.embed")


@dataclass(frozen=True)
class Beside:
    """Ops with the rows of ``op``, for ``distinct`` adapters; numbers of ``act_bytes`` bytes."""

    op: Op
    rows: Count
    distinct: Count
    act_bytes: float

    def lora(self, target: str, k: int, n: int, rank: int) -> list[Op]:
        """``lora.X.a`` [rows, k] @ [k, r] and ``lora.X.b`` [rows, r] @ [r, n], added to what is there."""
        down = self._product(f"lora.{target}.a", k, rank, k * rank, k + rank)
        return [down, self._product(f"lora.{target}.b", rank, n, rank * n, rank + 2 * n)]

    def adapter(self, place: str, d: int, m: int) -> list[Op]:
        """Down to m, a non-linearity, up to d and added."""
        down = self._product(f"adapter.{place}.down", d, m, d * m + m, d + m)
        name = f"{self._prefix}adapter.{place}.act"
        moved = self.rows * (2 * m) * self.act_bytes
        act = replace(
            self._bare(name), unit="vector", format="fp32", terms="elementwise", flops=4 * m * self.rows,
            activation_bytes=moved,
        )  # fmt: skip
        return [down, act, self._product(f"adapter.{place}.up", m, d, m * d + d, m + 2 * d)]

    def with_biases(self, numbers: int) -> Op:
        """The op with the biases of every adapter of the pass in place of one."""
        more = np.maximum(self.distinct - 1.0, 0.0) * (numbers * self.act_bytes)
        return replace(self.op, weight_bytes=self.op.weight_bytes + more) if numbers else self.op

    def prompt(self, block: Attention, tokens: int, kv_bytes: float) -> list[Op]:
        """Every row attends to ``tokens`` more; their keys and values are read once for each adapter."""
        pairs, kernel = tokens * self.rows, f"{tag_of(self.op)}/prompt"
        read = self.distinct * (tokens * block.kv_heads * kv_bytes)
        base = replace(self._bare(f"{self._prefix}prompt.scores"), kernel=kernel, unit="tensor", format=self.op.format)
        moved = self.rows * block.heads * self.act_bytes
        softmax = f"{self._prefix}prompt.softmax"
        return [
            replace(base, terms="decode_attention", flops=2 * block.heads * block.head_dim * pairs,
                    kv_read_bytes=read * block.head_dim, activation_bytes=moved * block.head_dim),
            replace(base, name=softmax, unit="vector", format="fp32", flops=5 * block.heads * pairs),
            replace(base, name=f"{self._prefix}prompt.values", flops=2 * block.heads * block.value_dim * pairs,
                    kv_read_bytes=read * block.value_dim, activation_bytes=moved * block.value_dim),
        ]  # fmt: skip

    @property
    def _prefix(self) -> str:
        return "encoder." if self.op.name.startswith("encoder.") else ""

    def _bare(self, name: str) -> Op:
        kernel = f"{tag_of(self.op)}/{name.removeprefix('encoder.')}"
        return Op(name, kernel, "tensor", self.op.format, "matmul", self.op.driver, self.op.layers)

    def _product(self, name: str, k: int, n: int, numbers: int, moved: int) -> Op:
        return replace(
            self._bare(self._prefix + name),
            flops=2 * k * n * self.rows,
            weight_bytes=self.distinct * (numbers * self.act_bytes),
            activation_bytes=self.rows * moved * self.act_bytes,
            inputs=self.rows * k,
            inner=k,
        )
