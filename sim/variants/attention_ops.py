"""The ops that kinds of attention add to a pass, each written from an op that is there already."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sim.analytic.model import Attention
from sim.analytic.ops import Op
from sim.variants.layer_ops import tag_of

__all__ = ["Features", "hashing", "projection", "spilled", "stateful"]

Count = Any
EXP_FLOPS = 2  # an exponential and the factor before it, or elu and the one added


def spilled(op: Op, block: Attention, pairs: Count, reads: Count, act_bytes: float, kv_bytes: float) -> Op:
    """An attention op in a kernel of its own: scores go through memory four times, K and V are read once."""
    kind = op.name.rpartition(".")[2]
    half = op.driver if isinstance(op.driver, str) else op.driver[0]
    width = {"scores": block.head_dim, "values": block.value_dim}.get(kind, 0) * block.kv_heads
    moved = 4 * block.heads * pairs * act_bytes if kind == "softmax" else op.activation_bytes
    kernel = f"{tag_of(op)}/{op.name}.{half}"
    return replace(op, kernel=kernel, kv_read_bytes=reads * (width * kv_bytes), activation_bytes=moved)


def projection(
    op: Op, block: Attention, tokens: Count, rank: int, longest: int, weight_bytes: float, act_bytes: float
) -> Op:
    """[rank, n] @ [n, width] for keys and values; the two matrices [rank, longest] are shared by the heads."""
    width = block.kv_heads * (block.head_dim + block.value_dim)
    return _beside(
        op,
        "project",
        "tensor",
        flops=2 * rank * width * tokens,
        weight_bytes=2 * rank * longest * weight_bytes * (np.asarray(tokens) > 0),
        activation_bytes=tokens * width * act_bytes,
    )


def hashing(op: Op, block: Attention, tokens: Count, directions: int, act_bytes: float) -> Op:
    """Queries and keys on random directions; sorting is left out."""
    width = (block.heads + block.kv_heads) * block.head_dim
    return _beside(
        op, "hash", "tensor", flops=2 * directions * width * tokens, activation_bytes=tokens * width * act_bytes
    )


def stateful(op: Op, state_bytes: Count) -> Op:
    """The states of all sequences, read before the pass and written after it."""
    half = op.driver[0]
    return Op(
        "attn.state", f"{tag_of(op)}/attn.state.{half}", "none", "fp32", op.terms, op.driver, op.layers,
        kv_read_bytes=state_bytes, kv_write_bytes=state_bytes,
    )  # fmt: skip


@dataclass(frozen=True)
class Features:
    """Linear attention of one block: phi(x) of ``width`` numbers; ``random``: a product with a random matrix first."""

    block: Attention
    width: int
    random: bool
    act_bytes: float

    def mapped_and_summed(self, qkv: Op, rows: Count, weight_bytes: float) -> list[Op]:
        """``attn.features``, then ``attn.linear``: the state updated and asked for every token."""
        b, f = self.block, self.width
        heads = b.heads + b.kv_heads
        mapped = rows * (2 * heads * f) * self.act_bytes
        features = _beside(qkv, "features", "vector", flops=EXP_FLOPS * heads * f * rows, activation_bytes=mapped)
        per_head = f * (b.value_dim + 1)  # a column more: the sum of phi(k), which normalises
        moved = rows * (heads * (f + b.value_dim)) * self.act_bytes
        summed = _beside(qkv, "linear", "tensor", flops=2 * heads * per_head * rows, activation_bytes=moved)
        return [*(self._projected(qkv, rows, weight_bytes) if self.random else []), features, summed]

    def _projected(self, qkv: Op, rows: Count, weight_bytes: float) -> list[Op]:
        """Queries and keys on random directions, the same for all heads."""
        b, f = self.block, self.width
        heads = b.heads + b.kv_heads
        read = b.head_dim * f * weight_bytes * (np.asarray(rows) > 0)
        moved = rows * (heads * (b.head_dim + f)) * self.act_bytes
        flops = 2 * b.head_dim * f * heads * rows
        return [_beside(qkv, "project", "tensor", flops=flops, weight_bytes=read, activation_bytes=moved)]


def _beside(op: Op, name: str, unit: Any, **counts: Count) -> Op:
    """A kernel of its own, with the rows of ``op``."""
    prefix = "encoder." if op.name.startswith("encoder.") else ""
    driver = "encoder" if prefix else "tokens"
    terms, fmt = ("matmul", op.format) if unit == "tensor" else ("elementwise", "fp32")
    return Op(f"{prefix}attn.{name}", f"{tag_of(op)}/attn.{name}", unit, fmt, terms, driver, op.layers, **counts)
