"""One decode step: what it spends its time on as the batch grows, and what that makes of latency and throughput."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.plots.style import CAUSES, COLOURS, GREY, Table, housed, log_scale, new_axes
from sim.analytic.cost import PassCost
from sim.analytic.hardware import BITS, Device, Engine
from sim.analytic.roofline import Bound
from sim.analytic.work import Work
from sim.ask import sequence_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "critical_batch", "critical_batch_table", "intensity", "intensity_table", "pareto", "pareto_table", "quadrants",
    "quadrants_table", "shares", "shares_table", "step_time", "step_time_table", "vector_matrix",
    "vector_matrix_table",
]  # fmt: skip

Columns = dict[str, NDArray[Any]]
FORMAT_MARKS = {"fp32": "s", "bf16": "o", "fp16": "^", "fp8": "D", "int8": "v", "fp4": "P", "int4": "X"}
NO_ENGINE = Engine("none")
SHARES = ("attention", "softmax", "FFN", "rest")


# -- from which batch on a device computes


def critical_batch_table(devices: Sequence[Device], formats: Sequence[str] = ("bf16", "fp8", "int8", "fp4")) -> Columns:
    """Columns device, format, batch: rows at which a product with weights takes as long to compute as to read.

    A weight of b bytes is read once and takes 2 FLOP a row, so batch = ridge point * b / 2. Only formats for which a
    device has a matrix rate of its own; fp16 stands in for bf16.
    """
    rows = [
        (device.name, used, device.peaks[used] / device.memory_Bps * BITS[used] / 16)
        for device in devices
        for wanted in formats
        if (used := "fp16" if wanted == "bf16" and wanted not in device.peaks else wanted) in device.peaks
    ]
    return {
        "device": np.array([r[0] for r in rows], dtype=object),
        "format": np.array([r[1] for r in rows], dtype=object),
        "batch": np.array([r[2] for r in rows]),
    }


@housed
def critical_batch(table: Table, title: str = "", axes: Axes | None = None) -> Axes:
    """A row for each device, a mark for each format."""
    names = list(dict.fromkeys(table["device"]))
    axes = new_axes(axes, 6.4, 1.6 + 0.24 * len(names))
    place = np.array([names.index(name) for name in table["device"]])
    kinds = list(dict.fromkeys(table["format"]))
    for number, kind in enumerate(kinds):
        here = np.asarray(table["format"]) == kind
        beside = place[here] + 0.16 * (number - (len(kinds) - 1) / 2)
        axes.scatter(np.asarray(table["batch"])[here], beside, s=30, label=kind, zorder=3,
                     marker=FORMAT_MARKS.get(kind, "o"), color=COLOURS[number % len(COLOURS)])  # fmt: skip
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    log_scale(axes, x=10)
    axes.set(xlabel="critical batch (rows at which a product turns compute-bound)", title=title)
    axes.legend(title="weights and\nproducts in", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return axes


# -- a step and its parts


def step_time_table(cost: PassCost, batches: Sequence[int], context: int = 1024, engine: Engine = NO_ENGINE) -> Columns:
    """Columns batch, seconds, the parts of a decode step in seconds (CAUSES), and ``compute_bound``: 1 where the
    products with weights take at least as long to compute as to read.

    The parts add up to ``seconds``. ``engine``: whose host time is added.
    """
    batch = np.asarray(batches, dtype=np.int64)
    work = Work.decode(batch, context, windows=cost.shape.windows)
    parts = {
        name: np.broadcast_to(np.asarray(s, dtype=np.float64), batch.shape) for name, s in cost.causes(work).items()
    }
    host = engine.step_s + engine.layer_s * len(cost.shape.layers) + engine.sequence_s * batch
    parts["host"] = np.asarray(host, dtype=np.float64)
    linear = [bound for kernel, bound in cost.bounds(work) if any(op.terms == "matmul" for op in kernel)]
    seconds = np.asarray(cost.seconds(work)) + host
    return {"batch": batch, "seconds": seconds, **parts, "compute_bound": _outweighs(linear).astype(np.int64)}


def _outweighs(bounds: Sequence[Bound]) -> NDArray[np.bool_]:
    compute = sum((b.compute_s for b in bounds), start=np.float64(0))
    return np.asarray(compute >= sum((b.memory_s for b in bounds), start=np.float64(0)))


def knee_of(table: Table) -> int | None:
    """The first batch whose products are bound by compute; None where none is."""
    bound = np.asarray(table["compute_bound"]).astype(bool)
    return int(np.asarray(table["batch"])[bound.argmax()]) if bound.any() else None


@housed
def step_time(table: Table, title: str = "", axes: Axes | None = None) -> Axes:
    """Milliseconds of a decode step over batch, its parts stacked, the knee marked."""
    axes = new_axes(axes)
    x = np.asarray(table["batch"])
    bottom = np.zeros(len(x))
    for name, look in CAUSES.items():
        part = np.asarray(table[name]) * 1e3 if name in table else bottom * 0
        if part.any():
            axes.fill_between(x, bottom, bottom + part, facecolor=look.colour, alpha=0.75, hatch=look.hatch,
                              edgecolor="white", lw=0.0, label=name)  # fmt: skip
            bottom = bottom + part
    axes.plot(x, np.asarray(table["seconds"]) * 1e3, color="black", ls="-", marker="", lw=1.2)
    knee = knee_of(table)
    if knee is not None:
        axes.axvline(knee, color="black", ls=":", lw=1, marker="")
        axes.annotate(f"products compute-bound\nfrom batch {knee}", (knee, axes.get_ylim()[1]), (4, -4),
                      textcoords="offset points", va="top", fontsize=8)  # fmt: skip
    axes.set(xlabel="batch (sequences decoding together)", ylabel="decode step (ms)", title=title)
    axes.set(xlim=(x.min(), x.max()), ylim=(0, None))
    axes.legend(loc="upper left")
    return axes


# -- latency against throughput


def pareto_table(
    cost: PassCost,
    batches: Sequence[int],
    contexts: Sequence[int],
    engine: Engine = NO_ENGINE,
    memory_fraction: float = 0.9,
) -> Columns:
    """Columns context, batch, tpot_ms, tokens_per_s (of one device of the layout) and fits (weights and KV cache).

    tokens_per_s * devices * tpot_ms = 1000 * batch, by Little's law.
    """
    rows: list[tuple[Any, ...]] = []
    for context in contexts:
        batch = np.asarray(batches, dtype=np.int64)
        seconds = step_time_table(cost, batches, context, engine)["seconds"]
        held = cost.bytes_weights + batch * sequence_bytes(cost, context)
        fits = held <= cost.device.memory_bytes * memory_fraction
        rate = batch / seconds / cost.layout.devices
        rows += zip([context] * len(batch), batch, seconds * 1e3, rate, fits, strict=True)
    names = ("context", "batch", "tpot_ms", "tokens_per_s", "fits")
    return {name: np.array([row[i] for row in rows]) for i, name in enumerate(names)}


@housed
def pareto(table: Table, title: str = "", axes: Axes | None = None) -> Axes:
    """Tokens per second of a device against those of one user, a line for each context, the batch beside its dots."""
    axes = new_axes(axes)
    for context in dict.fromkeys(np.asarray(table["context"]).tolist()):
        here = np.asarray(table["context"]) == context
        fits = np.asarray(table["fits"])[here].astype(bool)
        x, y, batch = (np.asarray(table[name])[here] for name in ("tpot_ms", "tokens_per_s", "batch"))
        [line] = axes.plot(1e3 / x[fits], y[fits], label=f"context {context:,}")
        axes.scatter(1e3 / x[~fits], y[~fits], s=16, facecolors="none", edgecolors=line.get_color())
        for i in sorted({0, len(x) // 2, int(fits.sum()) - 1} if fits.any() else set()):
            axes.annotate(f"{batch[i]}", (1e3 / x[i], y[i]), (4, 3), textcoords="offset points", fontsize=7)
    log_scale(axes, y=10)
    axes.set(xlabel="tokens per second of one user (1 / TPOT)", ylabel="tokens per second of a device", title=title)
    axes.set_xlim(0, None)
    axes.legend(title="numbers: batch\nhollow: does not fit", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return axes


# -- what the arithmetic is


def shares_table(cost: PassCost, contexts: Sequence[int], batch: int = 1, phase: str = "decode") -> Columns:
    """Columns context, and the shares of a pass's seconds that go to attention, softmax (where it is an op of its own,
    in proportion to what it would take alone), FFN and the rest; the shares add up to 1.

    ``phase``: ``decode``, or ``prefill`` of whole prompts of that many tokens. Raises ValueError for another.
    """
    from sim.ask import view

    if phase not in ("decode", "prefill"):
        raise ValueError(f"phase: {phase!r} is not one of decode, prefill")
    windows = cost.shape.windows
    rows = []
    for context in contexts:
        prefill = phase == "prefill"
        work = Work.prefill(batch, context, windows) if prefill else Work.decode(batch, context, windows=windows)
        seconds = dict.fromkeys(SHARES, 0.0)
        for op in view(cost, work, phase):
            seconds[_kind_of(op.op)] += op.seconds
        rows.append([seconds[kind] / sum(seconds.values()) for kind in SHARES])
    return {"context": np.asarray(contexts), **{kind: np.array(rows)[:, i] for i, kind in enumerate(SHARES)}}


def _kind_of(op: str) -> str:
    """Which share an op belongs to; projections around attention are part of it."""
    if op.endswith("attn.softmax"):
        return "softmax"
    if "attn." in op or op == "kv.append":
        return "attention"
    return "FFN" if op.startswith(("mlp.", "moe.")) else "rest"


@housed
def shares(table: Table, title: str = "", axes: Axes | None = None) -> Axes:
    """Percent of a pass's time over context, stacked to 100."""
    axes = new_axes(axes)
    x = np.asarray(table["context"])
    bottom = np.zeros(len(x))
    looks = zip(SHARES, (COLOURS[0], COLOURS[4], COLOURS[2], COLOURS[6]), ("", "///", "...", ""), strict=True)
    for name, colour, hatch in looks:
        part = np.asarray(table[name]) * 100
        axes.fill_between(x, bottom, bottom + part, facecolor=colour, alpha=0.7, hatch=hatch, edgecolor="white", lw=0,
                          label=name)  # fmt: skip
        bottom = bottom + part
    log_scale(axes, x=2)
    axes.set(xlabel="context (tokens)", ylabel="share of the pass's time (%)", title=title)
    axes.set(ylim=(0, 100), xlim=(x.min(), x.max()))
    axes.legend(loc="lower left", frameon=True)
    return axes


