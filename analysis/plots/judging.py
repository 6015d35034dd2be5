"""How much an answer depends on what went in, and how far it is from what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.plots.style import COLOURS, GREY, Table, housed, log_scale, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["mean_error_percent", "predicted_measured", "sensitivity", "sensitivity_table"]

Columns = dict[str, NDArray[Any]]
MARKS = "os^DvPX*"


def sensitivity_table(
    answer: Callable[..., float], ranges: Mapping[str, tuple[float, float]], base: Mapping[str, float]
) -> Columns:
    """Columns name, low, high (the inputs), at_low, at_high and base (the answers), the widest effect first.

    ``answer`` is called with ``base`` as keywords and one input at a time at either end of its range. Raises ValueError
    for a range of something that ``base`` does not name.
    """
    for name in ranges:
        if name not in base:
            raise ValueError(f"ranges: {name!r} is not one of {', '.join(base)}")
    middle = float(answer(**base))
    ends = {name: tuple(float(answer(**{**base, name: end})) for end in pair) for name, pair in ranges.items()}
    order = sorted(ranges, key=lambda name: -abs(ends[name][1] - ends[name][0]))
    return {
        "name": np.array(order, dtype=object),
        "low": np.array([ranges[name][0] for name in order]),
        "high": np.array([ranges[name][1] for name in order]),
        "at_low": np.array([ends[name][0] for name in order]),
        "at_high": np.array([ends[name][1] for name in order]),
        "base": np.full(len(order), middle),
    }


@housed
def sensitivity(table: Table, unit: str, title: str = "", axes: Axes | None = None) -> Axes:
    """A bar for each input from the answer at its low end to that at its high end, around the answer as it stands."""
    names = list(table["name"])
    axes = new_axes(axes, 6.4, 1.4 + 0.38 * len(names))
    base = float(np.asarray(table["base"])[0])
    ends = (("low", "at_low", COLOURS[5], "///"), ("high", "at_high", COLOURS[1], ""))
    for end, column, colour, hatch in ends:
        values = np.asarray(table[column], dtype=np.float64)
        label = f"input at its {end} end"
        axes.barh(
            names, values - base, left=base, color=colour, hatch=hatch, edgecolor="white", height=0.6, label=label
        )
        for row, value in enumerate(values):
            side = -1 if value < base else 1
            axes.annotate(f"{np.asarray(table[end])[row]:g}", (value, row), (3 * side, 0), textcoords="offset points",
                          va="center", ha="left" if side > 0 else "right", fontsize=7)  # fmt: skip
    axes.axvline(base, color="black", lw=1, ls="-", marker="")
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.set(xlabel=unit, title=title)
    axes.legend(loc="lower right", frameon=True)
    return axes


def mean_error_percent(table: Table) -> float:
    """Mean of |predicted / measured - 1| in percent (MAPE)."""
    predicted, measured = (np.asarray(table[name], dtype=np.float64) for name in ("predicted", "measured"))
    return float(np.mean(np.abs(predicted / measured - 1.0)) * 100)


@housed
def predicted_measured(
    table: Table, unit: str, band_percent: float = 10.0, title: str = "", axes: Axes | None = None
) -> Axes:
    """Predicted over measured on logarithmic scales with the line of equality and a band around it.

    Column ``group`` (if there) is told apart by mark and colour.
    """
    axes = new_axes(axes, 5.4, 4.8)
    x, y = (np.asarray(table[name], dtype=np.float64) for name in ("measured", "predicted"))
    groups = np.asarray(table["group"]) if "group" in table else np.array(["cases"] * len(x), dtype=object)
    ends = np.array([min(x.min(), y.min()) / 1.3, max(x.max(), y.max()) * 1.3])
    share = band_percent / 100
    axes.fill_between(ends, ends * (1 - share), ends * (1 + share), color=GREY, alpha=0.2, lw=0,
                      label=f"within {band_percent:g} %")  # fmt: skip
    axes.plot(ends, ends, color="black", lw=1, ls="-", marker="")
    for number, group in enumerate(dict.fromkeys(groups.tolist())):
        here = groups == group
        axes.scatter(x[here], y[here], s=20, alpha=0.8, color=COLOURS[number % len(COLOURS)],
                     marker=MARKS[number % len(MARKS)], label=str(group), zorder=3)  # fmt: skip
    log_scale(axes, x=10, y=10)
    axes.set(xlabel=f"measured ({unit})", ylabel=f"predicted ({unit})", xlim=ends, ylim=ends)
    axes.set_title(title or f"mean error {mean_error_percent(table):.1f} % over {len(x)} cases")
    axes.legend(loc="upper left")
    return axes
