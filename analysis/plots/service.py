"""A run under traffic: latency distributions, timelines, seconds by phase, money and energy for each token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.plots.steps import NO_ENGINE, step_time_table
from analysis.plots.style import CAUSES, COLOURS, Table, housed, log_scale, new_axes, new_figure
from sim.analytic.cost import PassCost
from sim.analytic.hardware import Engine
from sim.analytic.work import Work

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "cost_per_token", "energy_per_token", "latencies", "latencies_table", "phase_bars", "phase_bars_table", "timeline",
    "timeline_table", "timelines", "token_price_table",
]  # fmt: skip

Columns = dict[str, NDArray[Any]]
MOST_POINTS = 800
SERIES = {
    "batch": ("sequences", COLOURS[0]),
    "waiting": ("requests", COLOURS[1]),
    "kv_GB": ("GB", COLOURS[2]),
}
TITLES = {"batch": "decoding together", "waiting": "waiting to be admitted", "kv_GB": "KV memory in use"}


# -- distributions


def latencies_table(samples: Mapping[str, Any], points: int = 400) -> Columns:
    """Columns metric, share and ms: the share of samples of each metric that take at most so many milliseconds.

    ``samples``: milliseconds by metric; unknown ones (NaN, masked) are left out. At most ``points`` for each metric,
    the least and the largest among them.
    """
    parts = []
    for metric, values in samples.items():
        kept = np.ma.compressed(np.ma.masked_invalid(np.ma.asarray(values, dtype=np.float64)))
        ordered = np.sort(kept)
        if len(ordered):
            chosen = np.unique(np.linspace(0, len(ordered) - 1, min(points, len(ordered))).round().astype(np.int64))
            name = np.array([metric] * len(chosen), dtype=object)
            parts.append((name, (chosen + 1) / len(ordered), ordered[chosen]))
    names = ("metric", "share", "ms")
    empty = (np.array([], dtype=object), np.array([]), np.array([]))
    return {name: np.concatenate([part[i] for part in parts or [empty]]) for i, name in enumerate(names)}


@housed
def latencies(
    table: Table, limits: Mapping[str, float] | None = None, title: str = "", axes: Axes | None = None
) -> Axes:
    """Share of requests (for ITL: of token gaps) within so many milliseconds; ``limits``: what was promised, dashed."""
    axes = new_axes(axes)
    metrics = np.asarray(table["metric"])
    for metric in dict.fromkeys(metrics.tolist()):
        here = metrics == metric
        x, y = np.asarray(table["ms"])[here], np.asarray(table["share"])[here]
        [line] = axes.step(x, y * 100, where="post", label=metric, markevery=max(1, len(x) // 8))
        if limits and metric in limits:
            axes.axvline(limits[metric], color=line.get_color(), ls="--", lw=0.8, marker="")
    if len(metrics) and np.min(table["ms"]) > 0:
        log_scale(axes, x=10)
    axes.set(xlabel="milliseconds", ylabel="share within (%)", ylim=(0, 101), title=title)
    if len(metrics):
        axes.legend()
    return axes


# -- over time


def timeline_table(rounds: Table, replica: int | None = None, points: int = MOST_POINTS) -> Columns:
    """Columns second, batch, waiting, kv_GB of ``rounds`` (rounds.parquet), in order of time; replicas are added up.

    ``replica``: of this one alone. Beyond ``points`` rows evenly spaced ones are kept, the last among them.
    """
    start = np.asarray(rounds["start_ns"], dtype=np.int64)
    which = np.asarray(rounds["replica"])
    order = np.argsort(start, kind="stable")
    totals = {}
    for name, column, unit in (("batch", "batch", 1.0), ("waiting", "waiting", 1.0), ("kv_GB", "kv_bytes", 1e9)):
        values = np.asarray(rounds[column], dtype=np.float64) / unit
        totals[name] = np.cumsum(_changes(values, which, order, replica))
    if replica is not None:
        chosen = which[order] == replica
        order, totals = order[chosen], {name: values[chosen] for name, values in totals.items()}
    kept = np.unique(np.linspace(0, max(len(order) - 1, 0), min(points, len(order))).round().astype(np.int64))
    return {"second": start[order][kept] * 1e-9, **{name: values[kept] for name, values in totals.items()}}


def _changes(values: Any, which: Any, order: Any, replica: int | None) -> NDArray[np.float64]:
    """What each row, in order of time, adds to the sum of the replicas' latest values."""
    changes = np.zeros(len(order))
    for one in np.unique(which) if replica is None else [replica]:
        rows = np.flatnonzero(which[order] == one)
        changes[rows] = np.diff(values[order][rows], prepend=0.0)
    return changes


