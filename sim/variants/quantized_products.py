"""The ops around one product whose weights are stored in few bits: decoding, narrow arithmetic, outliers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np

from sim.analytic.ops import Op
from sim.analytic.precision import FORMATS
from sim.variants.number_grid import Grid

__all__ = ["Product", "narrow", "weight_only", "wide_bytes"]

Count = Any
QUANTISE_FLOPS = 3  # a number: compared for the largest, divided, rounded
RESCALE_FLOPS = 2  # an output: times the token's scale, times the column's


@dataclass(frozen=True)
class Product:
    """``op`` as [rows, k] @ [k, n] with ``matrices`` of them read (experts, heads; 0 where no row runs).

    ``other_bytes``: biases and norms read with it, in the wide format of ``wide`` bytes a number.
    """

    op: Op
    grid: Grid
    k: int
    n: int
    matrices: Count
    other_bytes: Count
    wide: float

    @classmethod
    def of(cls, op: Op, grid: Grid) -> Product:
        """The product of an op whose weights are stored by ``grid``, as sim.analytic.ops writes it."""
        k, n = op.inner, _columns(op)
        each = FORMATS[grid.spelled].stored_bytes
        if not n:
            return cls(op, grid, k, n, 0.0 * op.inputs, 0.0 * op.inputs, 0.0)
        if op.name.removeprefix("encoder.") in ("moe.up", "moe.down"):  # an expert's biases are stored as its matrix
            return cls(op, grid, k, n, op.weight_bytes / (each * k * n), 0.0, wide_bytes(op))
        numbers = round(float(np.max(op.weight_bytes)) / each)
        copies = numbers // (k * n) if op.name.endswith("absorb") else 1
        runs = 1.0 * (np.asarray(op.inputs) > 0)
        others = (numbers - copies * k * n) * wide_bytes(op)
        return cls(op, grid, k, n, copies * runs, others * runs, wide_bytes(op))

    @property
    def rows(self) -> Count:
        """Rows of all its matrices."""
        return self.op.inputs // self.k

    @property
    def numbers(self) -> Count:
        """Weights of the matrices read."""
        return self.matrices * (self.k * self.n)

    @property
    def packed_bytes(self) -> Count:
        """Codes, scales and zero points of the matrices read."""
        return self.matrices * self.grid.matrix_bytes(self.k, self.n)

    def tiles(self, tile_rows: int) -> Count:
        """Tiles of rows of one matrix; each decodes the matrix anew."""
        return np.ceil(self.rows / np.maximum(self.matrices, 1.0) / tile_rows)

    def beside(self, tag: str, flops: Count, alone: bool) -> Op:
        """Vector work of this product, in a kernel of its own or in the product's (side by side with it)."""
        op = self.op
        kernel = f"{op.kernel}.{tag}" if alone else op.kernel
        return Op(f"{op.name}.{tag}", kernel, "vector", "fp32", "elementwise", op.driver, op.layers, flops=flops)


def wide_bytes(op: Op) -> float:
    """Bytes of one activation of a product, 0.0 where it has no rows."""
    if not np.max(op.inputs):
        return 0.0
    rows = np.max(op.inputs) / op.inner  # less than one where accounts ask for a mean round
    return float(np.max(op.activation_bytes) / (rows * (op.inner + _columns(op))))


def weight_only(product: Product, mode: str, tile_rows: int) -> list[Op]:
    """The product in the wide format, and the decoding of its weights: serial, overlapped or separate."""
    flops = product.numbers * product.grid.decode_flops
    main = replace(product.op, weight_bytes=product.packed_bytes + product.other_bytes)
    if mode == "separate":
        decoded = product.numbers * product.wide
        written = replace(product.beside("dequantise", flops, True), weight_bytes=product.packed_bytes + decoded)
        return [written, replace(main, weight_bytes=decoded + product.other_bytes)]
    decode = product.beside("dequantise", flops * product.tiles(tile_rows), mode == "serial")
    return [decode, main] if mode == "serial" else [main, decode]


def narrow(product: Product, mode: str, tile_rows: int, compute_bits: int, outliers: float) -> list[Op]:
    """The product in narrow arithmetic: inputs rounded, outputs rescaled, outlying inputs multiplied wide beside it.

    Codes narrower than the arithmetic are unpacked first, one FLOP each. Blocks of FP4 are multiplied as they are,
    scales included.
    """
    op, rows = product.op, product.rows
    wide_inputs = ceil(outliers * product.k)
    inner = product.k - wide_inputs
    main = replace(
        op,
        flops=2 * inner * product.n * rows,
        inputs=inner * rows,
        inner=inner,
        weight_bytes=product.packed_bytes + product.other_bytes,
    )
    out = [main, product.beside("quantise", QUANTISE_FLOPS * inner * rows, False)]
    if not isinstance(product.grid.group, int):
        out.append(product.beside("rescale", RESCALE_FLOPS * product.n * rows, False))
    if product.grid.bits < compute_bits:
        unpacked = product.beside("dequantise", product.numbers * product.tiles(tile_rows), mode != "overlapped")
        out = [unpacked, *out] if mode != "overlapped" else [*out, unpacked]
    return [*out, *_outliers(product, wide_inputs)] if wide_inputs else out


def _outliers(product: Product, inputs: int) -> list[Op]:
    """The product of ``inputs`` outlying inputs in 16 bits; their weights are decoded from the same codes."""
    op, rows, numbers = product.op, product.rows, inputs * product.n
    apart = replace(
        op,
        name=f"{op.name}.outliers",
        kernel=f"{op.kernel}.outliers",
        format="fp16",
        flops=2 * inputs * product.n * rows,
        inputs=inputs * rows,
        inner=inputs,
        weight_bytes=product.matrices * ceil(numbers * product.grid.bits / 8),
        activation_bytes=rows * (inputs + product.n) * product.wide,
    )
    decode = product.beside("outliers.dequantise", product.matrices * numbers * product.grid.decode_flops, False)
    return [apart, replace(decode, kernel=apart.kernel)]


def _columns(op: Op) -> int:
    """n of a product [rows, k] @ [k, n]; 0 where it has no rows."""
    inputs = int(np.max(op.inputs))
    return int(np.max(op.flops)) // (2 * inputs) if inputs else 0
