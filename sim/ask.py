"""Questions that need no clock: what fits, what binds, what saturates first; points for a roofline plot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sim.analytic.cost import MemoryBudget, memory_budget
from sim.analytic.hardware import Device, Engine
from sim.analytic.layout import Layout, check_layout
from sim.analytic.model import ModelShape
from sim.analytic.ops import Op
from sim.analytic.precision import Precision
from sim.analytic.roofline import Bound, hbm_bytes, on_device, onchip_bytes
from sim.analytic.staged import Cost, pass_cost
from sim.analytic.work import Totals, Work, reads_of
from sim.uncertain.ranges import outside

__all__ = ["Explanation", "Limit", "OpView", "explain", "roofline_points", "view"]

Phase = Literal["prefill", "decode"]
MOST_BATCH = 1 << 16


@dataclass(frozen=True)
class OpView:
    """One op of a pass on one device, summed over the layers: a point of the roofline plot.

    ``intensity``: FLOP per byte of main-memory traffic (infinite where there is none). ``seconds``: its share of its
    kernel's time; ``bound``: what bound that kernel (``roofline.CAUSES``). ``attained_flops``: FLOP per second.
    """

    op: str
    phase: str
    unit: str
    format: str
    flops: float
    hbm_bytes: float
    onchip_bytes: float
    seconds: float
    bound: str

    @property
    def intensity(self) -> float:
        """FLOP per byte of main-memory traffic."""
        return self.flops / self.hbm_bytes if self.hbm_bytes else (inf if self.flops else 0.0)

    @property
    def attained_flops(self) -> float:
        """FLOP per second while the op runs."""
        return self.flops / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Limit:
    """Something that runs out as the decode batch grows: what, and at which batch (None: not before MOST_BATCH)."""

    what: str
    batch: int | None


@dataclass(frozen=True)
class Explanation:
    """Everything `explain` says, as plain values; bytes and seconds of one device of the layout.

    ``kv_tokens``, ``kv_sequences``: how many fit into the KV pool (sequences of ``context`` tokens; windows need
    less). ``ridge_point``: FLOP per byte where the linear layers turn compute-bound. ``limits``: what saturates as
    the decode batch grows, first one first. ``decode_s`` and ``prefill_s`` are seconds of one pass, host time of
    the engine included.
    """

    model: str
    device: str
    parameters: int
    batch: int
    prompt: int
    context: int
    budget: MemoryBudget
    kv_bytes_per_token: float
    kv_tokens: int
    kv_sequences: int
    ridge_point: float
    prefill_s: float
    decode_s: float
    decode_joules: float
    causes: Mapping[str, Mapping[str, float]]
    ops: tuple[OpView, ...]
    points: tuple[OpView, ...]
    limits: tuple[Limit, ...]
    notes: tuple[str, ...]

    @property
    def first_limit(self) -> Limit:
        """What saturates first when the decode batch is raised."""
        return self.limits[0]

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second of the decode batch that was asked about."""
        return self.batch / self.decode_s


