"""Output heads beside the target's own, as a model that reads the target's last states: blockwise, Medusa, Hydra.

Not a policy and not a variant that a scenario names: policies put it behind ``Model(None, (Heads(...),))``. What is
left of the target is nothing but its output matrix; the heads' own weights are all that it adds in memory. A pass runs
``logit_rows`` states through every head. Op names and counts: docs/conventions.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from sim.analytic.hardware import Device
from sim.analytic.model import ModelShape
from sim.analytic.ops import Op
from sim.analytic.precision import FORMATS, Precision
from sim.analytic.work import Work

__all__ = ["Heads", "product"]

Products = tuple[tuple[int, int], ...]
HIDDEN: Mapping[str, Products] = {"residual": ((1, 1),), "ffn": ((1, 4), (4, 1)), "none": ()}


@dataclass(frozen=True)
class Heads:
    """``count`` heads, each on the same states [rows, d].

    ``hidden``: its products before the vocabulary, widths in multiples of d: "residual" is Medusa's x + SiLU(W x)
    (arXiv 2401.10774, section 2.1.1), "ffn" a block of four times the width (Stern et al., arXiv 1811.03115), "none",
    or pairs such as ((2, 1),). The activation follows the first. ``norm``: a normalisation with the target's gain
    before the vocabulary. ``share_vocabulary``: the target's output matrix serves all heads in one product, else each
    has a matrix of its own. ``logits`` False: the products alone (EAGLE-3's fusion of features).
    """

    nested: ClassVar[bool] = True
    count: int = 1
    hidden: str | Products = "residual"
    norm: bool = False
    share_vocabulary: bool = False
    logits: bool = True

    @property
    def name(self) -> str:
        """What messages call it (a property, so that no scenario finds it)."""
        return "heads"

    @property
    def products(self) -> Products:
        """(in, out) widths of one head's hidden products, in multiples of d."""
        return HIDDEN[self.hidden] if isinstance(self.hidden, str) else self.hidden

    def reshape(self, shape: ModelShape) -> ModelShape:
        """The target without its layers."""
        return replace(shape, layers=(), encoder=(), extra=(), extra_windows=())

    def bound(self, shape: ModelShape, precision: Precision, device: Device) -> _Bound:
        """The heads of one device's share of the vocabulary."""
        return _Bound(self, shape, precision)


@dataclass(frozen=True)
class _Bound:
    """Heads on a model's widths and number formats."""

    heads: Heads
    shape: ModelShape
    precision: Precision

    def resident(self, weight_bytes: Mapping[str, float]) -> dict[str, float]:
        """The target's own matrices, and the heads' under names of their own."""
        h, d = self.heads, self.shape.d_model
        out = dict(weight_bytes)
        hidden = h.count * sum(a * b for a, b in h.products) * d * d * self._stored("heads.hidden")
        if hidden:
            out["heads.hidden"] = hidden
        if h.logits and not h.share_vocabulary:
            out["heads.logits"] = h.count * d * self.shape.vocab * self._stored("logits")
        return out

    def rewrite(self, ops: list[Op], work: Work) -> list[Op]:
        """Hidden products, activation, norm and logits of every head, then sampling of all of them."""
        like = {op.name: op for op in ops}
        return [*self._hidden(like, work.logit_rows), *(self._logits(like) if self.heads.logits else ())]

    def _stored(self, name: str) -> float:
        return FORMATS[self.precision.weight_format(name)].stored_bytes

    def _hidden(self, like: Mapping[str, Op], rows: Any) -> list[Op]:
        h, d = self.heads, self.shape.d_model
        act_bytes = FORMATS[self.precision.activations].stored_bytes
        out = []
        for i, (a, b) in enumerate(h.products):
            one = product(like["logits"], "heads.hidden", rows, a * d, b * d, self._stored("heads.hidden"), act_bytes)
            out.append(replace(one, kernel=f"{one.kernel}.{i}", layers=h.count))
        if h.products and h.logits:
            wide = h.products[0][1] > 1  # then an activation between products, else added to what it was made of
            flops, numbers, width = (4, 2, h.products[0][1] * d) if wide else (5, 3, d)
            act = self._vector(like, "heads.act", rows, flops, numbers, width, act_bytes)
            out.insert(1 if wide else len(out), act)
        if h.norm:
            norm = self._vector(like, "heads.norm", rows, 4, 2, d, act_bytes)
            read = self.shape.norm_vectors * d * self._stored("norm.final")
            out.append(replace(norm, weight_bytes=read * (rows > 0)))
        return out

    def _vector(
        self, like: Mapping[str, Op], name: str, rows: Any, flops: int, numbers: int, width: int, act_bytes: float
    ) -> Op:
        return replace(
            like["sample"],
            name=name,
            kernel=f"head/{name}",
            layers=self.heads.count,
            flops=flops * width * rows,
            activation_bytes=rows * (numbers * width) * act_bytes,
        )

    def _logits(self, like: Mapping[str, Op]) -> list[Op]:
        n, sample = self.heads.count, like["sample"]
        one = replace(like["logits"], name="heads.logits", kernel="head/heads.logits")
        if self.heads.share_vocabulary:
            more = {f: getattr(one, f) * n for f in ("flops", "activation_bytes", "inputs")}
            return [replace(one, **more), replace(sample, layers=n)]
        return [replace(one, layers=n), replace(sample, layers=n)]


def product(like: Op, name: str, rows: Any, k: int, n: int, weight_bytes: float, act_bytes: float) -> Op:
    """[rows, k] @ [k, n] as an op of the kind of ``like``; ``weight_bytes``, ``act_bytes``: of one number."""
    return replace(
        like,
        name=name,
        kernel=f"{like.kernel.partition('/')[0]}/{name}",
        flops=2 * k * n * rows,
        weight_bytes=k * n * weight_bytes * (rows > 0),
        activation_bytes=rows * (k + n) * act_bytes,
        inputs=rows * k,
        inner=k,
    )
