"""Pictures. Matplotlib is imported when one is drawn, never before; no window opens, no global state is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import atan2, degrees, isfinite, log10
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sim.analytic.hardware import Device

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["SUFFIXES", "Point", "roofline", "save_figure", "speedup_contours", "speedup_curves", "tuning"]

SUFFIXES = (".png", ".svg", ".pdf")
PHASE_COLOURS = {"prefill": "#d1495b", "decode": "#00798c"}
OTHER_COLOURS = ("#edae49", "#66a182", "#2e4057")
RATED = ("tensor", "vector")
CLOSE = 0.25  # decades within which dots share a label


class Point(Protocol):
    """One op or kernel of a pass (``sim.ask.OpView``)."""

    @property
    def op(self) -> str:
        """Its name."""
        ...

    @property
    def phase(self) -> str:
        """Whose dot it is: prefill, decode, or another label."""
        ...

    @property
    def unit(self) -> str:
        """tensor or vector."""
        ...

    @property
    def format(self) -> str:
        """Number format of its products."""
        ...

    @property
    def seconds(self) -> float:
        """Time that it takes."""
        ...

    @property
    def intensity(self) -> float:
        """FLOP per byte of main-memory traffic."""
        ...

    @property
    def attained_flops(self) -> float:
        """FLOP per second."""
        ...


def roofline(points: Sequence[Point], device: Device, title: str = "") -> Figure:
    """The device's ceilings and a dot for every op: FLOP per second over FLOP per byte of main memory (Williams 2009).

    Ceilings: main memory, on-chip memory where its bandwidth is known, and the matrix rate of each format that the
    points use, whose ridge point is marked. An op without FLOPs or without main-memory traffic has no place on the
    picture and is counted below it. The area of a dot grows with the op's share of its phase's time.
    """
    shown = [p for p in points if p.unit in RATED and p.attained_flops > 0 and isfinite(p.intensity)]
    figure, axes = _canvas()
    rates = _rates(shown, device)
    span = (min([0.1, *(p.intensity / 3 for p in shown)]), max([3000.0, *(p.intensity * 10 for p in shown)]))
    low = min([0.3 * span[0] * device.memory_Bps, *(p.attained_flops / 3 for p in shown)])
    axes.set(xlim=span, ylim=(low, 3 * max(rates.values())), title=title or device.name)
    _ceilings(axes, device, rates, span)
    for number, phase in enumerate(dict.fromkeys(p.phase for p in shown)):
        colour = PHASE_COLOURS.get(phase, OTHER_COLOURS[number % len(OTHER_COLOURS)])
        _dots(axes, [p for p in shown if p.phase == phase], phase, colour)
    axes.set(xlabel=_below(len(points) - len(shown)), ylabel="FLOP per second")
    _legend(axes)
    return figure


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a picture; the suffix says the format. Raises ValueError, one line, for another suffix or no place."""
    target = Path(path)
    if target.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: a picture ends in {', '.join(SUFFIXES)}, not {target.suffix or 'nothing'!r}")
    try:
        figure.savefig(target, dpi=150, metadata=_undated(target.suffix.lower()))
    except OSError as error:
        raise ValueError(f"{path}: cannot be written: {error.strerror or error}") from None


