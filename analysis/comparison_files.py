"""The folder of a comparison: ``compare.json`` with every number, ``waterfall.png`` with the picture."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.store import check_target, new_folder, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from analysis.compare import Comparison
    from analysis.waterfall import Step

__all__ = ["MARK", "check_place", "save_comparison", "waterfall_figure"]

MARK = "compare.json"
RISE, FALL, TOTAL = "#d1495b", "#66a182", "#2e4057"


def check_place(folder: str, overwrite: bool = False) -> None:
    """Raise ValueError, one line, where a comparison may not be written."""
    check_target(Path(folder), overwrite, MARK)


def save_comparison(comparison: Comparison, folder: str, overwrite: bool = False) -> str:
    """Write the folder whole, or nothing; returns its path. Raises ValueError, one line."""
    from analysis.plots import save_figure

    check_place(folder, overwrite)
    with new_folder(Path(folder)) as beside:
        write_json(beside / MARK, as_table(comparison))
        save_figure(waterfall_figure(comparison.waterfall, comparison.labels), beside / "waterfall.png")
    return folder


def as_table(comparison: Comparison) -> dict[str, Any]:
    """A comparison as plain values; the waterfall with its differences."""
    steps = [{**asdict(step), "difference_ms": step.difference_ms} for step in comparison.waterfall]
    plain = {name: value for name, value in asdict(comparison).items() if name != "uncertainty" or value is not None}
    return {**plain, "waterfall": steps}


def waterfall_figure(steps: list[Step], labels: tuple[str, str]) -> Figure:
    """From the mean E2EL of A to that of B, one bar a cause: what made it longer, what made it shorter."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    *parts, total = steps
    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    starts, level = [0.0], total.a_ms
    for step in parts:
        starts.append(level)
        level += step.difference_ms
    heights = [total.a_ms, *(step.difference_ms for step in parts), total.b_ms]
    colours = [TOTAL, *(RISE if step.difference_ms > 0 else FALL for step in parts), TOTAL]
    bars = axes.bar(range(len(heights)), heights, bottom=[*starts, 0.0], color=colours, width=0.7)
    signs = ["", *("+" for _ in parts), ""]
    axes.bar_label(bars, [f"{h:{sign}.4g}" for h, sign in zip(heights, signs, strict=True)], fontsize=8, padding=2)
    names = ["A", *(step.cause for step in parts), "B"]
    axes.set_xticks(range(len(names)), names, rotation=20, ha="right", fontsize=9)
    tops = [bottom + max(height, 0.0) for bottom, height in zip([*starts, 0.0], heights, strict=True)]
    axes.set(ylabel="mean E2EL (ms)", ylim=(min(0.0, *starts), 1.08 * max(tops)))
    axes.set_title(f"A: {labels[0]}\nB: {labels[1]}", fontsize=10, loc="left", wrap=True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
