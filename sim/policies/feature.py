"""A drafter on the target's own states: EAGLE's layer, the module of multi-token prediction, layers beside the head.

Not a policy and not a variant that a scenario names: policies put it behind ``Model(None, (Feature(...),))``. Layers of
the target's last kind, with a KV cache of their own, between the target's embedding and its output head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from sim.analytic.hardware import Device
from sim.analytic.model import ModelShape
from sim.analytic.ops import Op
from sim.analytic.precision import FORMATS, Precision
from sim.analytic.work import Work
from sim.policies.heads import product

__all__ = ["Feature"]


@dataclass(frozen=True)
class Feature:
    """``layers`` of the target's last kind over a state and the embedding of the token that followed it.

    ``join``: how the two become one input: a "product" [2d, d] (EAGLE, arXiv 2401.15077; DeepSeek-V3's module, arXiv
    2412.19437, equation 21), "wide": query, key and value products that read both (EAGLE-3, arXiv 2503.01840), or
    "none": the state alone, no embedding (Gloeckle et al. 2024, arXiv 2404.19737). ``norms``: normalisations of
    those inputs. ``dense``: without the experts of a mixture. ``vocabulary``: tokens of an output head of its own, None
    for the target's.
    """

    nested: ClassVar[bool] = True
    layers: int = 1
    join: Literal["product", "wide", "none"] = "product"
    norms: int = 0
    dense: bool = True
    vocabulary: int | None = None

    @property
    def name(self) -> str:
        """What messages call it (a property, so that no scenario finds it)."""
        return "feature"

    def reshape(self, shape: ModelShape) -> ModelShape:
        """The target's last layer, so many times. Raises ValueError where it has no layers."""
        if not shape.layers:
            raise ValueError(f"policy.drafter: {shape.name} has no decoder layers to draft with")
        layer = shape.layers[-1]
        if self.dense and layer.ffn.experts:
            layer = replace(layer, ffn=replace(layer.ffn, experts=0, experts_per_token=0, shared_width=0))
        if self.join == "wide" and layer.attention.latent is not None:
            raise ValueError(f"policy.drafter.kind: eagle3: {shape.name} has latent attention; must be eagle or mtp")
        cut = replace(shape, layers=(layer,) * self.layers, encoder=(), extra=())
        return cut if self.vocabulary is None else replace(cut, vocab=self.vocabulary, tied=False)

    def bound(self, shape: ModelShape, precision: Precision, device: Device) -> _Bound:
        """The drafter on one device."""
        return _Bound(self, shape, precision)


@dataclass(frozen=True)
class _Bound:
    """A feature drafter on a model's widths and number formats."""

    feature: Feature
    shape: ModelShape
    precision: Precision

    def resident(self, weight_bytes: Mapping[str, float]) -> dict[str, float]:
        """The target's embedding and head as they are; everything else under names of its own."""
        shared = {"embed"} if self.feature.vocabulary is not None else {"embed", "logits"}
        out = {name if name in shared else f"feature.{name}": size for name, size in weight_bytes.items()}
        d = self.shape.d_model
        if self.feature.join == "product":
            out["feature.join"] = 2 * d * d * self._stored("feature.join")
        if self.feature.join == "wide":
            out["feature.attn.qkv"] += self._wider(self._stored("attn.qkv"))
        if self.feature.norms:
            out["feature.norms"] = self.feature.norms * self._norm_bytes
        return out

    def rewrite(self, ops: list[Op], work: Work) -> list[Op]:
        """Norms and the join after the embedding, or wider products in the first layer; the rest as in any decoder."""
        kind, out = self.feature.join, []
        for op in ops:
            if op.name == "embed":
                out += [] if kind == "none" else [op]
                out += self._inputs(ops, work.tokens)
            else:
                out.append(self._widened(op, work.tokens) if kind == "wide" and op.name == "attn.qkv" else op)
        return out

    @property
    def _act_bytes(self) -> float:
        return FORMATS[self.precision.activations].stored_bytes

    @property
    def _norm_bytes(self) -> float:
        return self.shape.norm_vectors * self.shape.d_model * self._stored("norm.attn")

    def _stored(self, name: str) -> float:
        return FORMATS[self.precision.weight_format(name)].stored_bytes

    def _inputs(self, ops: list[Op], rows: Any) -> list[Op]:
        d, out = self.shape.d_model, []
        if self.feature.norms:
            like = next(op for op in ops if op.name == "norm.attn")
            norm = replace(like, name="feature.norm", kernel="feature/norm", layers=self.feature.norms)
            out.append(replace(norm, weight_bytes=self._norm_bytes * (rows > 0)))
        if self.feature.join == "product":
            like = replace(next(op for op in ops if op.name == "attn.out"), kernel="feature/", layers=1)
            out.append(product(like, "feature.join", rows, 2 * d, d, self._stored("feature.join"), self._act_bytes))
        return out

    def _wider(self, stored: float) -> float:
        kind = self.shape.layers[0].attention
        d, wide = self.shape.d_model, kind.heads * kind.head_dim + kind.kv_heads * (kind.head_dim + kind.value_dim)
        return d * wide * stored * self.feature.layers

    def _widened(self, op: Op, rows: Any) -> Op:
        """Reads 2d numbers a row instead of d, with twice the matrix."""
        d = self.shape.d_model
        more = self._wider(self._stored("attn.qkv")) / self.feature.layers
        return replace(
            op,
            flops=op.flops * 2,
            weight_bytes=op.weight_bytes + more * (rows > 0),
            activation_bytes=op.activation_bytes + rows * d * self._act_bytes,
            inputs=op.inputs * 2,
            inner=2 * d,
        )
