"""The projections of a Tandem secondary as a model of their own: from the primary's states to keys and values.

Tandem Transformers (arXiv 2402.08644, section 3): layer j of the secondary attends, for tokens of finished blocks, to
keys and values that its own maps make of ``W_j x``, x the primary's residual stream after layer ``layer_map[j]``.
Each pass of the primary is followed by this one over the same tokens, prompts included; it fills the secondary's cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sim.analytic.hardware import Device
from sim.analytic.model import ModelShape
from sim.analytic.ops import Op
from sim.analytic.precision import FORMATS, Precision
from sim.analytic.work import Work
from sim.variants.layer_ops import layer_of, tag_of

__all__ = ["Project", "check_map", "spread"]

Count = Any
KEY = "policy.layer_map"


def spread(layers: int, primary_layers: int) -> tuple[int, ...]:
    """Primary layers that so many secondary layers read: evenly spread, the last one the primary's last."""
    return tuple(round((j + 1) * primary_layers / layers) for j in range(layers))


def check_map(layer_map: Any) -> tuple[int, ...] | str:
    """``spread``, or a list of whole numbers of at least 0, one for each secondary layer. Raises ValueError."""
    if layer_map == "spread" and isinstance(layer_map, str):
        return "spread"
    whole = isinstance(layer_map, list | tuple) and all(type(n) is int and n >= 0 for n in layer_map)
    if not whole or not layer_map:
        raise ValueError(f"{KEY}: {layer_map!r:.80} is not spread, nor a list of primary layers from 0 on")
    return tuple(layer_map)


@dataclass(frozen=True)
class Project:
    """A variant of the secondary that leaves nothing of its pass but the projections; see :meth:`beside`.

    ``layer_map``: ``spread``, or the primary layer (0: its embeddings) whose states each secondary layer reads.
    """

    layer_map: tuple[int, ...] | str = "spread"
    primary: ModelShape | None = None

    @property
    def name(self) -> str:
        """What messages call it; no scenario names it."""
        return "tandem projections"

    def beside(self, target: ModelShape) -> Project:
        """The same for a primary of this shape."""
        return replace(self, primary=target)

    def bound(self, shape: ModelShape, precision: Precision, device: Device) -> _Projections:
        """What the projections cost on one device that computes ``shape`` of the secondary.

        Raises ValueError where the map does not fit the two models, or where keys and values come from a latent.
        """
        assert self.primary is not None, "projections belong to a primary"
        if any(layer.attention.latent for layer in shape.layers):
            raise ValueError(f"policy.draft: {shape.name} has latent attention; a tandem's secondary must have none")
        self._fits(len(shape.layers), len(self.primary.layers))
        return _Projections(shape, precision, self.primary.d_model)

    def _fits(self, layers: int, most: int) -> None:
        said = self.layer_map if isinstance(self.layer_map, tuple) else spread(layers, most)
        if len(said) != layers or max(said) > most:
            raise ValueError(f"{KEY}: {list(said)}: must name {layers} layers, each from 0 to {most}")


@dataclass(frozen=True)
class _Projections:
    """On one device: heads are cut like the secondary's, ``W_j`` (as wide as the residual stream) is not."""

    shape: ModelShape
    precision: Precision
    primary_width: int

    @property
    def numbers(self) -> int:
        """Weights of one projection, [d_P, d_S]."""
        return self.primary_width * self.shape.d_model

    @property
    def stored_bytes(self) -> float:
        """Bytes of a weight: projections keep the format of head, norms and router."""
        return FORMATS[self.precision.head_format].stored_bytes

    def resident(self, weight_bytes: Mapping[str, float]) -> dict[str, float]:
        """The projections alone; the maps to keys and values are the secondary's, which are there already."""
        return {"tandem.project": len(self.shape.layers) * self.numbers * self.stored_bytes}

    def rewrite(self, ops: list[Op], work: Work) -> list[Op]:
        """Of each secondary layer: project, norm, keys and values, rotate the keys, write both."""
        return [new for op in ops if tag_of(op).startswith("dec") for new in self._instead(op, work.tokens)]

    def _instead(self, op: Op, rows: Count) -> Iterator[Op]:
        layer = layer_of(op, self.shape)
        assert layer is not None
        block, d = layer.attention, self.shape.d_model
        kv = block.kv_heads * (block.head_dim + block.value_dim)
        columns = block.heads * block.head_dim + kv
        if op.name == "norm.attn":
            yield self._project(op, rows)
            yield replace(op, name="tandem.norm.attn")
        elif op.name == "attn.qkv":
            wide = replace(_share(op, kv, columns), activation_bytes=op.activation_bytes * (d + kv) / (d + columns))
            yield replace(wide, name="tandem.attn.kv")
        elif op.name.startswith("attn.qkv."):  # what quantization adds around the product
            yield replace(_share(op, kv, columns), name=f"tandem.attn.kv{op.name.removeprefix('attn.qkv')}")
        elif op.name == "attn.rope":
            rope = _share(op, block.kv_heads, block.heads + block.kv_heads)
            yield replace(rope, name="tandem.attn.rope")
        elif op.name == "kv.append":
            yield replace(op, name="tandem.kv.append")

    def _project(self, norm: Op, rows: Count) -> Op:
        """[rows, d_P] @ [d_P, d_S], in each of the layers that ``norm`` stands for."""
        wide, d = self.primary_width, self.shape.d_model
        stored = self.precision.head_format
        return Op(
            "tandem.project", f"{tag_of(norm)}/tandem.project", "tensor",
            self.precision.product_format(stored), "matmul", norm.driver, norm.layers, flops=2 * self.numbers * rows,
            weight_bytes=self.numbers * self.stored_bytes * (np.asarray(rows) > 0),
            activation_bytes=rows * ((wide + d) * FORMATS[self.precision.activations].stored_bytes),
            inputs=rows * wide, inner=wide,
        )  # fmt: skip


def _share(op: Op, part: int, whole: int) -> Op:
    """``part`` of ``whole`` columns of an op."""
    counts = {name: getattr(op, name) * part / whole for name in ("flops", "weight_bytes", "activation_bytes")}
    return replace(op, **counts)
