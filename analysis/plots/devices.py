"""Devices and physics: rates by year, and what an operation or a byte costs in energy."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.plots.style import COLOURS, Table, housed, log_scale, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["devices_by_year", "devices_by_year_table", "energy_ladder", "energy_ladder_table", "growth_per_year"]

Columns = dict[str, NDArray[Any]]
ENERGY = Path(__file__).with_name("energy.csv")
UNITS = {"flops": "dense 16-bit FLOP per second", "memory_Bps": "main-memory bytes per second"}
KIND_MARKS = {"gpu": "o", "tpu": "s", "accel": "^", "cpu": "D", "soc": "v", "phone": "P"}
ACCELERATORS = ("gpu", "tpu", "accel")
SIXTEEN = ("bf16", "fp16")


def devices_by_year_table(profiles: Iterable[Mapping[str, Any]]) -> Columns:
    """Columns device, kind, memory (its type), year, flops (dense, 16 bit), memory_Bps of checked profiles.

    Those (``hardware_profiles.load``) without a year or a 16-bit matrix rate are left out.
    """
    rows = []
    for one in profiles:
        rate = next((r for f in SIXTEEN if (r := one["peak_TFLOPs"].get(f)) is not None), None)
        if rate is not None and one.get("year") is not None:
            memory = one["memory"]
            words = (one["name"], one["kind"], memory["type"])
            rows.append((*words, one["year"], rate * 1e12, memory["bandwidth_GBps"] * 1e9))
    said = {name: np.array([r[i] for r in rows], dtype=object) for i, name in enumerate(("device", "kind", "memory"))}
    numbers = ("year", "flops", "memory_Bps")
    return {**said, **{name: np.array([float(r[i]) for r in rows]) for i, name in enumerate(numbers, 3)}}


def growth_per_year(year: Any, value: Any) -> tuple[float, float]:
    """(growth a year, value at year 0 as a logarithm) of the least-squares line through log(value)."""
    slope, start = np.polyfit(np.asarray(year, dtype=np.float64), np.log(np.asarray(value, dtype=np.float64)), 1)
    return float(np.exp(slope)), float(start)


@housed
def devices_by_year(table: Table, column: str = "flops", title: str = "", axes: Axes | None = None) -> Axes:
    """``flops`` or ``memory_Bps`` over the year on a logarithmic scale, and the fitted growth of accelerators.

    Devices whose main memory is SRAM are shown but not fitted.
    """
    from matplotlib.ticker import MaxNLocator

    axes = new_axes(axes)
    year, value, kinds = (np.asarray(table[name]) for name in ("year", column, "kind"))
    for number, kind in enumerate(dict.fromkeys(kinds.tolist())):
        here = kinds == kind
        axes.scatter(year[here], value[here], s=26, marker=KIND_MARKS.get(kind, "v"), zorder=3,
                     color=COLOURS[number % len(COLOURS)], label=kind)  # fmt: skip
    fast = np.isin(kinds, ACCELERATORS) & ~np.array([str(kind).startswith("SRAM") for kind in table["memory"]])
    if len(set(year[fast].tolist())) > 1:
        growth, start = growth_per_year(year[fast], value[fast])
        ends = np.array([year[fast].min(), year[fast].max()])
        axes.plot(ends, np.exp(start + np.log(growth) * ends), color="black", ls="--", marker="", lw=1,
                  label=f"accelerators: x {growth:.2f} a year")  # fmt: skip
    log_scale(axes, y=10)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="year of release", ylabel=UNITS.get(column, column), title=title)
    axes.legend()
    return axes


def energy_ladder_table(file: str | Path = ENERGY) -> Columns:
    """Columns item, kind (operation, memory), low_pJ, high_pJ, per (op, byte), part, source; cheapest first."""
    with Path(file).open(newline="", encoding="utf-8") as lines:
        rows = sorted(csv.DictReader(lines), key=lambda row: float(row["high_pJ"]))
    table: Columns = {name: np.array([row[name] for row in rows], dtype=object) for name in rows[0]}
    for name in ("low_pJ", "high_pJ"):
        table[name] = table[name].astype(np.float64)
    return table


@housed
def energy_ladder(table: Table, title: str = "", axes: Axes | None = None) -> Axes:
    """A bar for each operation and each byte read, from the cheapest up, on a logarithmic scale."""
    items = list(table["item"])
    axes = new_axes(axes, 6.4, 1.2 + 0.25 * len(items))
    place = np.arange(len(items))
    for kind, colour, hatch in (("operation", COLOURS[0], ""), ("memory", COLOURS[4], "///")):
        here = np.asarray(table["kind"]) == kind
        high = np.asarray(table["high_pJ"], dtype=np.float64)[here]
        low = np.asarray(table["low_pJ"], dtype=np.float64)[here]
        axes.barh(place[here], high, color=colour, hatch=hatch, edgecolor="white", height=0.7, label=kind)
        axes.hlines(place[here], low, high, color="black", lw=1.5)
        for at, value in zip(place[here], high, strict=True):
            axes.annotate(f"{value:g}", (value, at), (3, 0), textcoords="offset points", va="center", fontsize=7)
    names = [f"{item}, a{'n op' if per == 'op' else ' byte'}" for item, per in zip(items, table["per"], strict=True)]
    axes.set_yticks(place, names)
    log_scale(axes, x=10)
    axes.set(xlabel="energy (pJ); a black line: from the least to the most given", title=title)
    axes.legend(loc="lower right")
    return axes
