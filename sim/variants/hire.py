"""HiRE: approximate scores find candidates, exact products run on those alone (Yerram et al. 2024, arXiv 2402.09360).

Phase 1 scores every unit with a low-rank matrix (LR), one of few bits (Q), or both; phase 2 gathers the k' > k best
and computes them exactly. Of the softmax the units are tokens, of the FFN neurons (in groups) of a model trained with
top-k activations, of attention cached keys. Over ``shards`` machines each names its own share (DA-TOP-k). A batch reads
the union of what its rows chose.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, ClassVar

import numpy as np

from sim.analytic.hardware import Device
from sim.analytic.model import Ffn, ModelShape
from sim.analytic.ops import Op
from sim.analytic.precision import FORMATS, Precision
from sim.analytic.work import Work
from sim.quality import UNKNOWN, Quality
from sim.variants import gathered
from sim.variants.gathered import Chosen
from sim.variants.hire_attention import two_phase_attention
from sim.variants.hire_options import Phases, Reach, chunk, parsed
from sim.variants.options import whole

__all__ = ["Hire"]

KEY = "variants.hire"
SOFTMAX: Mapping[str, Any] = {"candidates": 384, "keep": 32, "rank": 0.25, "bits": 4}
FFN: Mapping[str, Any] = {"candidates": 0.1, "keep": 0.05, "rank": None, "bits": 4, "group": 8}
ATTENTION: Mapping[str, Any] = {"candidates": 256, "dims": 0.25}
DECK = "top-1 accuracy of next tokens, {} -> {} %, a 1B model trained with top-k; lecture 000, tables Results I and II"
# Softmax settings of the deck -> (loss in percent of 57.15, accuracy); with the FFN in int4 beside the last: 57.01.
MEASURED = {(384, 0.25, None): 57.07, (128, None, 4): 57.12, (384, 0.25, 4): 57.07}
BASE_ACCURACY = 57.15


@dataclass(frozen=True)
class Hire:
    """``softmax``, ``ffn``: options of :class:`Phases`, ``attention``: of :class:`Reach`; true: the defaults, or none.

    ``shards``: machines that the matrices are cut over, the scenario's ``layout.tensor``: each chooses its share of
    candidates. ``half_chunk_bytes``: chunks of that size are gathered at half of the memory bandwidth.
    """

    name: ClassVar[str] = "hire"
    softmax: Any = True
    ffn: Any = None
    attention: Any = None
    shards: int = 1
    half_chunk_bytes: float = 512.0

    def __post_init__(self) -> None:
        """Raise ValueError naming option, value and what is allowed."""
        whole(f"{KEY}.shards", self.shards, 1, 4096)
        chunk(f"{KEY}.half_chunk_bytes", self.half_chunk_bytes)
        kinds = (("softmax", Phases, SOFTMAX), ("ffn", Phases, FFN), ("attention", Reach, ATTENTION))
        for option, kind, usual in kinds:
            object.__setattr__(self, option, parsed(kind, f"{KEY}.{option}", getattr(self, option), **usual))
        if self.softmax is None and self.ffn is None and self.attention is None:
            raise ValueError(f"{KEY}.softmax: off, as are ffn and attention; leave the variant out")

    def reshape(self, shape: ModelShape) -> ModelShape:
        """The shape with an attention kind for each k' of attention. Raises ValueError where it does not apply."""
        if not shape.layers or (self.softmax is not None and not shape.head):
            raise ValueError(f"{KEY}.softmax: {shape.name} has no decoder with an output head")
        if self.softmax is not None:
            self.softmax.check_fits(f"{KEY}.softmax", shape.vocab, shape.d_model)
        for layer in shape.layers if self.ffn is not None else ():
            if layer.ffn.experts:
                raise ValueError(f"{KEY}.ffn: {shape.name} has experts, which are chosen already")
            self.ffn.check_fits(f"{KEY}.ffn", layer.ffn.width, shape.d_model)
        return shape if self.attention is None else self._with_kinds(shape, self.attention)

    def bound(self, shape: ModelShape, precision: Precision, device: Device | None = None) -> Bound:
        """What knows the part of the shape that one device computes. Raises ValueError where keys became latents."""
        if self.attention is not None:
            self._check_keys(shape)
        return Bound(self, shape, precision)

    @property
    def quality(self) -> Quality:
        """Measured for the settings of the deck's tables, unknown for others."""
        head = self.softmax
        if head is None or self.attention is not None or self.ffn is not None or self.shards > 1:
            return UNKNOWN
        after = MEASURED.get((head.candidates, head.rank, head.bits))
        if after is None:
            return UNKNOWN
        lost = 100 * (BASE_ACCURACY - after) / BASE_ACCURACY
        return Quality(round(lost, 3), DECK.format(BASE_ACCURACY, after), "arXiv 2402.09360")

    @staticmethod
    def _check_keys(shape: ModelShape) -> None:
        if any(layer.attention.latent is not None for layer in shape.layers):
            raise ValueError(f"{KEY}.attention: {shape.name} caches latents, not keys to choose from")

    def _with_kinds(self, shape: ModelShape, reach: Reach) -> ModelShape:
        self._check_keys(shape)
        blocks = [layer.attention for layer in shape.layers]
        if all(block.window is not None for block in blocks):
            raise ValueError(f"{KEY}.attention: every layer of {shape.name} has a window; there is nothing to choose")
        more = tuple(k + 1 for _, k in reach.steps if k + 1 not in shape.extra_windows)
        return replace(shape, extra_windows=(*shape.extra_windows, *dict.fromkeys(more)))