def intensity_table(cost: PassCost, gammas: Sequence[int], batch: int = 1, context: int = 1024) -> Columns:
    """Columns tokens (gamma + 1), intensity (FLOP of matrix products per main-memory byte of the verification pass) and
    ridge (FLOP per byte at which the linear layers turn compute-bound).
    """
    tokens = np.asarray(gammas, dtype=np.int64) + 1
    counts = [cost.counts(Work.decode(batch, context + int(t) - 1, int(t), cost.shape.windows)) for t in tokens]
    found = [float(c["flops"]) / float(c["hbm_bytes"]) for c in counts]
    ridge = cost.device.ridge_point(cost.precision.product_format(cost.precision.weights))
    return {"tokens": tokens, "intensity": np.array(found), "ridge": np.full(len(tokens), ridge)}


@housed
def intensity(tables: Mapping[str, Table], title: str = "", axes: Axes | None = None) -> Axes:
    """Arithmetic intensity of verification over gamma + 1, a line for each table, the ridge point above them."""
    axes = new_axes(axes)
    for label, table in tables.items():
        axes.plot(table["tokens"], table["intensity"], label=label)
    ridges = {float(np.asarray(table["ridge"])[0]) for table in tables.values()}
    for ridge in sorted(ridges):
        axes.axhline(ridge, color="black", ls=":", lw=1, marker="", label=f"ridge point {ridge:.0f} FLOP/B")
    log_scale(axes, y=10)
    axes.set(xlabel="tokens verified in one pass, gamma + 1", ylabel="FLOP per byte of main memory", title=title)
    axes.legend()
    return axes


