"""The folder of a plan: ``ranked.parquet`` and ``.csv`` with every candidate, the Pareto front, the sensitivity bar,
``plan.json`` with the answer, ``best.yaml`` to run, ``scenario.yaml`` as it was asked and resolved, and pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.plots import save_figure
from analysis.plots.planning import plan_front, plan_sensitivity
from analysis.store import check_target, new_folder, write_json
from analysis.sweep_files import tidy, write_table

__all__ = ["MARK", "check_place", "save_plan"]

MARK = "plan.json"
FIRST = ("rank", "candidate", "status", "size", "devices", "usd_per_hour", "why")
LEFT_OUT = ("number",)


def check_place(folder: str, overwrite: bool = False) -> None:
    """Raise ValueError, one line, where a plan may not be written."""
    check_target(Path(folder), overwrite, MARK)


def save_plan(
    rows: Sequence[Mapping[str, Any]], bars: Sequence[Mapping[str, Any]], folder: str, said: Mapping[str, Any],
    best_yaml: str | None, *, scenario_yaml: str | None = None, overwrite: bool = False,
) -> list[str]:  # fmt: skip
    """Write the folder whole, or nothing; returns the names of its files. ``said``: question and answer.

    Raises ValueError, one line.
    """
    check_place(folder, overwrite)
    with new_folder(Path(folder)) as beside:
        table = ordered(rows)
        write_table(table, beside / "ranked")
        front = [row for row in rows if row.get("pareto")]
        if front:
            write_table(ordered(front), beside / "pareto")
            write_table(tidy(bars), beside / "sensitivity")
            save_figure(plan_front(rows), beside / "front.png")
            save_figure(plan_sensitivity(bars), beside / "sensitivity.png")
        for name, text in (("best.yaml", best_yaml), ("scenario.yaml", scenario_yaml)):
            if text is not None:
                (beside / name).write_text(text, "utf-8")
        write_json(beside / MARK, {**said, "pareto": [row["candidate"] for row in front], "sensitivity": list(bars)})
        return sorted(file.name for file in beside.iterdir())


def ordered(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The table with what people look for first in front."""
    table = tidy(rows)
    first = {name: table[name] for name in FIRST if name in table}
    return {**first, **{name: column for name, column in table.items() if name not in (*first, *LEFT_OUT)}}
