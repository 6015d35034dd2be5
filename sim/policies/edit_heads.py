"""The heads of a text editor on an encoder's last states: what to keep, and in which order. A model of their own.

Not a policy and not a variant that a scenario names: ``text_editing`` puts it behind ``Model(None, (EditHeads(),))``.
Op names and counts: docs/conventions.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from sim.analytic.hardware import Device
from sim.analytic.model import ModelShape
from sim.analytic.ops import Driver, Op
from sim.analytic.precision import FORMATS, Precision
from sim.analytic.work import Work

__all__ = ["TAGS", "EditHeads"]

TAGS = 2  # keep, delete


@dataclass(frozen=True)
class EditHeads:
    """A tag for each source token, [n, d] @ [d, 2]; with ``pointer`` a query and a key of width d for each, and every
    pair of them scored: who follows whom (EdiT5, arXiv 2205.12209, section 3; FELIX, arXiv 2003.10687).
    """

    nested: ClassVar[bool] = True
    pointer: bool = True

    @property
    def name(self) -> str:
        """What messages call it (a property, so that no scenario finds it)."""
        return "edit heads"

    def reshape(self, shape: ModelShape) -> ModelShape:
        """The target without its decoder; a layer of its encoder stands for the states that the heads read."""
        return replace(shape, layers=(), encoder=shape.encoder[:1], extra=(), extra_windows=(), final_norm=False)

    def bound(self, shape: ModelShape, precision: Precision, device: Device) -> _Bound:
        """The heads on a model's width and number formats."""
        return _Bound(self, shape.d_model, precision)


@dataclass(frozen=True)
class _Bound:
    heads: EditHeads
    width: int
    precision: Precision

    @property
    def products(self) -> dict[str, int]:
        """Columns of each product, by op name."""
        d = self.width
        return {"edit.tag": TAGS, **({"edit.point": 2 * d} if self.heads.pointer else {})}

    def resident(self, weight_bytes: Mapping[str, float]) -> dict[str, float]:
        """The heads alone: the encoder is there already."""
        return {name: self.width * n * self._stored_bytes for name, n in self.products.items()}

    def rewrite(self, ops: list[Op], work: Work) -> list[Op]:
        """Nothing of the encoder's own ops, which its own pass runs."""
        rows = work.encoder_tokens
        done = [self._product(name, rows, columns) for name, columns in self.products.items()]
        return [*done, self._scores(rows, work.encoder_pairs)] if self.heads.pointer else done

    def _product(self, name: str, rows: Any, columns: int) -> Op:
        d, stored = self.width, self.precision.head_format
        return replace(
            self._op(name, "matmul", "encoder"), format=self.precision.product_format(stored),
            flops=2 * rows * d * columns, weight_bytes=d * columns * self._stored_bytes * (np.asarray(rows) > 0),
            activation_bytes=rows * ((d + columns) * self._act_bytes), inputs=rows * d, inner=d,
        )  # fmt: skip

    def _scores(self, rows: Any, pairs: Any) -> Op:
        """Queries against keys; only the best of a row is kept, so that no scores are written."""
        base = self._op("edit.point.scores", "prefill_attention", "encoder_pairs")
        wide = 2 * self.width
        return replace(
            base,
            format=self.precision.attention_format,
            flops=wide * pairs,
            activation_bytes=rows * wide * self._act_bytes,
        )

    def _op(self, name: str, terms: str, driver: Driver) -> Op:
        return Op(name, f"edit/{name}", "tensor", "", terms, driver)

    @property
    def _stored_bytes(self) -> float:
        """Bytes of a weight: heads keep the format of the output head."""
        return FORMATS[self.precision.head_format].stored_bytes

    @property
    def _act_bytes(self) -> float:
        return FORMATS[self.precision.activations].stored_bytes
