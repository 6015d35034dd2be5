"""What a pass costs: (shape, device, precision, layout) fixed once, then work -> seconds, joules, bytes, causes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from functools import cache
from typing import Any, Literal

import numpy as np

from sim.analytic.attention import AttentionCost
from sim.analytic.hardware import Device
from sim.analytic.layout import Layout, Stage
from sim.analytic.memory import (
    DoesNotFit,
    MemoryBudget,
    cross_bytes_per_token,
    kv_bytes_per_token,
    memory_budget,
    weight_bytes,
)
from sim.analytic.model import ModelShape
from sim.analytic.ops import Driver, Op, ops
from sim.analytic.placement import place, shard
from sim.analytic.precision import Precision
from sim.analytic.product import ProductCost
from sim.analytic.rewrite import apply, bound, in_stages
from sim.analytic.roofline import CAUSES, Bound, hbm_bytes, joules, kernels, larger, on_device, onchip_bytes, streams
from sim.analytic.tables import Table
from sim.analytic.work import Work

__all__ = ["CAUSES", "DoesNotFit", "Layout", "MemoryBudget", "PassCost", "memory_budget"]

Array = Any  # float64 array of shape [rounds]; a float where all of the work is ints
Piece = tuple[Any, tuple[Any, ...]]  # a Table, AttentionCost or ProductCost, and the columns of the work that it takes
WorkOf = Callable[[Any, Any, Any], Work]  # (pairs, reads, tokens) -> a pass with nothing else in it
KernelsOf = Callable[[Any, Any, Any], list[list[Op]]]  # the same -> its kernels


class PassCost:
    """Cost of one forward pass of a model on one device (or on each device of one stage of a layout).

    A pipeline is several of these (sim/analytic/staged.py). Work is that of one data rank; ``everywhere`` says what the
    ranks have together. ``variants`` rewrite shape, precision and ops, in order (see sim/variants).
    ``onchip_claim``: bytes of on-chip
    memory that something of higher rank holds. All results are elementwise over rounds and have the same bits
    whether one round is asked for or many. Raises ValueError where the layout does not divide the model.
    """

    def __init__(
        self,
        shape: ModelShape,
        device: Device,
        precision: Precision | None = None,
        layout: Layout | None = None,
        attention: Literal["flash", "standard"] = "flash",
        variants: Sequence[Any] = (),
        onchip_claim: float = 0,
        stage: Stage | None = None,
    ) -> None:
        """Apply variants, cut the shape, place the weights, and prepare what :meth:`seconds` looks up.

        ``stage``: which part of a pipeline; without it, a layout with stages raises ValueError.
        """
        if stage is None and layout is not None and layout.pipeline > 1:
            raise ValueError(f"layout.pipeline: {layout.pipeline}: a PassCost is one stage; use pass_cost for all")
        precision, layout, variants = precision or Precision(), layout or Layout(), in_stages(variants)
        shape, precision = apply(variants, "reshape", shape), apply(variants, "reformat", precision)
        self.shape, self.device, self.precision, self.layout = shape, device, precision, layout
        self.attention, self.variants = attention, tuple(variants)
        self.stage = stage or Stage()
        self.local = shard(self.stage.of(shape), layout)
        self._bound = bound(variants, self.local, precision, device)
        held_here = weight_bytes(self.local, precision)
        if not self.stage.holds_table(shape):
            del held_here["embed"]
        self.weight_bytes_by_op = apply(self._bound, "resident", held_here)
        self.bytes_weights: float = sum(self.weight_bytes_by_op.values())
        held = kv_bytes_per_token(self.local, precision)
        self.kv_bytes_per_token: tuple[float, ...] = apply(self._bound, "cached", held)
        self.cross_bytes_per_token = cross_bytes_per_token(self.local, precision)
        self.placement = place(device, self.bytes_weights, onchip_claim)
        self._buckets: tuple[int, ...] = ()
        self._tabulate()

    def at_clock(self, MHz: int) -> PassCost:
        """The same with the device's compute units at another clock. Raises ValueError where it has none."""
        return self.on(self.device.at_clock(MHz))

    def on(self, device: Device) -> PassCost:
        """The same on a device that holds as much and runs at other rates; what lies on chip stays there."""
        other = copy(self)
        other.device = device
        other._bound = bound(self.variants, self.local, self.precision, device)
        other._tabulate()
        return other

    def padded(self, buckets: tuple[int, ...]) -> PassCost:
        """The same in an engine that pads the tokens of a pass to the next of ``buckets``, ascending."""
        other = copy(self)
        other._buckets = buckets
        other._tabulate()
        return other

    # -- the hot path

    def seconds(self, work: Work) -> Array:
        """Seconds of each round (elementwise; the engine's host time is not part of it)."""
        total = self._tokens.seconds(work.tokens) + self._rows.seconds(work.logit_rows)
        if self._shared:
            total = total + self._everywhere.seconds(work.everywhere)
        for piece, columns in self._pieces(work):
            total = total + piece.seconds(*columns)
        return total + self._loose(work, 0) if self._is_loose else total

    def decode_line(self) -> tuple[Table, Table, tuple[AttentionCost, ...]] | None:
        """All that a pass of decodes alone is made of: tables of tokens and of logit rows, a kernel by attention kind.

        None where there is more to it (latent attention, an encoder, kernels that no table covers).
        """
        parts = tuple(part for _, part in self._decode)
        found = [kind for kind, _ in self._decode]  # none in a pass that attends to nothing
        whole = not found or found == list(range(len(self.local.windows)))
        odd = any(
            part.fused or part.tile_s or part.onchip_tile_s or part.link_read_s or (part.floor_s and not part.pair_s)
            for part in parts
        )
        more = odd or self._is_loose or self._is_latent or self.local.encoder or not self.layout.plain
        return (self._tokens, self._rows, parts) if whole and not more else None

    def prefill_line(self) -> tuple[AttentionCost, ...]:
        """The kernels that prompts add to a pass for which :meth:`decode_line` speaks, one by attention kind."""
        return tuple(part for _, part in self._prefill)

    def joules(self, work: Work) -> Array:
        """Dynamic joules of each round on all devices of the layout; NaN where the device's energy is unknown.

        Static power is for the clock to add.
        """
        total = self._tokens.joules(work.tokens) + self._rows.joules(work.logit_rows)
        if self._shared:
            total = total + self._everywhere.joules(work.everywhere)
        for piece, columns in self._pieces(work):
            total = total + piece.joules(*columns)
        total = total + self._loose(work, 1) if self._is_loose else total
        return total * self.layout.devices

    # -- the same from the ops, for reports

    def ops(self, work: Work) -> list[Op]:
        """The pass as named ops on one device, variants applied."""
        done = ops(
            self.local,
            self.precision,
            work,
            attention=self.attention,
            tile_bytes=self.placement.tile_bytes,
            layout=self.layout,
            stage=self.stage,
        )
        return apply(self._bound, "rewrite", done, work)

    def workspace_bytes(self, tokens: int, rows: int) -> float:
        """Memory that the activations of a pass take: the largest op's inputs and outputs, and the logits.

        A lower bound on what engines measure in their profile run.
        """
        return max(float(op.activation_bytes) for op in self.ops(Work(tokens, rows, encoder_tokens=tokens)))

    def bounds(self, work: Work) -> list[tuple[list[Op], Bound]]:
        """Every kernel of the pass with its times."""
        return [(kernel, on_device(kernel, self.device, self.placement)) for kernel in kernels(self.ops(work))]

    def causes(self, work: Work) -> dict[str, Array]:
        """Seconds by what bound each kernel (CAUSES); they sum to :meth:`seconds` up to float rounding."""
        totals: dict[str, Array] = dict.fromkeys(CAUSES, 0.0)
        found = self.bounds(work)
        for kernel, times in found:
            share = self._seen(kernel[0].driver, found) if _is_wire(kernel) else 1.0
            for cause, seconds in times.causes().items():
                totals[cause] = totals[cause] + seconds * share
        return totals

    def _seen(self, driver: Driver, found: Sequence[tuple[list[Op], Bound]]) -> Array:
        """Share of the seconds of collectives that are not hidden behind what runs beside them."""
        if self.layout.overlap == "none":
            return 1.0
        mine = [(_is_wire(kernel), times.seconds) for kernel, times in found if kernel[0].driver == driver]
        sent, rest = (_add(seconds for wire, seconds in mine if wire == which) for which in (True, False))
        return np.maximum(sent - rest, 0.0) / np.where(sent > 0, sent, 1.0)

    def counts(self, work: Work) -> dict[str, Array]:
        """Totals of one device: ``flops`` (matrix products), ``vector_flops``, bytes by kind and by level.

        ``weight_bytes``, ``kv_bytes`` and ``activation_bytes`` go through main memory and add up to ``hbm_bytes``.
        """
        done = self.ops(work)
        hbm = [(k[0].layers, hbm_bytes(k, self.placement)) for k in kernels(done)]
        weights, kv, activations = (_add(layers * b[i] for layers, b in hbm) for i in range(3))
        return {
            "flops": _add(op.layers * op.flops for op in done if op.unit == "tensor"),
            "vector_flops": _add(op.layers * op.flops for op in done if op.unit == "vector"),
            "weight_bytes": weights,
            "kv_bytes": kv,
            "activation_bytes": activations,
            "hbm_bytes": weights + kv + activations,
            "onchip_bytes": _add(op.layers * onchip_bytes([op]) for op in done),
            "link_bytes": _add(op.layers * op.link_bytes for op in done),
        }

    # -- how the two are tied together: ops are evaluated once for each table and each attention kernel

    def _pieces(self, work: Work) -> Iterator[Piece]:
        """Everything beyond ``tokens`` and ``logit_rows``, in the order in which it is added up."""
        limit = len(self._tokens)
        if work.decode_pairs is not None and work.decode_reads is not None:
            tokens = work.tokens if work.prefill_pairs is None else work.tokens - work.prefill_tokens
            for kind, part in self._decode:
                yield part, (work.decode_pairs[kind], work.decode_reads[kind], tokens, limit)
            if self._is_latent:
                yield self._absorb, (tokens,)
        if work.prefill_pairs is not None and work.prefill_reads is not None:
            tokens = work.tokens if work.decode_pairs is None else work.prefill_tokens
            for kind, part in self._prefill:
                yield part, (work.prefill_pairs[kind], work.prefill_reads[kind], tokens, limit)
            for kind, product in self._decompress:
                yield product, (tokens + work.prefill_reads[kind],)
        if self.local.encoder:
            yield from self._encoder_pieces(work)

    def _encoder_pieces(self, work: Work) -> Iterator[Piece]:
        yield self._encoder, (work.encoder_tokens,)
        for _, part in self._encoder_attention:
            yield part, (work.encoder_pairs, 0, work.encoder_tokens)
        yield self._cross_kv, (work.cross_kv_tokens,)
        for _, part in self._cross:
            yield part, (work.cross_pairs, work.cross_reads, work.tokens)

    def _tabulate(self) -> None:
        kinds = range(len(self.local.windows))
        self._is_latent = any(layer.attention.latent is not None for layer in self.local.layers)
        self._covered: set[tuple[str, Driver]] = set()
        ones = (1,) * len(kinds)
        whole = self.ops(Work(2, 1, ones, ones, ones, ones, 1, 1, 1, 1, 1, 1, 2))
        self._drivers = {op.driver for op in whole}  # what no op follows is not asked for below
        self._tokens = self._table("tokens", lambda n: Work(n, 0), self._buckets)
        self._rows = self._table("rows", lambda n: Work(0, n))
        self._shared = self.layout.data > 1
        self._everywhere = self._table("everywhere", lambda n: Work(0, 0, everywhere=n))
        self._absorb = self._table("decode_tokens", lambda n: self._half("decode", 0, 0, n))
        self._decompress = [(k, product) for k in kinds for product in self._products(("decompress", k))]
        self._encoder = self._table("encoder", lambda n: Work(0, 0, encoder_tokens=n))
        self._cross_kv = self._table("cross_kv", lambda n: Work(0, 0, cross_kv_tokens=n))
        self._decode = self._attention("decode")
        self._prefill = self._attention("prefill")
        self._encoder_attention = self._linear(
            "encoder_pairs", 0, lambda p, _, n: Work(0, 0, encoder_tokens=n, encoder_pairs=p)
        )
        self._cross = self._linear("cross", 0, lambda p, r, n: Work(n, 0, cross_pairs=p, cross_reads=r))
        self._is_loose = bool({(op.kernel, op.driver) for op in whole} - self._covered)

    def _half(self, half: str, pairs: Any, reads: Any, tokens: Any) -> Work:
        """Work of one half alone, the same for every attention kind."""
        kinds = len(self.local.windows)
        columns = {f"{half}_pairs": (pairs,) * kinds, f"{half}_reads": (reads,) * kinds}
        return Work(tokens, 0, **columns, prefill_tokens=tokens if half == "prefill" else 0)

    def _kernels(self, work: Work, driver: Driver) -> list[list[Op]]:
        return list(kernels(op for op in self.ops(work) if op.driver == driver))

    def _evaluate(self, kernel: Sequence[Op], plain: bool = False) -> tuple[Bound, Array]:
        return on_device(kernel, self.device, self.placement, plain), joules(kernel, self.device, self.placement)

    def _table(self, driver: Driver, work_of: Callable[[Any], Work], buckets: tuple[int, ...] = ()) -> Table:
        """Cost of all the kernels that depend on one column of the work, by its value."""

        def build(counts: Any) -> tuple[Array, Array]:
            found = self._kernels(work_of(counts), driver)
            pairs = [self._evaluate(kernel) for kernel in found]
            return self._together(found, [bound.seconds for bound, _ in pairs]), _add(energy for _, energy in pairs)

        if driver in self._drivers:
            self._covered |= {(kernel[0].kernel, driver) for kernel in self._kernels(work_of(1), driver)}
        return Table(build, buckets)

    def _together(self, found: Sequence[Sequence[Op]], seconds: Sequence[Array]) -> Array:
        """Seconds of the kernels that follow one column of the work; collectives may run beside the others."""
        if self.layout.overlap == "none":
            return _add(seconds)
        sent, rest = (
            _add(one for kernel, one in zip(found, seconds, strict=True) if _is_wire(kernel) == wire)
            for wire in (True, False)
        )
        return larger(sent, rest)

    def _products(self, driver: Driver) -> list[ProductCost]:
        """The kernels of ``driver``, which follow the rows of one product, costed from a single row."""
        if driver not in self._drivers:
            return []
        one, many = (self._kernels(self._half("prefill", 0, 0, rows), driver) for rows in (1, 1013))
        found = [ProductCost(tuple(kernel), self._evaluate) for kernel in one]
        linear = [product for product, kernel in zip(found, many, strict=True) if product.agrees(kernel, 1013)]
        self._covered |= {(product.kernel[0].kernel, driver) for product in linear}
        return linear

    def _attention(self, half: str) -> list[tuple[int, AttentionCost]]:
        """(kind, cost) of the attention kernels of one half."""
        kinds = range(len(self.local.windows))
        found = [self._linear((half, k), k, lambda p, r, n: self._half(half, p, r, n)) for k in kinds]
        return [part for parts in found for part in parts]

    def _linear(self, driver: Driver, kind: int, work_of: WorkOf) -> list[tuple[int, AttentionCost]]:
        """The kernels of ``driver`` that are linear in the work; what is not is left to :meth:`_loose`."""
        if driver not in self._drivers:
            return []
        parts, kept = [], cache(lambda p, r, n: self._kernels(work_of(p, r, n), driver))

        def kernels_of(pairs: Any, reads: Any, tokens: Any) -> list[list[Op]]:
            is_one = type(tokens) is int  # a point that every kernel is probed at; no array is
            return kept(pairs, reads, tokens) if is_one else self._kernels(work_of(pairs, reads, tokens), driver)

        for i, kernel in enumerate(kernels_of(1, 1, 1)):
            part = AttentionCost.probe(self._probe(i, kernels_of), self._spill_from(i, kernels_of))
            if part is not None:
                part = part.with_terms(kernel, self.device)
                parts.append((kind, part))
                self._covered.add((kernel[0].kernel, driver))
        return parts

    def _probe(self, index: int, kernels_of: KernelsOf) -> Callable[[Any, Any, Any], tuple[Bound, Array]]:
        return lambda p, r, n: self._evaluate(kernels_of(p, r, n)[index], plain=True)

    def _spill_from(self, index: int, kernels_of: KernelsOf) -> float:
        """Tokens from which some op of the kernel has more activations than fit on chip."""
        kernel = kernels_of(0, 0, 1)[index]
        if streams(kernel, self.device):
            return 0.0
        widest = max(float(op.activation_bytes) for op in kernel)
        return self.placement.free_bytes / widest if widest else float("inf")

    def _loose(self, work: Work, column: int) -> Array:
        """Seconds (column 0) or joules (1) of kernels that no table covers: standard attention, odd variants."""
        rest = (op for op in self.ops(work) if (op.kernel, op.driver) not in self._covered)
        return _add((bound.seconds, energy)[column] for bound, energy in map(self._evaluate, kernels(rest)))


def _is_wire(kernel: Sequence[Op]) -> bool:
    """Whether it is a collective, or a message to the next stage."""
    return kernel[0].unit == "link" and kernel[0].group > 1


def _add(terms: Iterable[Array]) -> Array:
    """Terms added left to right, in the order written; 0.0 for none."""
    total: Array = np.float64(0.0)
    for term in terms:
        total = total + term
    return total
