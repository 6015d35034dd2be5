"""Products as BLAS libraries on CPUs run them: with more than one row, the weights are copied into panels first.

Goto and van de Geijn 2008 (https://doi.org/10.1145/1356052.1356053), section 4: packing costs time in proportion to the
weights, whatever the number of rows, and nothing overlaps it. What a number costs is the device's ``quantise`` term
(``decodesim calibrate --here`` measures it). One row is a matrix-vector product, which needs no copy; nor do products
of at most ``small`` multiply-adds, which OpenBLAS gives to kernels of their own (0: none).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from sim.analytic.ops import Op
from sim.analytic.work import Work


@dataclass(frozen=True)
class PackedProducts:
    """``small``: multiply-adds up to which a product is not packed."""

    name: ClassVar[str] = "packed_products"
    stage: ClassVar[int] = 2  # ``inputs`` mean something else afterwards, which what gathers products must not see
    small: int = 180_000

    def __post_init__(self) -> None:
        """Raise ValueError for anything but a count."""
        if isinstance(self.small, bool) or not isinstance(self.small, int) or not 0 <= self.small <= 10**12:
            raise ValueError(f"variants.packed_products.small: {self.small!r} is not a whole number from 0 to 10^12")

    def rewrite(self, ops: list[Op], work: Work) -> list[Op]:
        """Numbers that enter a product: its weights where they are packed, else none."""
        return [self._packed(op) if op.inner else op for op in ops]

    def _packed(self, op: Op) -> Op:
        rows = np.asarray(op.inputs) // op.inner
        weights = np.where(rows > 0, op.flops / (2 * np.maximum(rows, 1)), 0.0)
        return replace(op, inputs=weights * ((rows > 1) & (np.asarray(op.flops) / 2 > self.small)))