def _undated(suffix: str) -> dict[str, Any]:
    """No date in the file: the same picture is the same bytes."""
    return {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(suffix, {})


def _canvas() -> tuple[Figure, Axes]:
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "decodesim"
    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set(xscale="log", yscale="log")
    axes.grid(True, which="major", alpha=0.25)
    return figure, axes


def _rates(points: Sequence[Point], device: Device) -> dict[str, float]:
    """Roofs by label, FLOP per second: the matrix rates that the points use, and the vector units' if any do."""
    formats = [p.format for p in points if p.unit == "tensor"] or ["bf16"]
    peaks = [device.peak_flops(f) for f in dict.fromkeys(formats)]
    rates = {peak.used_format: peak.flops for peak in peaks}
    if any(p.unit == "vector" for p in points):
        rates["vector units"] = device.vector_flops().flops
    return rates


def _ceilings(axes: Axes, device: Device, rates: dict[str, float], span: tuple[float, float]) -> None:
    """Draw the roofs over ``span`` = (lowest, highest) intensity, and the ridge point of every matrix rate."""
    peak = max(rates.values())
    _slope(axes, device.memory_Bps, span[0], peak, "main memory", {"color": "black", "lw": 1.5}, (8, -10))
    if device.onchip.bandwidth_Bps:
        dashed = {"color": "grey", "lw": 1, "ls": "--"}
        _slope(axes, device.onchip.bandwidth_Bps, span[0], peak, "on chip", dashed, (-6, 6))
    for name, rate in rates.items():
        ridge, thin = rate / device.memory_Bps, name == "vector units"
        axes.plot([ridge, span[1]], [rate, rate], color="black", lw=0.8 if thin else 1.5, ls="--" if thin else "-")
        axes.annotate(f"{name} {rate / 1e12:.4g} TFLOP/s", (span[1], rate), (-4, 4), **_OFFSET, ha="right", fontsize=8)
        if not thin:
            axes.plot([ridge, ridge], [1, rate], color="black", lw=0.7, ls=":")
            axes.annotate(
                f"ridge point {ridge:.0f} FLOP/B", (ridge, axes.get_ylim()[0]), (4, 8), **_OFFSET, fontsize=8
            )


_OFFSET: dict[str, Any] = {"textcoords": "offset points"}


def _slope(
    axes: Axes, bandwidth_Bps: float, start: float, peak: float, label: str, style: dict[str, Any], off: tuple[int, int]
) -> None:
    """The roof of one memory level, from the left edge to the highest rate, with its name along it."""
    end = peak / bandwidth_Bps
    axes.plot([start, end], [start * bandwidth_Bps, peak], **style)
    (x0, y0), (x1, y1) = axes.transData.transform([(start, start * bandwidth_Bps), (end, peak)])
    at = start * 1.5
    axes.annotate(
        f"{label} {bandwidth_Bps / 1e12:.3g} TB/s", (at, at * bandwidth_Bps), off, **_OFFSET,
        color=style["color"], fontsize=8, rotation=degrees(atan2(y1 - y0, x1 - x0)), rotation_mode="anchor",
    )  # fmt: skip


def _dots(axes: Axes, points: Sequence[Point], phase: str, colour: str) -> None:
    """A dot for every op; dots that all but coincide share one label, which names the longest first."""
    total = sum(p.seconds for p in points) or 1.0
    sizes = [20 + 400 * p.seconds / total for p in points]
    where = [p.intensity for p in points], [p.attained_flops for p in points]
    axes.scatter(*where, s=sizes, color=colour, alpha=0.6, edgecolor="white", lw=0.6, label=phase, zorder=3)
    places: dict[tuple[int, int], list[Point]] = {}
    for point in sorted(points, key=lambda p: p.seconds, reverse=True):
        place = round(log10(point.intensity) / CLOSE), round(log10(point.attained_flops) / CLOSE)
        places.setdefault(place, []).append(point)
    for here in places.values():
        names = list(dict.fromkeys(p.op for p in here))
        label = ", ".join(names[:3]) + (f" +{len(names) - 3}" if len(names) > 3 else "")
        at = here[0].intensity, here[0].attained_flops
        inward = axes.transAxes.inverted().transform(axes.transData.transform(at))[0] > 0.8
        side = "right" if inward else "left"
        axes.annotate(label, at, (-8 if inward else 8, -12), **_OFFSET, fontsize=7, color=colour, ha=side)


def _legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        box = axes.legend(handles, labels, loc="lower right", fontsize=8, framealpha=0.9)
        for handle in box.legend_handles:
            handle.set_sizes([40])  # type: ignore[union-attr]


def _below(left_out: int) -> str:
    label = "FLOP per byte of main-memory traffic"
    return f"{label}\n({left_out} ops without FLOPs or without such traffic are not shown)" if left_out else label


# -- speedup curves

MOST_LINES = 8
LEVELS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0)
Table = Mapping[str, Any]  # columns of equal length, by name


def speedup_curves(
    table: Table,
    x: str,
    lines: Sequence[str] = (),
    panel: str | None = None,
    measured: Sequence[Any] = (),
    title: str = "",
) -> Figure:
    """Speedup over column ``x``: one line for each choice of ``lines``, one panel for each value of ``panel``.

    A star marks the best point of every line, a hollow part does not fit into memory. ``measured``: objects with
    ``at`` (pairs of axis and value) and ``speedup``, drawn as crosses where their panel is. Beyond ``MOST_LINES``
    lines the rest is left out and counted in the legend.
    """
    values = list(dict.fromkeys(table[panel].tolist())) if panel else [None]
    figure, grid = _panels(len(values))
    for axes, value in zip(grid, values, strict=True):
        rows = [i for i in range(len(table[x])) if panel is None or table[panel][i] == value]
        _speedup_lines(axes, table, rows, x, lines)
        _speedup_crosses(axes, measured, x, panel, value)
        axes.axhline(1.0, color="grey", lw=0.8, ls=":")
        axes.set(title="" if panel is None else f"{panel} = {value}", xlabel=x)
        if _spans_decades(table[x]):
            axes.set_xscale("log", base=2)
        axes.legend(fontsize=8, framealpha=0.9)
    grid[0].set_ylabel("speedup over autoregressive decoding")
    figure.suptitle(title, fontsize=10)
    return figure