@housed
def timeline(table: Table, column: str, title: str = "", axes: Axes | None = None) -> Axes:
    """``batch``, ``waiting`` or ``kv_GB`` over seconds, as steps."""
    axes = new_axes(axes, 6.4, 2.2)
    unit, colour = SERIES[column]
    axes.fill_between(table["second"], table[column], step="post", color=colour, alpha=0.25, lw=0)
    axes.step(table["second"], table[column], where="post", color=colour, ls="-", lw=0.9, marker="")
    axes.set(xlabel="time (s)", ylabel=unit, title=title or TITLES[column], ylim=(0, None))
    return axes


@housed
def timelines(table: Table) -> Figure:
    """Batch, queue and KV memory over the same time, one under the other."""
    figure = new_figure(6.8, 5.2)
    for axes, column in zip(figure.subplots(3, 1, sharex=True), SERIES, strict=True):
        timeline(table, column, axes=axes)
        axes.label_outer()
    return figure


# -- where the seconds went


def phase_bars_table(phases: Mapping[str, Mapping[str, Any]]) -> Columns:
    """Columns phase, seconds and one for each cause, of ``summary.json``'s phases; the causes add up to ``seconds``."""
    causes = {cause: [float(one["seconds_by_cause"].get(cause, 0.0)) for one in phases.values()] for cause in CAUSES}
    seconds = np.array([float(one["seconds"]) for one in phases.values()])
    named = {cause: np.array(values) for cause, values in causes.items()}
    return {"phase": np.array(list(phases), dtype=object), "seconds": seconds, **named}


@housed
def phase_bars(table: Table, title: str = "", axes: Axes | None = None) -> Axes:
    """A bar for each kind of round, its seconds by what they were spent on."""
    names = list(table["phase"])
    axes = new_axes(axes, 6.4, 1.4 + 0.5 * max(len(names), 1))
    left = np.zeros(len(names))
    for cause, look in CAUSES.items():
        part = np.asarray(table[cause], dtype=np.float64)
        if part.any():
            axes.barh(names, part, left=left, color=look.colour, hatch=look.hatch, edgecolor="white", label=cause,
                      height=0.65)  # fmt: skip
            left = left + part
    axes.invert_yaxis()
    axes.set(xlabel="seconds in which rounds ran", title=title)
    axes.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.35))
    return axes


# -- money and energy


def token_price_table(
    cost: PassCost, batches: Sequence[int], context: int = 1024, engine: Engine = NO_ENGINE
) -> Columns:
    """Columns batch, usd_per_million (output tokens), idle_J and dynamic_J (a token) of decode steps alone.

    Rent and idle power run while the step runs; NaN where the device's price or power is unknown.
    """
    seconds = step_time_table(cost, batches, context, engine)["seconds"]
    batch = np.asarray(batches, dtype=np.int64)
    device, count = cost.device, cost.layout.devices
    hourly = np.nan if device.usd_per_hour is None else device.usd_per_hour
    idle_W = np.nan if device.energy is None else device.energy.idle_W
    dynamic = np.asarray(cost.joules(Work.decode(batch, context, windows=cost.shape.windows)))
    return {
        "batch": batch,
        "usd_per_million": hourly * count * seconds / 3600 / batch * 1e6,
        "idle_J": idle_W * count * seconds / batch,
        "dynamic_J": dynamic / batch,
    }


@housed
def cost_per_token(tables: Mapping[str, Table], title: str = "", axes: Axes | None = None) -> Axes:
    """Dollars for a million output tokens over the batch, a line for each table."""
    axes = new_axes(axes)
    for label, table in tables.items():
        axes.plot(table["batch"], table["usd_per_million"], label=label)
    log_scale(axes, x=2, y=10)
    axes.set(xlabel="batch (sequences decoding together)", ylabel="USD per million output tokens", title=title)
    axes.legend()
    return axes


@housed
def energy_per_token(table: Table, title: str = "", axes: Axes | None = None) -> Axes:
    """Joules of an output token over the batch: idle power's share and that of the work, stacked."""
    axes = new_axes(axes)
    x, idle, dynamic = (np.asarray(table[name], dtype=np.float64) for name in ("batch", "idle_J", "dynamic_J"))
    place = np.arange(len(x))
    axes.bar(place, idle, color=COLOURS[6], edgecolor="white", label="idle power while the step runs")
    axes.bar(
        place, dynamic, bottom=idle, color=COLOURS[4], hatch="///", edgecolor="white", label="arithmetic and bytes"
    )
    axes.set_xticks(place, [f"{b:g}" for b in x])
    axes.set(xlabel="batch (sequences decoding together)", ylabel="joules per output token", title=title)
    axes.legend()
    return axes
