"""Attention of which each token keeps some heads only: projections gathered, keys and values of the others not read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sim.analytic.model import Attention
from sim.analytic.ops import Op
from sim.variants import gathered
from sim.variants.gathered import Chosen

__all__ = ["PROJECTED", "attended", "projected"]

PROJECTED = ("attn.qkv", "attn.rope", "attn.out")
ATTENDED = ("attn.approx", "attn.select", "attn.scores", "attn.softmax", "attn.values")


def attended(op: Op, share: float) -> Op:
    """Attention of decoding sequences by ``share`` of the heads; prompts are read by all of them.

    Exact where a sequence has one new token; several may differ in their heads, which is not counted.
    """
    if op.name not in ATTENDED or not isinstance(op.driver, tuple) or op.driver[0] not in ("decode", "stepped"):
        return op
    counts = ("flops", "kv_read_bytes", "activation_bytes")
    return replace(op, **{c: getattr(op, c) * share for c in counts})


def projected(op: Op, chosen: Chosen, block: Attention, d_model: int) -> Op:
    """One of PROJECTED for the query heads of the ``chosen`` groups; keys and values of all groups."""
    per_group = block.heads // block.kv_heads
    if op.name == "attn.rope":
        share = (chosen.each * per_group + block.kv_heads) / (block.heads + block.kv_heads)
        return replace(op, flops=op.flops * share, activation_bytes=op.activation_bytes * share)
    if op.name == "attn.out":
        numbers = per_group * block.value_dim
        rows = Chosen(chosen.total * numbers, chosen.each * numbers, chosen.touched * numbers)
        height = block.heads * block.value_dim
        return gathered.by_row(op, rows, op.weight_bytes / (height + 1) if block.out_bias else 0.0)
    return _queries(op, chosen, block, d_model)


def _queries(op: Op, chosen: Chosen, block: Attention, d_model: int) -> Op:
    """The joined projection: all of its key and value columns, the query columns of chosen groups."""
    per_group = block.heads // block.kv_heads * block.head_dim
    others = block.kv_heads * (block.head_dim + block.value_dim)
    columns, height = block.heads * block.head_dim + others, d_model + block.qkv_bias
    each: Any = op.weight_bytes / (columns * height + 2 * block.qk_norm)  # bytes a number, those of the norms included
    made, rows = chosen.each * per_group + others, gathered.rows_of(op)
    read = (chosen.touched * per_group + others) * height + 2 * block.qk_norm * (rows > 0)
    number = op.activation_bytes / (d_model + columns)
    return replace(op, flops=2 * d_model * made * rows, weight_bytes=each * read, inner=0,
                   activation_bytes=number * (d_model + made))  # fmt: skip