@dataclass(frozen=True)
class Bound:
    """HiRE on one device: ``shape`` is its part of the model."""

    said: Hire
    shape: ModelShape
    precision: Precision

    def resident(self, weight_bytes: Mapping[str, float]) -> dict[str, float]:
        """The approximate matrices are held beside the exact ones."""
        out, d = dict(weight_bytes), self.shape.d_model
        if self.said.softmax is not None:
            out["logits.approx"] = self._held(self.said.softmax, d, self.shape.vocab)
        if self.said.ffn is not None:
            each = [self._held(self.said.ffn, d, layer.ffn.width) for layer in self.shape.layers]
            out["mlp.approx"] = sum(each)
        return out

    def rewrite(self, ops: list[Op], work: Work) -> list[Op]:
        """Both phases in place of the dense ops. Raises ValueError where ``shards`` is not the layout's."""
        gathered.check_shards(KEY, self.said.shards, ops)
        for option, phases, name in (("softmax", self.said.softmax, "logits"), ("ffn", self.said.ffn, "mlp.up")):
            if phases is not None and any(op.name == name and np.max(op.inputs) and not op.inner for op in ops):
                raise ValueError(f"{KEY}.{option}: another variant chooses units of {name} already; leave one out")
        done: list[Op] = []
        for tag, part in groupby(ops, key=lambda op: op.kernel.split("/")[0]):
            done += self._part(tag, list(part), work)
        return done

    def _part(self, tag: str, ops: list[Op], work: Work) -> list[Op]:
        said = self.said
        if tag == "head":
            return ops if said.softmax is None else self._head(ops, said.softmax)
        layer = gathered.layer_of(tag, self.shape)
        if layer is None:
            return ops
        if said.ffn is not None:
            ops = gathered.replaced(ops, "mlp.", lambda found: self._ffn(found, layer.ffn))
        if said.attention is not None and layer.attention.window is None:
            ops = two_phase_attention(ops, work, self.shape, layer.attention, said.attention)
        return ops

    def _head(self, ops: list[Op], phases: Phases) -> list[Op]:
        """Scores of all tokens, exact logits of the candidates, a sample among those."""
        return gathered.replaced(ops, ("logits", "sample"), lambda full: self._softmax(full, phases))

    def _softmax(self, full: list[Op], phases: Phases) -> list[Op]:
        op = gathered.named(full, "logits")
        if not np.max(op.inputs):
            return full
        chosen = self._chosen(op, phases, self.shape.vocab)
        first = self._scored(op, "logits", phases, self.shape.vocab)
        second = self._gathered(full, "logits", chosen, phases)
        sample = gathered.fewer(gathered.named(full, "sample"), chosen)
        return self._or_dense(op, phases, full, [*first, *second, sample])

    def _ffn(self, ops: list[Op], block: Ffn) -> list[Op]:
        """Scores of all neurons (of the gate, where there is one), and the candidates' part of both matrices."""
        up, act, down = (gathered.named(ops, f"mlp.{part}") for part in ("up", "act", "down"))
        phases = self.said.ffn
        if phases is None or not np.max(up.inputs):
            return ops
        width, parts = block.width, block.up_factor
        chosen, d = self._chosen(up, phases, width), self.shape.d_model
        wide = FORMATS[self.precision.activations].stored_bytes
        first = self._scored(up, "mlp", phases, width, width * wide * block.bias)
        second = self._gathered(ops, "mlp.up", chosen, phases, parts)
        bias_bytes = down.weight_bytes * (d / (width * d + d)) if block.bias else 0.0
        rows = gathered.rows_of(up)
        kept = Op("mlp.keep", act.kernel, "vector", "fp32", "elementwise", act.driver, act.layers,
                  flops=rows * chosen.each, activation_bytes=rows * chosen.each * wide)  # fmt: skip
        third = self._gathered(ops, "mlp.down", chosen, phases, 0, bias_bytes)
        return self._or_dense(up, phases, ops, [*first, *second, gathered.fewer(act, chosen), kept, *third])

    def _chosen(self, op: Op, phases: Phases, total: int) -> Chosen:
        rows = gathered.rows_of(op)
        each = phases.each(rows, total, self.said.shards)
        try:
            return Chosen.of(rows, total, each, phases.group, phases.overlap)
        except ValueError as error:
            raise ValueError(f"{KEY}.{error}") from None

    def _scored(self, op: Op, base: str, phases: Phases, columns: int, bias_bytes: float = 0.0) -> list[Op]:
        rows = gathered.rows_of(op)
        runs = bias_bytes * (np.asarray(rows) > 0) if bias_bytes else 0.0
        scores = gathered.scorer(op, base, columns, phases.height(op.inner), phases.grid, runs)
        return [*scores, gathered.select(op, base, columns)]

    def _gathered(
        self, ops: list[Op], name: str, chosen: Chosen, phases: Phases, parts: int = 1, bias_bytes: Any = 0.0
    ) -> Iterator[Op]:
        """The op called ``name`` and its companions, of the candidates alone; ``parts`` 0: chosen by row."""
        half = self.said.half_chunk_bytes
        for op in ops:
            if op.name == name:
                fewer = gathered.by_column(op, chosen, parts) if parts else gathered.by_row(op, chosen, bias_bytes)
                yield from gathered.with_waste(fewer, op, chosen, phases.group, half * max(1, parts))
            elif op.name.startswith(f"{name}."):
                yield gathered.with_companions(op, chosen, parts > 0)

    def _or_dense(self, op: Op, phases: Phases, full: list[Op], sparse: list[Op]) -> list[Op]:
        """The dense ops where the pass has too many rows for two phases."""
        if phases.dense_rows is not None:
            return gathered.blend(gathered.rows_of(op) >= phases.dense_rows, full, sparse)
        dense, moved = (sum((one.weight_bytes for one in part), 0.0 * op.weight_bytes) for part in (full, sparse))
        return gathered.blend((moved >= dense) & (dense > 0), full, sparse)

    def _held(self, phases: Phases, d: int, columns: int) -> float:
        wide = FORMATS[self.precision.activations].stored_bytes
        rank = phases.height(d)
        stored = columns * (rank or d) * wide if phases.grid is None else phases.grid.matrix_bytes(rank or d, columns)
        return stored + (d * rank * wide if rank else 0.0)
