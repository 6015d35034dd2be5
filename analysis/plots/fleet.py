"""A fleet over time: how many replicas of each group are there and paid for, and where one failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.plots.style import COLOURS, Table, housed, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["replicas_over_time", "replicas_over_time_table"]

Columns = dict[str, NDArray[Any]]


def replicas_over_time_table(lives: Table) -> Columns:
    """Columns group, second, replicas, failed of ``lives`` (lives.parquet): a row at each instant at which a group's
    number changes, with how many failed just then; a replica counts from its start, for that is when it is paid.
    """
    names, rows = np.asarray(lives["group"]), []
    ups, downs, ends = (np.asarray(lives[name]) for name in ("up_ns", "down_ns", "end"))
    for group in dict.fromkeys(names.tolist()):
        up, down, end = (column[names == group] for column in (ups, downs, ends))
        for instant in np.union1d(up, down).tolist():
            there = int(((up <= instant) & ((down > instant) | ((end == "end") & (down >= instant)))).sum())
            rows.append((group, instant * 1e-9, there, int(((down == instant) & (end == "failed")).sum())))
    columns = zip(*rows, strict=True) if rows else ((),) * 4
    return {
        name: np.array(list(column), dtype=kind)
        for name, column, kind in zip(
            ("group", "second", "replicas", "failed"), columns, (str, np.float64, np.int64, np.int64), strict=True
        )
    }


@housed
def replicas_over_time(table: Table, title: str = "", axes: Axes | None = None) -> Axes:
    """A line of steps for each group, and a cross where replicas failed."""
    axes = new_axes(axes, 6.4, 2.6)
    names, failed = np.asarray(table["group"]), np.asarray(table["failed"]) > 0
    for i, group in enumerate(dict.fromkeys(names.tolist())):
        mine = names == group
        second, replicas = np.asarray(table["second"])[mine], np.asarray(table["replicas"])[mine]
        style = ("-", "--", ":", "-.")[i % 4]
        axes.step(second, replicas, where="post", color=COLOURS[i % len(COLOURS)], ls=style, marker="", label=group)
    second, replicas = np.asarray(table["second"])[failed], np.asarray(table["replicas"])[failed]
    axes.plot(second, replicas, ls="", marker="x", ms=7, color=COLOURS[6], clip_on=False, label="a failure")
    axes.set(xlabel="time (s)", ylabel="replicas", title=title or "Replicas by group", ylim=(0, None))
    axes.locator_params(axis="y", integer=True)
    axes.legend(handlelength=2.6)
    return axes
