"""A model's lifetime: energy of training once, of inference day by day, and when inference is most of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from analysis.plots.style import COLOURS, Table, housed, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["lifetime_figure", "lifetime_table"]

UNITS = ((1e9, "TWh"), (1e6, "GWh"), (1e3, "MWh"), (1.0, "kWh"))
SHARES = (0.5, 0.8)


class Lived(Protocol):
    """What is drawn: ``sim.lifetime.Lifetime``."""

    def passes_after_days(self, share: float, measure: str = "kWh") -> float | None:
        """Days until inference is that share of the total."""
        ...


def lifetime_table(training_kWh: float, daily_kWh: float, days: float, points: int = 101) -> Table:
    """Columns days, training_kWh and inference_kWh, what has been spent by then; ``points`` rows."""
    at = np.linspace(0.0, days, points)
    return {"days": at, "training_kWh": np.full(points, training_kWh), "inference_kWh": at * daily_kWh}


@housed
def lifetime_figure(found: Lived, title: str = "", axes: Axes | None = None) -> Axes:
    """Training as a band, inference growing on it, and the days when it is half and 80 % of the total.

    Raises ValueError where the energy of either is unknown, or nobody asks anything.
    """
    passed = [found.passes_after_days(share) for share in SHARES]
    once, daily = (getattr(found, part).kWh for part in ("training", "daily"))
    if None in passed or once is None or daily is None:
        raise ValueError("lifetime: nothing to draw: the energy of training or of inference is unknown")
    marks = [float(day) for day in passed if day is not None]
    axes = new_axes(axes)
    table = lifetime_table(once, daily, 1.25 * marks[-1])
    days, factor, unit = table["days"], *_unit(once + daily * 1.25 * marks[-1])
    base, top = table["training_kWh"] / factor, (table["training_kWh"] + table["inference_kWh"]) / factor
    axes.fill_between(days, 0, base, color=COLOURS[0], lw=0, label="training, once")
    axes.fill_between(days, base, top, facecolor=COLOURS[1], edgecolor="white", hatch="//", lw=0, label="inference")
    for share, day in zip(SHARES, marks, strict=True):
        height = once / (1 - share) / factor
        axes.plot([day, day], [0, height], color="white", ls="--", lw=1.4, marker="")
        axes.annotate(f"{share:.0%} inference\nday {day:,.0f}", (day, height), (-4, 4), ha="right", va="bottom",
                      textcoords="offset points", fontsize="small")  # fmt: skip
    axes.set(xlabel="days of service", ylabel=f"energy spent ({unit})", title=title, xlim=(0, days[-1]),
             ylim=(0, top[-1] * 1.08))  # fmt: skip
    axes.legend(loc="upper left")
    return axes


def _unit(kWh: float) -> tuple[float, str]:
    return next(((size, name) for size, name in UNITS if kWh >= size), UNITS[-1])
