"""Experts that are not chosen alike: hot experts, tokens that choose like each other, buffers of fixed capacity.

Without this variant n tokens visit E (1 - (1 - k/E)^n) experts, the most that any routing of independent tokens can
expect. Here expert e is chosen with probability q_e (``skew`` or measured ``popularity``), and a share ``alike`` of
tokens chooses as another token of the pass did. Capacity factors: GShard (Lepikhin et al. 2020, arXiv 2006.16668,
section 2.2) and Switch Transformers (Fedus et al. 2021, arXiv 2101.03961, equation 3): every expert multiplies a buffer
of ``ceil(capacity * n * k / E)`` rows, filled or not, and what does not fit is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from sim.analytic.hardware import Device
from sim.analytic.model import Ffn, ModelShape
from sim.analytic.ops import Op
from sim.analytic.precision import FORMATS, Precision
from sim.analytic.work import Work
from sim.quality import LOSSLESS, UNKNOWN, Quality
from sim.variants.expert_law import inclusion, visited, zipf
from sim.variants.layer_ops import layer_of
from workloads.errors import shown

__all__ = ["Moe"]

Count = Any
KEY = "variants.moe"
EXPERT_OPS = ("moe.up", "moe.act", "moe.down")


@dataclass(frozen=True)
class Moe:
    """``skew``: popularity of the expert of rank r is r^-skew. ``popularity``: measured instead, a number an expert.

    ``alike``: share of tokens that choose the experts of another token of the pass. ``capacity``: capacity factor of
    fixed buffers; None: each expert multiplies the rows that chose it.
    """

    name: ClassVar[str] = "moe"
    stage: ClassVar[int] = -1  # before quantization, which decodes the experts that are read
    clashes: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"token_routing": "its bands are those of dense feed-forward blocks"}
    )
    skew: float = 0.0
    popularity: Any = None
    alike: float = 0.0
    capacity: float | None = None

    def __post_init__(self) -> None:
        """Raise ValueError naming option, value and what is allowed."""
        _between("skew", self.skew, 0.0, 10.0)
        _between("alike", self.alike, 0.0, 1.0)
        if self.capacity is not None:
            _between("capacity", self.capacity, 0.1, 100.0)
        if self.popularity is not None:
            object.__setattr__(self, "popularity", _popularity(self.popularity))
            if self.skew:
                raise ValueError(f"{KEY}.skew: {self.skew}: leave it at 0 where popularity is given")

    def reshape(self, shape: ModelShape) -> ModelShape:
        """The shape as it is. Raises ValueError where it has no experts, or another number of them."""
        kinds = {layer.ffn for layer in shape.layers if layer.ffn.experts}
        if not kinds:
            raise ValueError(f"{KEY}: {shape.name} has no experts in its layers")
        for ffn in kinds:
            if self.popularity is not None and len(self.popularity) != ffn.experts:
                said = f"{len(self.popularity)} numbers for the {ffn.experts} experts of {shape.name}"
                raise ValueError(f"{KEY}.popularity: {said}")
        return shape

    def shares(self, experts: int, chosen: int) -> tuple[float, ...]:
        """q_e of every expert; they add up to ``chosen``."""
        return inclusion(self.popularity or zipf(experts, self.skew), chosen)

    def visited(self, experts: int, chosen: int, tokens: Count) -> Count:
        """Expected experts that ``tokens`` visit, elementwise; with ``alike`` they count as so many fewer tokens."""
        n = np.asarray(tokens, dtype=np.float64)
        apart = n - self.alike * np.maximum(n - 1.0, 0.0)
        return visited(self.shares(experts, chosen), apart)

    def rows_each(self, experts: int, chosen: int, tokens: Count) -> Count:
        """Rows of one expert's buffer, elementwise."""
        assert self.capacity is not None
        return np.ceil(np.asarray(tokens) * (self.capacity * chosen / experts) - 1e-9)

    def bound(self, shape: ModelShape, precision: Precision, device: Device) -> _Routed:
        """The routing of one shape."""
        return _Routed(self, shape, precision)

    @property
    def quality(self) -> Quality:
        """Which experts are popular is the model's own affair; a buffer that overflows drops tokens."""
        return LOSSLESS if self.capacity is None else UNKNOWN


@dataclass(frozen=True)
class _Routed:
    law: Moe
    shape: ModelShape
    precision: Precision

    def rewrite(self, ops: list[Op], work: Work) -> list[Op]:
        """Experts read by the law, and buffers multiplied where capacity is fixed."""
        assert not any(op.name.startswith(("moe.up.", "moe.down.")) for op in ops), "quantization comes after moe"
        return [self._expert(op, self._tokens(op, work)) if op.name in EXPERT_OPS else op for op in ops]

    @staticmethod
    def _tokens(op: Op, work: Work) -> Count:
        """Whoever chooses among the experts: all data ranks of a layout that has some."""
        return work.everywhere if op.driver == "everywhere" else work.tokens

    @cached_property
    def _plain(self) -> bool:
        law = self.law
        return not law.skew and law.popularity is None and not law.alike and law.capacity is None

    def _expert(self, op: Op, tokens: Count) -> Op:
        layer = layer_of(op, self.shape)
        if self._plain or layer is None:
            return op
        ffn = layer.ffn
        if self.law.capacity is None:
            read = self.law.visited(ffn.experts, ffn.experts_per_token, tokens)
            return replace(op, weight_bytes=read / ffn.expert_groups * self._expert_bytes(op, ffn))
        chosen, rows = ffn.experts_per_token, self.law.rows_each(ffn.experts, ffn.experts_per_token, tokens)
        each = np.maximum(np.asarray(tokens) * chosen, 1)
        buffers = ffn.experts * rows
        return replace(
            op,
            flops=op.flops / each * buffers,
            inputs=op.inputs / each * buffers,
            activation_bytes=op.activation_bytes / each * buffers,
            weight_bytes=ffn.experts // ffn.expert_groups * self._expert_bytes(op, ffn) * (np.asarray(tokens) > 0),
        )

    def _expert_bytes(self, op: Op, ffn: Ffn) -> float:
        """Bytes of one expert's weights of this op."""
        numbers = ffn.expert_parameters(self.shape.d_model).get(op.name.replace("moe.", "mlp."), 0)
        return numbers * FORMATS[self.precision.weight_format(op.name, self.shape.expert_format)].stored_bytes


def _between(option: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{KEY}.{option}: {shown(value)}: must be a number from {low:g} to {high:g}")


def _popularity(values: Any) -> tuple[float, ...]:
    good = isinstance(values, list | tuple) and 0 < len(values) <= 1 << 16
    numbers = good and all(isinstance(v, int | float) and not isinstance(v, bool) and 0 < v < 1e12 for v in values)
    if not numbers:
        raise ValueError(f"{KEY}.popularity: {shown(values)}: must be a list of numbers above 0, one an expert")
    return tuple(float(v) for v in values)
