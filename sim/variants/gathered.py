"""Products of which each row wants only some columns or rows of the matrix: gathered, or run dense after all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import dropwhile, takewhile
from math import prod
from typing import Any

import numpy as np

from sim.analytic.model import Layer, ModelShape
from sim.analytic.ops import Op
from sim.variants.number_grid import Grid
from sim.variants.quantized_products import wide_bytes
from sim.variants.topk import union

__all__ = [
    "Chosen", "blend", "by_column", "by_row", "check_shards", "fewer", "layer_of", "named", "replaced", "rows_of",
    "scorer", "select", "with_companions", "with_waste",
]  # fmt: skip

Count = Any
TILE_ROWS = 128  # rows that one decoding of a packed matrix serves


@dataclass(frozen=True)
class Chosen:
    """Of ``total`` units each of ``rows`` chose ``each``, and all of them together touch ``touched``."""

    total: int
    each: Count
    touched: Count

    @classmethod
    def of(cls, rows: Count, total: int, each: Count, unit: int = 1, overlap: float | None = None) -> Chosen:
        """``total`` and ``each`` count columns, chosen in groups of ``unit``."""
        return cls(total, each, union(rows, total // unit, each // unit, overlap) * unit)


def layer_of(tag: str, shape: ModelShape) -> Layer | None:
    """The decoder layer whose kernels are called ``tag/...`` (equal layers share them); None for anything else."""
    number = tag.removeprefix("dec")
    return list(dict.fromkeys(shape.layers))[int(number)] if tag != number and number.isdigit() else None


def check_shards(key: str, shards: int, ops: Sequence[Op]) -> None:
    """Raise ValueError unless ``shards`` is the number of devices that the layout cuts the model over.

    The first collective after a block is among all of them, in one phase or several.
    """
    sums = ("all_reduce", "reduce_scatter")
    wires = [*takewhile(lambda op: op.name in sums, dropwhile(lambda op: op.name not in sums, ops))]
    norms = [op for op in ops if op.name == "norm.attn" and np.max(op.activation_bytes)]
    if wires and not norms:
        return  # nothing runs through the layers in this pass
    machines = prod(op.group for op in wires)
    if machines != shards:
        raise ValueError(f"{key}.shards: {shards}: the layout cuts the model over {machines}; set shards to {machines}")


def named(ops: Sequence[Op], name: str) -> Op:
    """The first op of that name."""
    return next(op for op in ops if op.name == name)


def replaced(ops: list[Op], start: str | tuple[str, ...], by: Callable[[list[Op]], list[Op]]) -> list[Op]:
    """``ops`` with those whose names begin with ``start`` taken out, and ``by(them)`` where the first of them was."""
    found = [op for op in ops if op.name.startswith(start)]
    if not found:
        return ops
    at = next(i for i, op in enumerate(ops) if op is found[0])
    return [*ops[:at], *by(found), *(op for op in ops[at:] if not op.name.startswith(start))]


def rows_of(op: Op) -> Count:
    """Rows of a product."""
    return op.inputs // op.inner


def by_column(op: Op, chosen: Chosen, parts: int = 1) -> Op:
    """A product of which each row computes its own columns, in each of ``parts`` matrices side by side.

    ``inner`` is 0 afterwards: variants further down the list take it for a product of their own no more.
    """
    rows, columns = rows_of(op), parts * chosen.each
    return replace(
        op,
        flops=2 * op.inner * columns * rows,
        weight_bytes=op.weight_bytes / chosen.total * chosen.touched,
        activation_bytes=rows * (op.inner + columns) * wide_bytes(op),
        inner=0,
    )


def by_row(op: Op, chosen: Chosen, bias_bytes: Count = 0.0) -> Op:
    """A product with inputs of which each row has its own; the bias is read whole."""
    rows, out = rows_of(op), _columns(op)
    return replace(
        op,
        flops=2 * out * chosen.each * rows,
        weight_bytes=(op.weight_bytes - bias_bytes) / chosen.total * chosen.touched + bias_bytes,
        activation_bytes=rows * (chosen.each + out) * wide_bytes(op),
        inputs=rows * chosen.each,
        inner=0,
    )


def fewer(op: Op, chosen: Chosen) -> Op:
    """An op that goes over every unit (an activation, sampling), over those that a row keeps."""
    return replace(op, flops=op.flops / chosen.total * chosen.each,
                   activation_bytes=op.activation_bytes / chosen.total * chosen.each)  # fmt: skip


def with_companions(op: Op, chosen: Chosen, columns: bool) -> Op:
    """What quantization put beside a gathered product: decoding follows the matrix, the rest what a row keeps.

    Outlying inputs keep their full count, which is small.
    """
    kind = op.name.rsplit(".", 1)[-1]
    if kind == "dequantise":
        return replace(op, flops=op.flops / chosen.total * chosen.touched,
                       weight_bytes=op.weight_bytes / chosen.total * chosen.touched)  # fmt: skip
    if kind == ("rescale" if columns else "quantise"):
        return replace(op, flops=op.flops / chosen.total * chosen.each)
    return op


def with_waste(op: Op, full: Op, chosen: Chosen, unit: int, half_bytes: float) -> list[Op]:
    """The gathered product and the bandwidth that its chunks of ``unit`` columns waste, as bytes moved in vain."""
    chunk = float(np.max(full.weight_bytes)) / chosen.total * unit
    if not half_bytes or not chunk:
        return [op]
    return [op, _beside(op, "overfetch", "none", weight_bytes=op.weight_bytes * (half_bytes / chunk))]


def scorer(op: Op, base: str, columns: int, rank: int | None, grid: Grid | None, bias_bytes: Count = 0.0) -> list[Op]:
    """Approximate scores of ``columns`` outputs of a product: [m, d] @ [d, r] @ [r, n], the last of them in few bits.

    Without ``rank`` the matrix has its full height; without ``grid`` its numbers are as wide as activations.
    """
    rows, wide = rows_of(op), wide_bytes(op)
    runs, height = 1.0 * (np.asarray(rows) > 0), rank or op.inner
    made = []
    if rank is not None:
        made.append(_product(op, f"{base}.project", rows, op.inner, rank, op.inner * rank * wide * runs, wide))
    stored = columns * height * wide if grid is None else grid.matrix_bytes(height, columns)
    approx = _product(op, f"{base}.approx", rows, height, columns, stored * runs + bias_bytes, wide)
    made.append(approx)
    if grid is not None:
        decoded = height * columns * grid.decode_flops * np.ceil(rows / TILE_ROWS)
        made.append(_beside(approx, "dequantise", "vector", flops=decoded))
    return made


def select(op: Op, base: str, columns: int) -> Op:
    """Finding the best of ``columns`` scores a row: each is read and compared once (refining the bar is neglected)."""
    rows, wide = rows_of(op), wide_bytes(op)
    found = _beside(op, "", "vector", flops=rows * columns, activation_bytes=rows * columns * wide)
    return replace(found, name=f"{base}.select", kernel=f"{op.kernel}.select")


def blend(dense: Count, full: Sequence[Op], sparse: Sequence[Op]) -> list[Op]:
    """``sparse`` ops where ``dense`` is false; where it is true those of their name in ``full``, the others nothing."""
    if not np.any(dense):
        return list(sparse)
    whole = {op.name: op for op in full}
    share = 1.0 * np.asarray(dense)
    return [_mixed(share, whole.get(op.name), op) for op in sparse]


def _mixed(share: Count, full: Op | None, op: Op) -> Op:
    counts = ("flops", "weight_bytes", "kv_read_bytes", "activation_bytes", "inputs")
    mixed = {c: (1.0 - share) * getattr(op, c) + (share * getattr(full, c) if full else 0.0) for c in counts}
    return replace(op, **mixed)


def _product(op: Op, name: str, rows: Count, k: int, n: int, weight_bytes: Count, wide: float) -> Op:
    return replace(
        op,
        name=name,
        kernel=f"{op.kernel.split('/')[0]}/{name}",
        flops=2 * k * n * rows,
        weight_bytes=weight_bytes,
        activation_bytes=rows * (k + n) * wide,
        inputs=rows * k,
        inner=0,
    )


def _beside(op: Op, tag: str, unit: Any, **counts: Count) -> Op:
    """Work in the kernel of ``op``, at its side."""
    return Op(f"{op.name}.{tag}", op.kernel, unit, "fp32", "elementwise", op.driver, op.layers, **counts)


def _columns(op: Op) -> int:
    inputs = int(np.max(op.inputs))
    return int(np.max(op.flops)) // (2 * inputs) if inputs else 0
