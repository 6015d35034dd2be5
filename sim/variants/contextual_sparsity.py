"""Contextual sparsity: low-rank predictors name the heads and neurons that a token needs (Deja Vu, arXiv 2310.17157).

Only those rows and columns are read and multiplied. With look-ahead the predictor of a block runs on the input of the
block before it, beside other work, so that it costs bytes and FLOPs but no kernels of its own. A batch reads the union
of what its rows chose, and predictions that miss are lost: nothing is checked, unlike HiRE.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from sim.analytic.hardware import Device
from sim.analytic.model import Attention, Ffn, ModelShape
from sim.analytic.ops import Op
from sim.analytic.precision import FORMATS, Precision
from sim.analytic.work import Work
from sim.quality import Quality
from sim.variants import gathered
from sim.variants.gathered import Chosen
from sim.variants.hire_options import Phases, chunk, share, size
from sim.variants.options import whole
from sim.variants.sparse_heads import PROJECTED, attended, projected
from workloads.errors import shown

__all__ = ["ContextualSparsity"]

KEY = "variants.contextual_sparsity"
CLAIM = Quality(
    None, "no loss that tasks show, OPT-175B, 2x faster; by the authors' word", "arXiv 2310.17157, abstract"
)


@dataclass(frozen=True)
class ContextualSparsity:
    """``neurons``, ``heads``: how many each token keeps, a number or a share of them; None: all, no predictor.

    Query heads go in groups that share a key/value head, and ``heads`` counts groups; keys and values are made for all
    of them, so that the cache has no holes. ``rank``: width of both predictors, a number or a share of the model's.
    ``lookahead``: see above. ``overlap``, ``head_overlap``: see sim.variants.topk.union. ``dense_rows``: rows of a
    pass from which the whole matrices are multiplied; None: from where choosing would move more bytes.
    ``shards``: devices that the model is cut over, the scenario's ``layout.tensor``: each chooses its share.
    ``half_chunk_bytes``: chunks of that size are gathered at half of the memory bandwidth.
    """

    name: ClassVar[str] = "contextual_sparsity"
    neurons: Any = 0.1
    heads: Any = None
    rank: Any = 0.08
    lookahead: bool = True
    overlap: float | None = None
    head_overlap: float | None = None
    dense_rows: int | None = None
    shards: int = 1
    half_chunk_bytes: float = 512.0

    def __post_init__(self) -> None:
        """Raise ValueError naming option, value and what is allowed."""
        whole(f"{KEY}.shards", self.shards, 1, 4096)
        chunk(f"{KEY}.half_chunk_bytes", self.half_chunk_bytes)
        for option in ("neurons", "heads", "rank"):
            if getattr(self, option) is not None or option == "rank":
                size(f"{KEY}.{option}", getattr(self, option))
        for option in ("overlap", "head_overlap"):
            share(f"{KEY}.{option}", getattr(self, option))
        if self.dense_rows is not None:
            whole(f"{KEY}.dense_rows", self.dense_rows, 1)
        if not isinstance(self.lookahead, bool):
            raise ValueError(f"{KEY}.lookahead: {shown(self.lookahead)}: must be true or false")
        if self.mlp is None and self.attention is None:
            raise ValueError(f"{KEY}.neurons: none, and heads: none: leave the variant out")

    @cached_property
    def mlp(self) -> Phases | None:
        """How neurons are chosen."""
        return self._phases(self.neurons, self.overlap)

    @cached_property
    def attention(self) -> Phases | None:
        """How groups of heads are chosen."""
        return self._phases(self.heads, self.head_overlap)

    def reshape(self, shape: ModelShape) -> ModelShape:
        """The shape as it is. Raises ValueError where it does not apply."""
        if not shape.layers:
            raise ValueError(f"{KEY}: {shape.name} has no decoder")
        self._check_heads(shape)
        for layer in shape.layers:
            if self.mlp is not None and layer.ffn.experts:
                raise ValueError(f"{KEY}.neurons: {shape.name} has experts, which are chosen already")
            self._check_fits("neurons", self.mlp, layer.ffn.width, shape.d_model)
            self._check_fits("heads", self.attention, layer.attention.kv_heads, shape.d_model)
        return shape

    def bound(self, shape: ModelShape, precision: Precision, device: Device | None = None) -> Bound:
        """What knows the part of the shape that one device computes. Raises ValueError where keys became latents."""
        self._check_heads(shape)
        return Bound(self, shape, precision)

    @property
    def quality(self) -> Quality:
        """Nobody published the loss at given densities."""
        return CLAIM

    def _phases(self, said: Any, overlap: float | None) -> Phases | None:
        if said is None:
            return None
        return Phases(said, said, self.rank, None, overlap=overlap, dense_rows=self.dense_rows)

    def _check_heads(self, shape: ModelShape) -> None:
        if self.attention is not None and any(layer.attention.latent is not None for layer in shape.layers):
            raise ValueError(f"{KEY}.heads: {shape.name} caches latents that all heads share")

    @staticmethod
    def _check_fits(option: str, phases: Phases | None, total: int, inputs: int) -> None:
        if phases is None:
            return
        try:
            phases.check_fits(KEY, total, inputs)
        except ValueError as error:
            raise ValueError(str(error).replace(f"{KEY}.candidates", f"{KEY}.{option}")) from None


@dataclass(frozen=True)
class Bound:
    """Contextual sparsity on one device: ``shape`` is its part of the model; a share of units is a share of its own."""

    said: ContextualSparsity
    shape: ModelShape
    precision: Precision

    @property
    def wide(self) -> float:
        """Bytes of an activation; predictors are kept in their format."""
        return FORMATS[self.precision.activations].stored_bytes

    def resident(self, weight_bytes: Mapping[str, float]) -> dict[str, float]:
        """The predictors are held beside the weights."""
        out, d, said = dict(weight_bytes), self.shape.d_model, self.said
        for name, phases in (("mlp", said.mlp), ("attn", said.attention)):
            if phases is not None:
                rank = phases.height(d) or d
                units = [la.ffn.width if name == "mlp" else la.attention.kv_heads for la in self.shape.layers]
                out[f"{name}.predict"] = sum(self.wide * rank * (d + n) for n in units)
        return out

    def rewrite(self, ops: list[Op], work: Work) -> list[Op]:
        """Predictors, products and attention of what they name. Raises ValueError beside HiRE's FFN, or for shards."""
        if self.said.mlp is not None and any(op.name == "mlp.approx" for op in ops):
            raise ValueError(f"{KEY}.neurons: variants.hire.ffn chooses neurons already; leave one of them out")
        if any(".predict" in op.name for op in ops):
            raise ValueError(f"{KEY}: contextual_sparsity is listed twice; leave one of them out")
        gathered.check_shards(KEY, self.said.shards, ops)
        by_tag: dict[str, list[Op]] = {}
        for op in ops:
            by_tag.setdefault(op.kernel.split("/")[0], []).append(op)
        return [new for tag, part in by_tag.items() for new in self._layer(tag, part)]

    def _layer(self, tag: str, ops: list[Op]) -> list[Op]:
        layer, said = gathered.layer_of(tag, self.shape), self.said
        if layer is None:
            return ops
        if said.mlp is not None:
            ops = gathered.replaced(ops, "mlp.", lambda found: self._ffn(found, layer.ffn))
        if said.attention is not None:
            ops = self._heads(ops, layer.attention, said.attention)
        return ops

    # -- neurons

    def _ffn(self, ops: list[Op], block: Ffn) -> list[Op]:
        up, act, down = (gathered.named(ops, f"mlp.{part}") for part in ("up", "act", "down"))
        phases = self.said.mlp
        if phases is None or not np.max(up.inputs):
            return ops
        chosen = self._chosen(up, phases, block.width)
        bias_bytes = down.weight_bytes / (block.width + 1) if block.bias else 0.0
        fewer = {"mlp.up": gathered.by_column(up, chosen, block.up_factor), "mlp.act": gathered.fewer(act, chosen),
                 "mlp.down": gathered.by_row(down, chosen, bias_bytes)}  # fmt: skip
        after = {"mlp.up": self._waste(fewer["mlp.up"], up, chosen, block.up_factor),
                 "mlp.down": self._waste(fewer["mlp.down"], down, chosen, 1)}  # fmt: skip
        after["mlp.up"] += self._predictor(up, "mlp.predict", phases, block.width)
        sparse: list[Op] = []
        for op in ops:
            new = fewer.get(op.name) or gathered.with_companions(op, chosen, op.name.startswith("mlp.up"))
            sparse += [new, *after.get(op.name, [])]
        return gathered.blend(self._is_dense(phases, up, ops, sparse), ops, sparse)

    # -- heads

    def _heads(self, ops: list[Op], block: Attention, phases: Phases) -> list[Op]:
        """The projections of chosen heads, and at decode their attention; the predictor runs in every pass."""
        qkv, out = (gathered.named(ops, name) for name in ("attn.qkv", "attn.out"))
        kept = phases.units(phases.steps[0][1], block.kv_heads, self.said.shards)
        ops = [attended(op, kept / block.kv_heads) for op in ops]
        if not np.max(qkv.inputs):
            return ops
        chosen = self._chosen(qkv, phases, block.kv_heads)
        full = [op for op in ops if op.name in PROJECTED]
        sparse = [projected(op, chosen, block, self.shape.d_model) for op in full]
        extra = {
            "attn.qkv": self._waste(sparse[0], qkv, chosen, 1),
            "attn.out": self._waste(sparse[-1], out, chosen, 1),
        }
        predictor = self._predictor(qkv, "attn.predict", phases, block.kv_heads)
        dense = self._is_dense(phases, qkv, full, [*sparse, *extra["attn.qkv"], *extra["attn.out"], *predictor])
        done = {op.name: gathered.blend(dense, full, [op, *extra.get(op.name, [])]) for op in sparse}
        done["attn.qkv"] += predictor
        return [new for op in ops for new in done.get(op.name, [op])]

    # -- both

    def _chosen(self, op: Op, phases: Phases, total: int) -> Chosen:
        rows, each = gathered.rows_of(op), phases.units(phases.steps[0][1], total, self.said.shards)
        try:
            return Chosen.of(rows, total, each, 1, phases.overlap)
        except ValueError as error:
            raise ValueError(f"{KEY}.{error}") from None

    def _predictor(self, op: Op, base: str, phases: Phases, units: int) -> list[Op]:
        """Scores from a low-rank product and the best of them; in the product's own kernel with look-ahead."""
        ops = [*gathered.scorer(op, base, units, phases.height(op.inner), None), gathered.select(op, base, units)]
        return [replace(one, kernel=op.kernel) for one in ops] if self.said.lookahead else ops

    def _waste(self, fewer: Op, full: Op, chosen: Chosen, parts: int) -> list[Op]:
        return gathered.with_waste(fewer, full, chosen, 1, self.said.half_chunk_bytes * parts)[1:]

    @staticmethod
    def _is_dense(phases: Phases, op: Op, full: list[Op], sparse: list[Op]) -> Any:
        if phases.dense_rows is not None:
            return gathered.rows_of(op) >= phases.dense_rows
        dense, moved = (sum((one.weight_bytes for one in part), 0.0 * op.weight_bytes) for part in (full, sparse))
        return (moved >= dense) & (dense > 0)