def explain(
    shape: ModelShape,
    device: Device,
    precision: Precision | None = None,
    layout: Layout | None = None,
    *,
    engine: Engine | None = None,
    memory_fraction: float | None = None,
    batch: int = 1,
    prompt: int = 1024,
    context: int = 1024,
    draft_bytes: float = 0.0,
    variants: Sequence[Any] = (),
) -> Explanation:
    """Say what fits, what binds and what saturates first; see :class:`Explanation`.

    ``batch`` sequences decode at ``context`` tokens each; ``prompt`` tokens of one sequence are prefilled.
    ``memory_fraction`` and the batch limit come from the engine where not given. Raises DoesNotFit with the
    arithmetic, ValueError for a layout that does not divide the model or numbers below 1.
    """
    _positive(batch=batch, prompt=prompt, context=context)
    if not shape.layers:
        raise ValueError(f"{shape.name}: an encoder alone has no decode phase to explain; use roofline_points")
    cost = pass_cost(shape, device, precision, layout, variants)
    check_layout(cost.shape, cost.layout)
    engine = engine or Engine("ideal")
    fraction = memory_fraction if memory_fraction is not None else engine.memory_fraction or 1.0
    budget = _budget(cost, draft_bytes, fraction, max(prompt, engine.token_budget or 0), batch)
    works = _works(cost, batch, prompt, context)
    slots, ranks = cost.layout.pipeline, cost.layout.data
    host_s = engine.step_s + engine.layer_s * len(cost.local.layers)
    fits = ranks * int(budget.kv_pool_bytes // sequence_bytes(cost, context, prompt if shape.encoder else 0))
    return Explanation(
        model=shape.name,
        device=device.name,
        parameters=shape.total_parameters,
        batch=batch,
        prompt=prompt,
        context=context,
        budget=budget,
        kv_bytes_per_token=sum(cost.kv_bytes_per_token),
        kv_tokens=ranks * int(budget.kv_pool_bytes // sum(cost.kv_bytes_per_token)),
        kv_sequences=fits,
        ridge_point=device.ridge_point(cost.precision.product_format(cost.precision.weights)),
        prefill_s=slots * (float(cost.seconds(works["prefill"])) + host_s + engine.sequence_s),
        decode_s=slots * (float(cost.seconds(works["decode"])) + host_s + engine.sequence_s * _share(cost, batch)),
        decode_joules=float(cost.joules(works["decode"])),
        causes={phase: {k: float(v) for k, v in cost.causes(work).items()} for phase, work in works.items()},
        ops=tuple(point for phase, work in works.items() for point in view(cost, work, phase)),
        points=tuple(roofline_points(cost, works)),
        limits=_limits(cost, prompt, context, fits, engine),
        notes=_notes(cost, list(works.values())),
    )


def roofline_points(cost: Cost, works: Mapping[Any, Work]) -> list[OpView]:
    """The kernels of several passes, each labelled by its key; none lies above the roof.

    Fused ops are one point, named after the kernel, since they overlap; FLOPs are those of the matrix products where
    the kernel has some. ``pandas.DataFrame(roofline_points(...))`` is ready to plot.
    """
    points: list[OpView] = []
    for phase, work in works.items():
        merged: dict[str, OpView] = {}
        for kernel, bound in cost.bounds(work):
            _gather(merged, _fused(kernel, list(_points(cost, kernel, bound, phase))))
        points += merged.values()
    return points


def view(cost: Cost, work: Work, phase: str) -> list[OpView]:
    """The ops of one pass (fields of work: ints) in order of execution, those of equal name summed."""
    merged: dict[str, OpView] = {}
    for kernel, bound in cost.bounds(work):
        for point in _points(cost, kernel, bound, phase):
            _gather(merged, point)
    return list(merged.values())


def sequence_bytes(cost: Cost, context: int, source: int = 0) -> float:
    """KV bytes of one sequence of ``context`` tokens on one device; a window keeps at most its own width.

    ``source``: tokens of the encoder whose keys and values cross attention keeps.
    """
    kept = (reads_of(context, None if w is None else w + 1) for w in cost.shape.windows)
    own = sum(per_token * float(n) for per_token, n in zip(cost.kv_bytes_per_token, kept, strict=True))
    return own + cost.cross_bytes_per_token * source


def _share(cost: Cost, batch: Totals) -> Totals:
    """Of ``batch`` sequences, those of the fullest micro-batch of the fullest rank (sim/serving/dealt.py)."""
    return -(-batch // (cost.layout.pipeline * cost.layout.data))


def _works(cost: Cost, batch: Totals, prompt: int, context: int) -> dict[Phase, Work]:
    """One prompt's prefill, and a decode round of ``batch`` sequences, as a device of the layout sees them; an encoder
    reads the prompt if there is one.
    """
    shape = cost.shape
    decode = Work.decode(_share(cost, batch), context, windows=shape.windows)
    decode = decode._replace(everywhere=-(-batch // cost.layout.pipeline))
    if not shape.encoder:
        prefill = Work.prefill(1, prompt, shape.windows)._replace(everywhere=prompt)
        return {"prefill": prefill, "decode": decode}
    crossing = decode._replace(cross_pairs=batch * prompt, cross_reads=batch * prompt)
    return {"prefill": Work.encode(1, prompt), "decode": crossing}


def _points(cost: Cost, kernel: list[Op], bound: Bound, phase: str) -> Iterable[OpView]:
    """Ops of one kernel; its seconds are shared in proportion to what each op would take alone."""
    alone = [float(on_device([op], cost.device, cost.placement).seconds) for op in kernel]
    causes = {cause: float(seconds) for cause, seconds in bound.causes().items()}
    cause = max(causes, key=lambda name: causes[name])
    for op, seconds in zip(kernel, alone, strict=True):
        share = seconds / sum(alone) if sum(alone) else 0.0
        yield OpView(
            op=op.name,
            phase=phase,
            unit=op.unit,
            format=op.format,
            flops=float(op.layers * op.flops),
            hbm_bytes=float(op.layers * sum(hbm_bytes([op], cost.placement))),
            onchip_bytes=float(op.layers * onchip_bytes([op])),
            seconds=share * float(bound.seconds),
            bound=cause,
        )


def _fused(kernel: list[Op], points: list[OpView]) -> OpView:
    """The points of one kernel as one."""
    main = next((point for point in points if point.unit == "tensor"), points[0])
    total = points[0]
    for point in points[1:]:
        total = _merge(total, point)
    name = kernel[0].kernel.split("/")[-1] if len(points) > 1 else main.op
    flops = sum(point.flops for point in points if point.unit == main.unit)
    return replace(total, op=name, unit=main.unit, format=main.format, flops=flops)


def _gather(merged: dict[str, OpView], point: OpView) -> None:
    merged[point.op] = _merge(merged[point.op], point) if point.op in merged else point


def _merge(a: OpView, b: OpView) -> OpView:
    """Two groups of layers as one point; the longer one says what bound it."""
    return OpView(
        a.op,
        a.phase,
        a.unit,
        a.format,
        a.flops + b.flops,
        a.hbm_bytes + b.hbm_bytes,
        a.onchip_bytes + b.onchip_bytes,
        a.seconds + b.seconds,
        max(a, b, key=lambda point: point.seconds).bound,
    )


def _budget(cost: Cost, draft_bytes: float, fraction: float, tokens: int, rows: int) -> MemoryBudget:
    return memory_budget(
        cost.device.name,
        cost.device.memory_bytes,
        cost.bytes_weights,
        draft_bytes=draft_bytes,
        workspace_bytes=cost.workspace_bytes(tokens, rows),
        memory_fraction=fraction,
    )


def _limits(cost: Cost, prompt: int, context: int, fits: int, engine: Engine) -> tuple[Limit, ...]:
    """What runs out as the decode batch grows, in order of the batch at which it does."""
    batches = np.arange(1, MOST_BATCH + 1, dtype=np.int64)
    linear, whole = _compute_bound(cost, _works(cost, batches, prompt, context)["decode"])
    found = [
        Limit("KV cache is full", fits + 1),
        Limit("linear layers are compute-bound", _first(linear, batches)),
        Limit("the whole pass is compute-bound", _first(whole, batches)),
    ]
    if engine.max_sequences is not None:
        found.append(Limit(f"engine {engine.name} runs no more sequences", engine.max_sequences + 1))
    return tuple(sorted(found, key=lambda limit: inf if limit.batch is None else limit.batch))


def _compute_bound(cost: Cost, work: Work) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether arithmetic takes at least as long as memory: of the products with weights, and of all kernels."""
    bounds = cost.bounds(work)
    linear = [bound for kernel, bound in bounds if any(op.terms == "matmul" for op in kernel)]
    return _outweighs(linear), _outweighs([bound for _, bound in bounds])


def _outweighs(bounds: list[Bound]) -> NDArray[np.bool_]:
    compute = sum((b.compute_s for b in bounds), start=np.float64(0))
    return np.asarray(compute >= sum((b.memory_s for b in bounds), start=np.float64(0)))


def _first(true: NDArray[np.bool_], batches: NDArray[np.int64]) -> int | None:
    return int(batches[np.argmax(true)]) if true.any() else None


def _notes(cost: Cost, works: Sequence[Work]) -> tuple[str, ...]:
    """Fallbacks of the device that the answer rests on, each once."""
    formats = {op.format: None for work in works for op in cost.ops(work) if op.unit == "tensor"}
    notes = [cost.device.peak_flops(f).note for f in formats] + [cost.device.vector_flops().note]
    if cost.device.energy is None:
        notes.append(f"{cost.device.name}: power is unknown, so joules are too.")
    if cost.placement.resident:
        notes.append(f"All weights stay in on-chip memory ({cost.device.onchip.what}).")
    notes += outside(cost, works)
    return tuple(dict.fromkeys(filter(None, notes)))


def _positive(**numbers: object) -> None:
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: {value!r} must be a whole number of at least 1")