def quadrants_table(cost: PassCost, works: Mapping[str, Work]) -> Columns:
    """Columns label, mbu and mfu: shares of the memory bandwidth and of the matrix rate that each pass uses."""
    peak = cost.device.peak_flops(cost.precision.product_format(cost.precision.weights)).flops
    rows = []
    for label, work in works.items():
        counts, seconds = cost.counts(work), float(cost.seconds(work))
        moved = float(counts["hbm_bytes"]) / (seconds * cost.device.memory_Bps)
        rows.append((label, moved, float(counts["flops"]) / (seconds * peak)))
    return {
        "label": np.array([r[0] for r in rows], dtype=object),
        "mbu": np.array([r[1] for r in rows]),
        "mfu": np.array([r[2] for r in rows]),
    }


@housed
def quadrants(table: Table, title: str = "", axes: Axes | None = None) -> Axes:
    """Compute against memory utilisation: which of the two is used, both or neither (half is the border)."""
    axes = new_axes(axes, 5.4, 4.6)
    x, y = np.asarray(table["mbu"]) * 100, np.asarray(table["mfu"]) * 100
    axes.axhline(50, color=GREY, lw=1, marker="", ls="-")
    axes.axvline(50, color=GREY, lw=1, marker="", ls="-")
    names = ("neither: latency, host", "memory-bound", "compute-bound", "balanced")
    for name, at in zip(names, ((2, 47), (98, 47), (2, 97), (98, 97)), strict=True):
        axes.text(*at, name, color=GREY, fontsize=8, va="top", ha="left" if at[0] < 50 else "right")
    axes.scatter(x, y, s=36, color=COLOURS[0], zorder=3)
    for label, at_x, at_y in zip(table["label"], x, y, strict=True):
        right = at_x > 60
        axes.annotate(str(label), (at_x, at_y), (-6 if right else 6, 5), textcoords="offset points", fontsize=8,
                      ha="right" if right else "left")  # fmt: skip
    axes.set(xlim=(0, 104), ylim=(0, 104), title=title)
    axes.set(xlabel="main-memory bandwidth in use (MBU, %)", ylabel="matrix rate in use (MFU, %)")
    return axes


