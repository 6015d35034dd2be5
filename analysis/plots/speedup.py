"""Speedup studies: lines, contours, a heat map with its best line, and the choices of ``tune``."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.plots.style import COLOURS, GREY, Table, housed, log_scale, new_axes, new_figure
from sim import theory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "alpha_gamma_table", "speedup_contours", "speedup_curves", "speedup_heat", "speedup_lines", "tuning",
]  # fmt: skip

MOST_LINES = 8
LEVELS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0)
RED = COLOURS[1]
Floats = NDArray[np.float64]


# -- alpha and gamma on paper


def alpha_gamma_table(
    alphas: Sequence[float], gammas: Sequence[int], c: float, verify: float = 1.0
) -> dict[str, NDArray[Any]]:
    """Columns alpha, gamma and speedup = E / (gamma c + verify) (Leviathan et al., theorem 3.8); gammas vary fastest.

    ``c``, ``verify``: seconds of a draft pass and of verification in autoregressive steps. Raises ValueError.
    """
    pairs = [(float(alpha), int(gamma)) for alpha in alphas for gamma in gammas]
    speedup = [theory.wall_time_factor(alpha, gamma, c, verify) for alpha, gamma in pairs]
    return {
        "alpha": np.array([alpha for alpha, _ in pairs]),
        "gamma": np.array([gamma for _, gamma in pairs]),
        "speedup": np.array(speedup),
    }


@housed
def speedup_heat(
    table: Table,
    x: str = "alpha",
    y: str = "gamma",
    *,
    value: str = "speedup",
    best: bool = True,
    title: str = "",
    axes: Axes | None = None,
) -> Axes:
    """Column ``value`` over columns ``x`` and ``y`` as shades, the best y of every x as a line, break-even in black.

    Points that share x and y are one, the best; the line has gaps where nothing pays (no value above 1). Raises
    ValueError for fewer than two values on either axis.
    """
    xs, ys, z = grid_of(table, x, y, value)
    if len(xs) < 2 or len(ys) < 2:
        raise ValueError(f"{x}, {y}: a heat map needs two values of each at least")
    axes = new_axes(axes)
    shades = axes.pcolormesh(xs, ys, z, shading="nearest", rasterized=z.size > 2000)
    axes.figure.colorbar(shades, ax=axes, label=value)
    if np.nanmin(z) < 1.0 < np.nanmax(z):
        drawn = axes.contour(xs, ys, z, levels=[1.0], colors="black", linewidths=1.2)
        axes.clabel(drawn, fmt="%g x", fontsize=8)
    if best:
        _best(axes, xs, ys, z, y)
    axes.set(xlabel=x, ylabel=y, title=title)
    _logs(axes, xs, ys)
    axes.grid(False)
    return axes


def _best(axes: Axes, xs: Any, ys: Any, z: Floats, y: str) -> None:
    pays = np.nanmax(z, axis=0) > 1.0
    line = np.where(pays, ys[best_line(z)].astype(np.float64), np.nan)
    axes.plot(xs, line, color="white", ls="-", lw=3.2, marker="")
    axes.plot(xs, line, color=RED, ls="--", marker="", label=f"best {y}")
    axes.legend(loc="upper left", frameon=True)


def grid_of(table: Table, x: str, y: str, value: str) -> tuple[NDArray[Any], NDArray[Any], Floats]:
    """(values of x, values of y, the best ``value`` at each, shape [y, x]); NaN where there is none."""
    at_x, at_y = np.asarray(table[x]), np.asarray(table[y])
    xs, ys = np.unique(at_x), np.unique(at_y)
    z = np.full((len(ys), len(xs)), -np.inf)
    found = np.asarray(table[value], dtype=np.float64)
    np.maximum.at(z, (np.searchsorted(ys, at_y), np.searchsorted(xs, at_x)), found)
    return xs, ys, np.where(np.isfinite(z), z, np.nan)


def best_line(z: Floats) -> NDArray[np.int64]:
    """Row of the largest value in each column; the first of equal ones."""
    return np.asarray(np.where(np.isnan(z), -np.inf, z).argmax(axis=0), dtype=np.int64)


# -- curves of `decodesim speedup`


@housed
def speedup_curves(
    table: Table,
    x: str,
    lines: Sequence[str] = (),
    panel: str | None = None,
    measured: Sequence[Any] = (),
    title: str = "",
) -> Figure:
    """:func:`speedup_lines` in one panel for each value of column ``panel``."""
    values = list(dict.fromkeys(table[panel].tolist())) if panel else [None]
    figure, grid = _panels(len(values))
    for axes, value in zip(grid, values, strict=True):
        chosen = {k: np.asarray(v)[_rows(table, panel, value)] for k, v in table.items()}
        here = [m for m in measured if panel is None or dict(m.at).get(panel, value) == value]
        speedup_lines(chosen, x, lines, here, "" if panel is None else f"{panel} = {value}", axes)
    for axes in grid[1:]:
        axes.set_ylabel("")
    figure.suptitle(title, fontsize=10)
    return figure


@housed
def speedup_lines(
    table: Table,
    x: str,
    lines: Sequence[str] = (),
    measured: Sequence[Any] = (),
    title: str = "",
    axes: Axes | None = None,
) -> Axes:
    """Speedup over column ``x``: one line for each choice of ``lines``, break-even dotted.

    A star marks the best point of every line, a hollow part does not fit into memory. ``measured``: objects with
    ``at`` (pairs of axis and value) and ``speedup``, drawn as crosses. Beyond ``MOST_LINES`` lines the rest is left out
    and counted in the legend.
    """
    axes = new_axes(axes)
    table = {name: np.asarray(table[name]) for name in (x, *lines, "speedup", "fits")}
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i in range(len(table[x])):
        groups.setdefault(tuple(table[name][i] for name in lines), []).append(i)
    for key, group in list(groups.items())[:MOST_LINES]:
        label = ", ".join(f"{name} {value}" for name, value in zip(lines, key, strict=True))
        _speedup_line(axes, table, sorted(group, key=lambda i: table[x][i]), x, label or "this policy")
    if len(groups) > MOST_LINES:
        axes.plot([], [], " ", marker="", label=f"+{len(groups) - MOST_LINES} lines in the CSV")
    points = [(dict(m.at)[x], m.speedup) for m in measured if x in dict(m.at)]
    if points:
        at, found = zip(*points, strict=True)
        axes.scatter(at, found, s=50, marker="x", color="black", zorder=5, label="measured")
    axes.axhline(1.0, color=GREY, lw=0.8, ls=":", marker="")
    axes.set(xlabel=x, ylabel="speedup over autoregressive decoding", title=title)
    if _spans_decades(table[x]):
        log_scale(axes, x=2)
    axes.legend()
    return axes


def _speedup_line(axes: Axes, table: Table, group: Sequence[int], x: str, label: str) -> None:
    xs, ys = [table[x][i] for i in group], [table["speedup"][i] for i in group]
    [line] = axes.plot(xs, ys, label=label)
    colour, marker = line.get_color(), line.get_marker()
    faces = [colour if table["fits"][i] else "white" for i in group]
    axes.scatter(xs, ys, s=18, color=faces, edgecolor=colour, marker=marker, zorder=3)
    best = max(group, key=lambda i: (table["fits"][i], table["speedup"][i]))
    axes.scatter([table[x][best]], [table["speedup"][best]], s=150, marker="*", color=colour, zorder=4)


@housed
def speedup_contours(
    table: Table, x: str, y: str, panel: str | None = None, target: float | None = None, title: str = ""
) -> Figure:
    """Lines of equal speedup over columns ``x`` and ``y``; break-even is black, ``target`` dashed, the best a star.

    Of points that share x and y (further axes) the best one counts.
    """
    values = list(dict.fromkeys(table[panel].tolist())) if panel else [None]
    figure, grid = _panels(len(values))
    for axes, value in zip(grid, values, strict=True):
        chosen = {k: np.asarray(table[k])[_rows(table, panel, value)] for k in (x, y, "speedup")}
        xs, ys, z = grid_of(chosen, x, y, "speedup")
        _contour_lines(axes, xs, ys, z, target)
        axes.set(title="" if panel is None else f"{panel} = {value}", xlabel=x)
        _logs(axes, xs, ys)
    grid[0].set_ylabel(y)
    figure.suptitle(title, fontsize=10)
    return figure


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    figure = new_figure(min(4.5 * count + 2.5, 24), 5)
    return figure, list(figure.subplots(1, count, sharey=True, squeeze=False)[0])


def _rows(table: Table, panel: str | None, value: Any) -> NDArray[np.bool_]:
    """Rows of one panel."""
    if panel is None:
        return np.ones(len(next(iter(table.values()))), dtype=bool)
    return np.asarray(np.asarray(table[panel]) == value)


def _contour_lines(axes: Axes, xs: Any, ys: Any, z: Floats, target: float | None) -> None:
    low, high = float(np.nanmin(z)), float(np.nanmax(z))
    filled = axes.contourf(xs, ys, z, levels=24, alpha=0.85)
    axes.figure.colorbar(filled, ax=axes, label="speedup", shrink=0.85)
    levels = [level for level in LEVELS if low < level < high and level != target]
    if levels:
        colours = ["black" if level == 1.0 else "white" for level in levels]
        drawn = axes.contour(xs, ys, z, levels=levels, colors=colours, linewidths=1)
        axes.clabel(drawn, fmt="%g x", fontsize=8)
    if target is not None and low < target < high:
        axes.clabel(axes.contour(xs, ys, z, levels=[target], colors="red", linestyles="--"), fmt="%g x", fontsize=8)
    row, column = np.unravel_index(int(np.nanargmax(z)), z.shape)
    axes.scatter([xs[column]], [ys[row]], s=150, marker="*", color="red", edgecolor="white", zorder=4)


def _logs(axes: Axes, xs: Any, ys: Any) -> None:
    log_scale(axes, x=2 if _spans_decades(xs) else 0, y=2 if _spans_decades(ys) else 0)


def _spans_decades(values: Any) -> bool:
    return bool(min(values) > 0 and max(values) >= 50 * min(values))


# -- choices of `decodesim tune`


@housed
def tuning(candidates: Sequence[Any], axes: Axes | None = None) -> Axes:
    """Time per token against capacity, a dot for each choice of `tune`; the best few by name, the refused ones hollow.

    ``candidates``: from best to worst (``sim.tune.Candidate``).
    """
    axes = new_axes(axes, 9, 6)
    shown = [one for one in candidates if isfinite(one.tpot_ms)]
    for one in reversed(shown):
        colour, filled = (COLOURS[6], "none") if one.why else (COLOURS[0], COLOURS[0])
        axes.scatter(one.capacity_per_s, one.tpot_ms, s=24, edgecolors=colour, facecolors=filled, zorder=2)
    for i, one in enumerate([c for c in shown if not c.why][:3]):
        place = (8, (8, -12, 20)[i])
        axes.annotate(f"{i + 1}. {one.choice}", (one.capacity_per_s, one.tpot_ms), xytext=place,
                      textcoords="offset points", fontsize=8)  # fmt: skip
    axes.set(xlim=(0, None), ylim=(0, None))
    axes.set_xlabel("most requests per second of one replica")
    axes.set_ylabel("time per output token at the load asked for (ms)")
    axes.set_title("filled: may be recommended, from the best; hollow: refused (tune.csv says why)", fontsize=9)
    return axes