def speedup_contours(
    table: Table, x: str, y: str, panel: str | None = None, target: float | None = None, title: str = ""
) -> Figure:
    """Lines of equal speedup over columns ``x`` and ``y``; break-even is black, ``target`` dashed, the best a star.

    Of points that share x and y (further axes) the best one counts.
    """
    import numpy as np

    values = list(dict.fromkeys(table[panel].tolist())) if panel else [None]
    figure, grid = _panels(len(values))
    for axes, value in zip(grid, values, strict=True):
        keep = np.ones(len(table[x]), dtype=bool) if panel is None else table[panel] == value
        xs, ys = np.unique(table[x][keep]), np.unique(table[y][keep])
        z = np.full((len(ys), len(xs)), -np.inf)
        at = np.searchsorted(ys, table[y][keep]), np.searchsorted(xs, table[x][keep])
        np.maximum.at(z, at, table["speedup"][keep])
        _contour_lines(axes, xs, ys, np.where(np.isfinite(z), z, np.nan), target)
        axes.set(title="" if panel is None else f"{panel} = {value}", xlabel=x)
        for scale, column in ((axes.set_xscale, xs), (axes.set_yscale, ys)):
            if _spans_decades(column):
                scale("log", base=2)
    grid[0].set_ylabel(y)
    figure.suptitle(title, fontsize=10)
    return figure


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "decodesim"
    figure = Figure(figsize=(min(4.5 * count + 2.5, 24), 5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    return figure, list(grid)


def _speedup_lines(axes: Axes, table: Table, rows: Sequence[int], x: str, lines: Sequence[str]) -> None:
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i in rows:
        groups.setdefault(tuple(table[name][i] for name in lines), []).append(i)
    for number, (key, group) in enumerate(list(groups.items())[:MOST_LINES]):
        group.sort(key=lambda i: table[x][i])
        colour = f"C{number}"
        xs, ys = [table[x][i] for i in group], [table["speedup"][i] for i in group]
        label = ", ".join(f"{name} {value}" for name, value in zip(lines, key, strict=True))
        axes.plot(xs, ys, color=colour, lw=1.2, label=label or "this policy")
        faces = [colour if table["fits"][i] else "white" for i in group]
        axes.scatter(xs, ys, s=14, color=faces, edgecolor=colour, zorder=3)
        best = max(group, key=lambda i: (table["fits"][i], table["speedup"][i]))
        axes.scatter([table[x][best]], [table["speedup"][best]], s=150, marker="*", color=colour, zorder=4)
    if len(groups) > MOST_LINES:
        axes.plot([], [], " ", label=f"+{len(groups) - MOST_LINES} lines in the CSV")


def _speedup_crosses(axes: Axes, measured: Sequence[Any], x: str, panel: str | None, value: Any) -> None:
    here = [m for m in measured if x in dict(m.at) and (panel is None or dict(m.at).get(panel, value) == value)]
    if here:
        axes.scatter([dict(m.at)[x] for m in here], [m.speedup for m in here], s=50, marker="x", color="black",
                     zorder=5, label="measured")  # fmt: skip


def _contour_lines(axes: Axes, xs: Any, ys: Any, z: Any, target: float | None) -> None:
    import numpy as np

    low, high = float(np.nanmin(z)), float(np.nanmax(z))
    filled = axes.contourf(xs, ys, z, levels=24, cmap="viridis", alpha=0.85)
    axes.figure.colorbar(filled, ax=axes, label="speedup", shrink=0.85)
    levels = [level for level in LEVELS if low < level < high and level != target]
    if levels:
        colours = ["black" if level == 1.0 else "white" for level in levels]
        drawn = axes.contour(xs, ys, z, levels=levels, colors=colours, linewidths=1)
        axes.clabel(drawn, fmt="%g x", fontsize=8)
    if target is not None and low < target < high:
        axes.clabel(axes.contour(xs, ys, z, levels=[target], colors="red", linestyles="--"), fmt="%g x", fontsize=8)
    row, column = np.unravel_index(int(np.nanargmax(z)), z.shape)
    axes.scatter([xs[column]], [ys[row]], s=150, marker="*", color="red", zorder=4)


def _spans_decades(values: Any) -> bool:
    return bool(min(values) > 0 and max(values) >= 50 * min(values))


def tuning(candidates: Sequence[Any]) -> Figure:
    """Time per token against capacity, a dot for each choice of `tune`; the best few by name, the refused ones hollow.

    ``candidates``: from best to worst (``sim.tune.Candidate``).
    """
    figure, axes = _canvas()
    shown = [one for one in candidates if isfinite(one.tpot_ms)]
    for one in reversed(shown):
        colour = OTHER_COLOURS[2] if one.why else PHASE_COLOURS["decode"]
        filled = "none" if one.why else colour
        axes.scatter(one.capacity_per_s, one.tpot_ms, s=24, edgecolors=colour, facecolors=filled, zorder=2)
    for i, one in enumerate([c for c in shown if not c.why][:3]):
        place = (8, (8, -12, 20)[i])
        axes.annotate(f"{i + 1}. {one.choice}", (one.capacity_per_s, one.tpot_ms), xytext=place,
                      textcoords="offset points", fontsize=8)  # fmt: skip
    axes.set(xscale="linear", yscale="linear", xlim=(0, None), ylim=(0, None))
    axes.set_xlabel("most requests per second of one replica")
    axes.set_ylabel("time per output token at the load asked for (ms)")
    axes.set_title("filled: may be recommended, from the best; hollow: refused (tune.csv says why)", fontsize=9)
    axes.grid(alpha=0.3)
    return figure
