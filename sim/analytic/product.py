"""Products whose rows are too many to tabulate (MLA decompresses every cached token), costed from one row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sim.analytic.ops import Op
from sim.analytic.roofline import Bound

__all__ = ["ProductCost"]

Count = Any
Evaluate = Callable[[Sequence[Op]], tuple[Bound, Count]]


@dataclass(frozen=True)
class ProductCost:
    """Seconds and joules of ``kernel``, given for one row, at any number of rows; weights are read once."""

    kernel: tuple[Op, ...]
    evaluate: Evaluate

    def seconds(self, rows: Count) -> Count:
        """Seconds of the kernel over its layers; elementwise over rounds."""
        return self.evaluate(self.at(rows))[0].seconds

    def joules(self, rows: Count) -> Count:
        """Dynamic joules, likewise."""
        return self.evaluate(self.at(rows))[1]

    def at(self, rows: Count) -> list[Op]:
        """The kernel's ops with ``rows`` rows."""
        return [self._scaled(op, rows) for op in self.kernel]

    def agrees(self, kernel: Sequence[Op], rows: int) -> bool:
        """Whether ``kernel``, made for ``rows`` rows, is what one row scales to (a variant may change that)."""
        ours, theirs = (np.array([_counts(op) for op in ops], dtype=np.float64) for ops in (self.at(rows), kernel))
        return ours.shape == theirs.shape and np.allclose(ours, theirs, rtol=1e-12)

    @staticmethod
    def _scaled(op: Op, rows: Count) -> Op:
        return replace(
            op,
            flops=op.flops * rows,
            inputs=op.inputs * rows,
            activation_bytes=op.activation_bytes * rows,
            weight_bytes=op.weight_bytes * (np.asarray(rows) > 0),
        )


def _counts(op: Op) -> tuple[Any, ...]:
    return (op.flops, op.inputs, op.weight_bytes, op.kv_read_bytes, op.kv_write_bytes, op.activation_bytes)
