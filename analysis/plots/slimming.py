"""Bytes not moved: caches by kind of attention, HiRE's recall, slices of a MatFormer, fewer bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.plots.style import COLOURS, GREY, Table, housed, log_scale, new_axes, plain_ticks
from sim.analytic.cost import PassCost
from sim.analytic.hardware import Device
from sim.analytic.model import ModelShape
from sim.analytic.work import Work
from sim.ask import sequence_bytes
from sim.variants.mix_n_match import mixes
from sim.variants.quantization import Quantization
from sim.variants.topk import recall

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "attention_kinds", "bit_width", "bit_width_table", "hire_recall", "hire_recall_table", "kv_memory",
    "kv_memory_table", "matformer_line", "matformer_table",
]  # fmt: skip

Columns = dict[str, NDArray[Any]]


# -- the cache by kind of attention


def attention_kinds(shape: ModelShape, window: int = 1024, groups: int = 8) -> dict[str, ModelShape]:
    """The model with as many key heads as query heads (MHA), ``groups`` (GQA), one (MQA), and a window on GQA."""

    def with_heads(kv_heads: int | None, window: int | None = None) -> ModelShape:
        layers = tuple(
            replace(one, attention=replace(one.attention, kv_heads=kv_heads or one.attention.heads, window=window))
            for one in shape.layers
        )
        return replace(shape, layers=layers)

    return {
        "multi-head": with_heads(None),
        f"grouped, {groups} key heads": with_heads(groups),
        f"grouped, window {window:,}": with_heads(groups, window),
        "multi-query": with_heads(1),
    }


def kv_memory_table(costs: Mapping[str, PassCost], contexts: Sequence[int]) -> Columns:
    """Columns kind, context and kv_bytes of one sequence on one device."""
    rows = [(kind, context, sequence_bytes(cost, context)) for kind, cost in costs.items() for context in contexts]
    return {
        "kind": np.array([r[0] for r in rows], dtype=object),
        "context": np.array([r[1] for r in rows]),
        "kv_bytes": np.array([float(r[2]) for r in rows]),
    }


@housed
def kv_memory(table: Table, memory_bytes: float | None = None, title: str = "", axes: Axes | None = None) -> Axes:
    """GB of one sequence's cache over its context, a line for each kind; ``memory_bytes``: what a device has for it."""
    axes = new_axes(axes)
    kinds = np.asarray(table["kind"])
    for kind in dict.fromkeys(kinds.tolist()):
        here = kinds == kind
        axes.plot(np.asarray(table["context"])[here], np.asarray(table["kv_bytes"])[here] / 1e9, label=kind)
    if memory_bytes is not None:
        axes.axhline(memory_bytes / 1e9, color="black", ls=":", lw=1, marker="", label="memory of the device")
    log_scale(axes, x=2, y=10)
    axes.set(xlabel="context (tokens)", ylabel="KV cache of one sequence (GB)", title=title)
    axes.legend()
    return axes


# -- HiRE: what the first phase finds


def hire_recall_table(
    noises: Mapping[str, float], candidates: Sequence[int], keep: int, total: int, column_bytes: float
) -> Columns:
    """Columns phase_1, candidates (k'), recall (expected share of the ``keep`` best of ``total`` that are among them)
    and fetched_bytes (k' columns of ``column_bytes``).

    ``noises``: standard deviation of each first phase's error over that of the scores (``sim.variants.topk.recall``).
    Raises ValueError.
    """
    rows = [(name, k, recall(noise, k, keep, total)) for name, noise in noises.items() for k in candidates]
    chosen = np.array([r[1] for r in rows])
    return {
        "phase_1": np.array([r[0] for r in rows], dtype=object),
        "candidates": chosen,
        "recall": np.array([r[2] for r in rows]),
        "fetched_bytes": chosen * column_bytes,
    }


@housed
def hire_recall(table: Table, title: str = "", axes: Axes | None = None) -> Axes:
    """Recall over k' below and over the bytes that k' columns fetch above; a line for each first phase."""
    axes = new_axes(axes)
    kinds = np.asarray(table["phase_1"])
    for kind in dict.fromkeys(kinds.tolist()):
        here = kinds == kind
        axes.plot(np.asarray(table["candidates"])[here], np.asarray(table["recall"])[here], label=kind)
    log_scale(axes, x=2)
    each = float(np.asarray(table["fetched_bytes"])[0] / np.asarray(table["candidates"])[0]) / 1e6
    above = axes.secondary_xaxis("top", functions=(partial(np.multiply, each), partial(np.multiply, 1.0 / each)))
    plain_ticks(above.xaxis)
    above.set_xlabel("fetched by phase 2 for each row (MB)")
    axes.set(xlabel="candidates fetched, k'", ylabel="recall of the true best", ylim=(None, 1.01))
    axes.set_title(title)
    axes.legend(loc="lower right")
    return axes


