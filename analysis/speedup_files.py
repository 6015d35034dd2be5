"""The folder of a speedup study: ``speedup.csv``, ``speedup.png``, ``contours.png`` where two axes are numbers, and
``scenario.yaml``, as resolved.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.plots import save_figure, speedup_contours, speedup_curves
from analysis.store import check_target, new_folder

__all__ = ["MARK", "check_place", "csv_text", "picture_axes", "save_speedup"]

MARK = "speedup.csv"
MOST_PANELS = 6
RESULTS = (
    "expected_tokens", "round_ms", "step_ms", "tokens_per_s", "speedup", "fits", "best", "quality_loss_percent",
    *(f"{name}_{level}" for name in ("speedup", "tokens_per_s") for level in ("p10", "p50", "p90")),
)  # fmt: skip


def check_place(folder: str, overwrite: bool = False) -> None:
    """Raise ValueError, one line, where a study may not be written."""
    check_target(Path(folder), overwrite, MARK)


def save_speedup(
    table: Mapping[str, Any],
    numbers: Mapping[str, Sequence[Any]],
    folder: str,
    *,
    measured: Sequence[Any] = (),
    target: float | None = None,
    title: str = "",
    scenario_yaml: str | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Write the folder whole, or nothing; returns the names of its files.

    ``table``: columns of equal length; ``numbers``: values by axis, in order, of the axes that are numbers;
    ``target``: a speedup to draw a contour for; ``scenario_yaml``: what was asked, as resolved. Raises ValueError, one
    line.
    """
    check_place(folder, overwrite)
    axes = [name for name, values in numbers.items() if len(values) > 1]
    every = [name for name in table if name not in RESULTS and len(set(table[name].tolist())) > 1]
    with new_folder(Path(folder)) as beside:
        (beside / MARK).write_text(csv_text(table), "utf-8")
        if scenario_yaml is not None:
            (beside / "scenario.yaml").write_text(scenario_yaml, "utf-8")
        if axes:
            x, lines, panel = picture_axes(axes, every, table)
            figure = speedup_curves(table, x, lines, panel, measured, title)
            save_figure(figure, beside / "speedup.png")
        pair = [name for name in axes if len(numbers[name]) > 2][:2]
        if len(pair) == 2:
            rest = next((n for n in every if n not in pair and len(set(table[n].tolist())) <= MOST_PANELS), None)
            save_figure(speedup_contours(table, pair[0], pair[1], rest, target, title), beside / "contours.png")
        return sorted(file.name for file in beside.iterdir())


def picture_axes(
    numeric: Sequence[str], every: Sequence[str], table: Mapping[str, Any]
) -> tuple[str, list[str], str | None]:
    """(x, lines, panel): the first numeric axis along x; with two more axes or more, the last short one by panel."""
    x = numeric[0]
    rest = [name for name in every if name != x]
    short = [name for name in rest if len(set(table[name].tolist())) <= MOST_PANELS]
    panel = short[-1] if len(rest) > 1 and short else None
    return x, [name for name in rest if name != panel], panel


def csv_text(table: Mapping[str, Any]) -> str:
    """Every point as CSV, floats with all their digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    writer.writerows(zip(*(column.tolist() for column in table.values()), strict=True))
    return text.getvalue()
