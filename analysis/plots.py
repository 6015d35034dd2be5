"""Pictures. Matplotlib is imported when one is drawn, never before; no window opens, no global state is touched."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sim.analytic.hardware import Device

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["SUFFIXES", "Point", "roofline", "save_figure"]

SUFFIXES = (".png", ".svg", ".pdf")
PHASE_COLOURS = {"prefill": "#d1495b", "decode": "#00798c"}
OTHER_COLOURS = ("#edae49", "#66a182", "#2e4057")
LABELLED = 6  # points a phase that carry their name: those that take most of its time


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
    shown = [p for p in points if p.unit in ("tensor", "vector") and 0 < p.intensity and p.attained_flops > 0]
    shown = [p for p in shown if isfinite(p.intensity)]
    figure, axes = _canvas()
    low = min([0.1, *(p.intensity / 3 for p in shown)])
    high = max([3000.0, *(p.intensity * 3 for p in shown)])
    peak = _ceilings(axes, device, _formats(shown), np.array([low, high]))
    for number, phase in enumerate(dict.fromkeys(p.phase for p in shown)):
        colour = PHASE_COLOURS.get(phase, OTHER_COLOURS[number % len(OTHER_COLOURS)])
        _dots(axes, [p for p in shown if p.phase == phase], phase, colour)
    floor = min([0.3 * low * device.memory_Bps, *(p.attained_flops / 3 for p in shown)])
    axes.set(xlim=(low, high), ylim=(floor, 3 * peak), title=title or device.name)
    axes.set(xlabel=_below(len(points) - len(shown)), ylabel="FLOP per second")
    axes.legend(loc="lower right", fontsize=8, framealpha=0.9)
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


def _formats(points: Sequence[Point]) -> list[str]:
    return list(dict.fromkeys(p.format for p in points if p.unit == "tensor")) or ["bf16"]


def _ceilings(axes: Axes, device: Device, formats: Sequence[str], span: Any) -> float:
    """Draw the roofs over ``span`` = (lowest, highest) intensity; returns the highest rate, FLOP per second."""
    rates = {device.peak_flops(f).used_format: device.peak_flops(f).flops for f in formats}
    peak = max(rates.values())
    axes.plot(span, np.minimum(span * device.memory_Bps, 10 * peak), color="black", lw=1.5)
    _along(axes, device.memory_Bps, span[0] * 1.6, f"main memory {device.memory_Bps / 1e12:.3g} TB/s", "black")
    if device.onchip.bandwidth_Bps:
        axes.plot(span, span * device.onchip.bandwidth_Bps, color="grey", lw=1, ls="--")
        label = f"on chip {device.onchip.bandwidth_Bps / 1e12:.3g} TB/s"
        _along(axes, device.onchip.bandwidth_Bps, span[0] * 1.6, label, "grey")
    for used, rate in rates.items():
        ridge = rate / device.memory_Bps
        axes.plot([ridge, span[1]], [rate, rate], color="black", lw=1.5)
        axes.plot([ridge, ridge], [1, rate], color="black", lw=0.7, ls=":")
        axes.annotate(f"{used} {rate / 1e12:.4g} TFLOP/s", (span[1], rate), (-4, 4), **_OFFSET, ha="right", fontsize=8)
        axes.annotate(f"ridge point {ridge:.0f} FLOP/B", (ridge, rate), (4, -14), **_OFFSET, fontsize=8)
    return peak


_OFFSET: dict[str, Any] = {"textcoords": "offset points"}


def _along(axes: Axes, slope: float, at: float, label: str, colour: str) -> None:
    """A label on a line of unit slope in log-log space."""
    axes.text(
        at, at * slope * 1.25, label, color=colour, fontsize=8, rotation=45, rotation_mode="anchor",
        transform_rotates_text=True,
    )  # fmt: skip


def _dots(axes: Axes, points: Sequence[Point], phase: str, colour: str) -> None:
    total = sum(p.seconds for p in points) or 1.0
    sizes = [20 + 400 * p.seconds / total for p in points]
    where = [p.intensity for p in points], [p.attained_flops for p in points]
    axes.scatter(*where, s=sizes, color=colour, alpha=0.6, edgecolor="white", lw=0.6, label=phase, zorder=3)
    for point in sorted(points, key=lambda p: p.seconds, reverse=True)[:LABELLED]:
        axes.annotate(point.op, (point.intensity, point.attained_flops), (6, -10), **_OFFSET, fontsize=7, color=colour)


def _below(left_out: int) -> str:
    label = "FLOP per byte of main-memory traffic"
    return f"{label}\n({left_out} ops without FLOPs or without such traffic are not shown)" if left_out else label
