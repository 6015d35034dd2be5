"""The roofline: what a device can do at best, and a dot for every op (Williams, Waterman, Patterson 2009)."""

from __future__ import annotations

from collections.abc import Sequence
from math import atan2, degrees, isfinite, log10
from typing import TYPE_CHECKING, Any, Protocol

from analysis.plots.style import COLOURS, GREY, PHASES, housed, log_scale, new_axes
from sim.analytic.hardware import Device

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Point", "roofline"]

RATED = ("tensor", "vector")
OTHER_LOOKS = ((COLOURS[4], "D"), (COLOURS[3], "v"), (COLOURS[6], "P"))
CLOSE = 0.25  # decades within which dots share a label
_OFFSET: dict[str, Any] = {"textcoords": "offset points"}


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


@housed
def roofline(
    points: Sequence[Point],
    device: Device,
    title: str = "",
    formats: Sequence[str] = (),
    axes: Axes | None = None,
) -> Axes:
    """The device's ceilings and a dot for every op: FLOP per second over FLOP per byte of main memory.

    Ceilings: main memory, on-chip memory where its bandwidth is known, and the matrix rate of each format that the
    points use or ``formats`` names, whose ridge point is marked. An op without FLOPs or without main-memory traffic
    has no place on the picture and is counted below it. The area of a dot grows with the op's share of its phase's
    time. Raises ValueError for an unknown format.
    """
    shown = [p for p in points if p.unit in RATED and p.attained_flops > 0 and isfinite(p.intensity)]
    axes = new_axes(axes, 9, 6)
    rates = _rates(shown, device, formats)
    span = (min([0.1, *(p.intensity / 3 for p in shown)]), max([3000.0, *(p.intensity * 10 for p in shown)]))
    low = min([0.3 * span[0] * device.memory_Bps, *(p.attained_flops / 3 for p in shown)])
    log_scale(axes, x=10, y=10)
    axes.set(xlim=span, ylim=(low, 3 * max(rates.values())), title=title or device.name)
    _ceilings(axes, device, rates, span)
    for number, phase in enumerate(dict.fromkeys(p.phase for p in shown)):
        look = PHASES.get(phase, OTHER_LOOKS[number % len(OTHER_LOOKS)])
        _dots(axes, [p for p in shown if p.phase == phase], phase, *look)
    axes.set(xlabel=_below(len(points) - len(shown)), ylabel="FLOP per second")
    _legend(axes)
    return axes


def _rates(points: Sequence[Point], device: Device, formats: Sequence[str]) -> dict[str, float]:
    """Roofs by label, FLOP per second: matrix rates that are used or asked for, and the vector units' if any point is
    theirs.
    """
    used = [p.format for p in points if p.unit == "tensor"] or ([] if formats else ["bf16"])
    peaks = [device.peak_flops(f) for f in dict.fromkeys([*used, *formats])]
    rates = {peak.used_format: peak.flops for peak in peaks}
    if any(p.unit == "vector" for p in points):
        rates["vector units"] = device.vector_flops().flops
    return rates


def _ceilings(axes: Axes, device: Device, rates: dict[str, float], span: tuple[float, float]) -> None:
    """Draw the roofs over ``span`` = (lowest, highest) intensity, and the ridge point of every matrix rate."""
    peak = max(rates.values())
    _slope(axes, device.memory_Bps, span[0], peak, "main memory", {"color": "black", "lw": 1.5}, (8, -10))
    if device.onchip.bandwidth_Bps:
        dashed = {"color": GREY, "lw": 1, "ls": "--"}
        _slope(axes, device.onchip.bandwidth_Bps, span[0], peak, "on chip", dashed, (-6, 6))
    plain: dict[str, Any] = {"color": "black", "marker": ""}
    for number, (name, rate) in enumerate(rates.items()):
        ridge, thin = rate / device.memory_Bps, name == "vector units"
        axes.plot([ridge, span[1]], [rate, rate], lw=0.8 if thin else 1.5, ls="--" if thin else "-", **plain)
        axes.annotate(f"{name} {rate / 1e12:.4g} TFLOP/s", (span[1], rate), (-4, 4), **_OFFSET, ha="right", fontsize=8)
        if not thin:
            axes.plot([ridge, ridge], [1, rate], lw=0.7, ls=":", **plain)
            label, place = f"ridge point {ridge:.0f} FLOP/B", (ridge, axes.get_ylim()[0])
            axes.annotate(label, place, (4, 8 + 11 * number), **_OFFSET, fontsize=8)


def _slope(
    axes: Axes, bandwidth_Bps: float, start: float, peak: float, label: str, style: dict[str, Any], off: tuple[int, int]
) -> None:
    """The roof of one memory level, from the left edge to the highest rate, with its name along it."""
    end = peak / bandwidth_Bps
    axes.plot([start, end], [start * bandwidth_Bps, peak], marker="", **style)
    (x0, y0), (x1, y1) = axes.transData.transform([(start, start * bandwidth_Bps), (end, peak)])
    at = start * 1.5
    axes.annotate(
        f"{label} {bandwidth_Bps / 1e12:.3g} TB/s", (at, at * bandwidth_Bps), off, **_OFFSET,
        color=style["color"], fontsize=8, rotation=degrees(atan2(y1 - y0, x1 - x0)), rotation_mode="anchor",
    )  # fmt: skip


def _dots(axes: Axes, points: Sequence[Point], phase: str, colour: str, marker: str) -> None:
    """A dot for every op; dots that all but coincide share one label, which names the longest first."""
    total = sum(p.seconds for p in points) or 1.0
    sizes = [20 + 400 * p.seconds / total for p in points]
    where = [p.intensity for p in points], [p.attained_flops for p in points]
    axes.scatter(
        *where, s=sizes, color=colour, marker=marker, alpha=0.6, edgecolor="white", lw=0.6, label=phase, zorder=3
    )
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
        box = axes.legend(handles, labels, loc="lower right", framealpha=0.9)
        for handle in box.legend_handles:
            handle.set_sizes([40])  # type: ignore[union-attr]


def _below(left_out: int) -> str:
    label = "FLOP per byte of main-memory traffic"
    return f"{label}\n({left_out} ops without FLOPs or without such traffic are not shown)" if left_out else label
