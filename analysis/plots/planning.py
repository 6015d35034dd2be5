"""Plans and sweeps: dollars against latency with the Pareto front, what would change, devices by kind, and a
result over what was swept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from analysis.plots.style import COLOURS, GREY, housed, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plan_devices", "plan_front", "plan_sensitivity", "sweep_lines"]

BLUE, RED, GREEN = COLOURS[:3]
Row = Mapping[str, Any]
MOST_NAMES = 6


@housed
def plan_front(rows: Sequence[Row], axes: Axes | None = None) -> Axes:
    """Mean end-to-end latency against dollars an hour, a dot for each confirmed plan, its area the joules of a token;
    the front in blue, joined by a line, its plans by name.
    """
    axes = new_axes(axes, 7.2, 4.4)
    kept = [one for one in rows if one["status"] == "kept"]
    most = max((one.get("joules_per_output_token") or 0.0 for one in kept), default=0.0) or 1.0
    front = sorted((one for one in kept if one["pareto"]), key=lambda one: one["usd_per_hour"])
    for one in kept:
        area = 30 + 170 * (one.get("joules_per_output_token") or 0.0) / most
        colour = BLUE if one["pareto"] else GREY
        axes.scatter(one["usd_per_hour"], one["e2el_mean_ms"], s=area, color=colour, alpha=0.7, linewidths=0, zorder=2)
    axes.plot([one["usd_per_hour"] for one in front], [one["e2el_mean_ms"] for one in front], color=BLUE, zorder=1)
    for i, one in enumerate(front[:MOST_NAMES]):
        said = f"{one['size']} x {one['candidate']}"
        place = (one["usd_per_hour"], one["e2el_mean_ms"])
        axes.annotate(said, place, xytext=(9, 14 - 11 * (i % 3)), textcoords="offset points", fontsize=7)
    axes.set(xlim=_room([one["usd_per_hour"] for one in kept]), ylim=_room([one["e2el_mean_ms"] for one in kept]))
    axes.set_xlabel("dollars an hour")
    axes.set_ylabel("mean end-to-end latency (ms)")
    axes.set_title("confirmed plans: area is joules a token, blue the Pareto front", fontsize=9)
    return axes


def _room(values: Sequence[float]) -> tuple[float, float]:
    """From zero to well beyond the last, for names."""
    return 0.0, 1.35 * max(values, default=1.0)


@housed
def plan_sensitivity(bars: Sequence[Row], axes: Axes | None = None) -> Axes:
    """By how many percent the best plan's dollars would change with a tenth more of something, largest first."""
    axes = new_axes(axes, 6.4, 3.2)
    shown = sorted((b for b in bars[1:] if b["percent"] is not None), key=lambda b: abs(b["percent"]))
    values = [bar["percent"] for bar in shown]
    drawn = axes.barh([bar["change"] for bar in shown], values, color=[RED if v > 0 else GREEN for v in values])
    axes.bar_label(drawn, [f"{v:+.1f} %" for v in values], fontsize=8, padding=3)
    widest = max((abs(v) for v in values), default=1.0) or 1.0
    axes.set_xlim(-1.35 * widest, 1.35 * widest)
    axes.axvline(0.0, color=GREY, linewidth=0.8)
    axes.set_xlabel("change of dollars an hour for the same traffic (%)")
    return axes


@housed
def plan_devices(rows: Sequence[Row], axes: Axes | None = None) -> Axes:
    """Devices that each confirmed plan takes for the whole traffic, the fewest on top; the best plan's in blue."""
    axes = new_axes(axes, 6.4, 2.8)
    kept = [one for one in rows if one["status"] == "kept"]
    shown = sorted(kept, key=lambda one: (-one["devices"], -one["usd_per_hour"]))
    colours = [BLUE if one["rank"] == 1 else GREY for one in shown]
    drawn = axes.barh(range(len(shown)), [one["devices"] for one in shown], color=colours)
    axes.set_yticks(range(len(shown)), [str(one["candidate"]) for one in shown])  # as words, "2D" would be a date
    axes.bar_label(drawn, [f"{one['devices']} ({one['size']})" for one in shown], fontsize=8, padding=3)
    axes.set_xlim(0, 1.25 * max((one["devices"] for one in shown), default=1))
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("devices for the whole traffic")
    return axes


@housed
def sweep_lines(lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str, axes: Axes | None = None,
                limit: float | None = None) -> Axes:  # fmt: skip
    """``y`` over ``x``, a line for each entry, and a promise as a dashed line where there is a ``limit``."""
    axes = new_axes(axes, 6.4, 3.2)
    for i, (name, (xs, ys)) in enumerate(lines.items()):
        style = ("-", "--", ":", "-.")[i % 4]
        axes.plot(xs, ys, color=COLOURS[i % len(COLOURS)], ls=style, marker="os^vDP"[i % 6], label=name)
    if limit is not None:
        axes.axhline(limit, color=GREY, ls="--", lw=1.0)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_ylim(0, None)
    if len(lines) > 1:
        axes.legend(handlelength=2.6)
    return axes
