"""The folder of a tuning study: ``tune.csv``, every choice, ``tune.png``, time per token against capacity, and
``scenario.yaml``, as resolved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from analysis.plots import save_figure, tuning
from analysis.speedup_files import csv_text
from analysis.store import check_target, new_folder

__all__ = ["MARK", "check_place", "save_tune"]

MARK = "tune.csv"


def check_place(folder: str, overwrite: bool = False) -> None:
    """Raise ValueError, one line, where a study may not be written."""
    check_target(Path(folder), overwrite, MARK)


def save_tune(
    candidates: Sequence[Any], folder: str, *, scenario_yaml: str | None = None, overwrite: bool = False
) -> list[str]:
    """Write the folder whole, or nothing; returns the names of its files. Raises ValueError, one line."""
    check_place(folder, overwrite)
    rows = [{**asdict(one), "settings": " ".join(one.settings)} for one in candidates]
    table = {name: np.array([row[name] for row in rows], dtype=object) for name in rows[0]}
    with new_folder(Path(folder)) as beside:
        (beside / MARK).write_text(csv_text(table), "utf-8")
        if scenario_yaml is not None:
            (beside / "scenario.yaml").write_text(scenario_yaml, "utf-8")
        save_figure(tuning(candidates), beside / "tune.png")
        return sorted(file.name for file in beside.iterdir())