# -- MatFormer and Mix'n'Match


def matformer_table(shape: ModelShape, device: Device, count: int = 40, batch: int = 1, context: int = 512) -> Columns:
    """Columns size (XL, ... of uniform models, empty for mixes), parameters, step_s and nats, from the smallest.

    The uniform models, and mixes at ``count`` even steps of size.

    ``nats``: of the shipped witness's sizes, on straight lines between them (``sim.variants.mix_n_match``).
    """
    every, work = mixes(shape), Work.decode(batch, context)
    spread = {round(i * (len(every) - 1) / max(count - 1, 1)) for i in range(count)}
    found = [mix for i, mix in enumerate(every) if i in spread or len(set(mix.sizes)) == 1]
    return {
        "size": np.array([m.sizes[0] if len(set(m.sizes)) == 1 else "" for m in found], dtype=object),
        "parameters": np.array([m.parameters for m in found]),
        "step_s": np.array([float(PassCost(shape, device, variants=[m.variant()]).seconds(work)) for m in found]),
        "nats": np.array([np.nan if m.nats is None else m.nats for m in found]),
    }


@housed
def matformer_line(table: Table, title: str = "", axes: Axes | None = None) -> Axes:
    """Loss over milliseconds of a step: mixes as small dots, the trained sizes by name."""
    axes = new_axes(axes)
    x, y, size = np.asarray(table["step_s"]) * 1e3, np.asarray(table["nats"]), np.asarray(table["size"])
    named = np.array([bool(word) for word in size])
    axes.plot(x, y, color=GREY, ls="-", lw=0.8, marker="", zorder=1)
    axes.scatter(x[~named], y[~named], s=14, color=COLOURS[0], label="Mix'n'Match")
    axes.scatter(x[named], y[named], s=70, marker="D", color=COLOURS[1], edgecolor="white", label="one size throughout")
    for word, at_x, at_y in zip(size[named], x[named], y[named], strict=True):
        axes.annotate(word, (at_x, at_y), (6, 6), textcoords="offset points", fontsize=9)
    axes.set(xlabel="decode step (ms)", ylabel="loss (nats a token)", title=title)
    axes.legend()
    return axes


# -- fewer bits


def bit_width_table(
    shape: ModelShape,
    device: Device,
    formats: Mapping[str, Mapping[str, Any]],
    batches: Sequence[int],
    context: int = 1024,
) -> Columns:
    """Columns format, batch, tokens_per_s (of the whole batch) and speedup over the model as it is.

    ``formats``: options of the ``quantization`` variant by label; an empty mapping is the model as it is. Raises
    ValueError.
    """
    batch = np.asarray(batches, dtype=np.int64)
    work = Work.decode(batch, context, windows=shape.windows)
    plain = np.asarray(PassCost(shape, device).seconds(work))
    parts = []
    for label, options in formats.items():
        variants = [Quantization(**options)] if options else []
        seconds = np.asarray(PassCost(shape, device, variants=variants).seconds(work))
        parts.append((np.array([label] * len(batch), dtype=object), batch, batch / seconds, plain / seconds))
    names = ("format", "batch", "tokens_per_s", "speedup")
    return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(names)}


@housed
def bit_width(table: Table, column: str = "speedup", title: str = "", axes: Axes | None = None) -> Axes:
    """``speedup`` or ``tokens_per_s`` over the batch, a line for each format."""
    axes = new_axes(axes)
    kinds = np.asarray(table["format"])
    for kind in dict.fromkeys(kinds.tolist()):
        here = kinds == kind
        axes.plot(np.asarray(table["batch"])[here], np.asarray(table[column])[here], label=kind)
    if column == "speedup":
        axes.axhline(1.0, color=GREY, lw=0.8, ls=":", marker="")
    log_scale(axes, x=2)
    label = "speedup over 16-bit numbers" if column == "speedup" else "tokens per second of the batch"
    axes.set(xlabel="batch (sequences decoding together)", ylabel=label, title=title)
    axes.legend()
    return axes