# -- a matrix times a vector, and times a matrix


def vector_matrix_table(
    device: Device, rows: Sequence[int], inputs: int = 4096, outputs: int = 4096, number_format: str = "bf16"
) -> Columns:
    """Columns rows, one_by_one_s (a matrix-vector product for each row) and together_s (one matrix-matrix product).

    Textbook: the larger of 2 n m k FLOP at the matrix rate and m k + n (m + k) numbers at the memory bandwidth, launch
    floors and efficiencies left out.
    """
    n = np.asarray(rows, dtype=np.float64)
    each, rate = BITS[number_format] / 8, device.peak_flops(number_format).flops

    def seconds(count: NDArray[np.float64] | float) -> Any:
        moved = (inputs * outputs + count * (inputs + outputs)) * each
        return np.maximum(2 * count * inputs * outputs / rate, moved / device.memory_Bps)

    return {"rows": np.asarray(rows), "one_by_one_s": n * seconds(1.0), "together_s": np.asarray(seconds(n))}


@housed
def vector_matrix(table: Table, title: str = "", axes: Axes | None = None) -> Axes:
    """Microseconds over rows: the weights read again for each, or once for all."""
    axes = new_axes(axes)
    x = table["rows"]
    axes.plot(x, np.asarray(table["one_by_one_s"]) * 1e6, label="matrix-vector, one by one")
    axes.plot(x, np.asarray(table["together_s"]) * 1e6, label="matrix-matrix, together")
    log_scale(axes, x=2, y=10)
    axes.set(xlabel="rows (tokens in the pass)", ylabel="time of the product (us)", title=title)
    axes.legend()
    return axes
