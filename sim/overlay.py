"""A user's measured speedups beside ours: a CSV whose columns are axes and ``speedup``, one measurement a row."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from hardware_profiles.strict_yaml import value as yaml_value
from sim.axes import Axis
from sim.scenario import Scenario
from sim.speedup import Ratio, curve
from workloads.errors import brief, shown

__all__ = ["Measured", "beside", "read_measured"]

MOST_BYTES = 1_000_000
MOST_ROWS = 1_000


@dataclass(frozen=True)
class Measured:
    """One measurement: what was set (axis, value), the speedup measured, and ours at exactly that point."""

    at: tuple[tuple[str, Any], ...]
    speedup: float
    ours: float = float("nan")

    @property
    def error(self) -> float:
        """Ours against the measured one, as a share of it."""
        return self.ours / self.speedup - 1.0


def read_measured(path: str) -> list[Measured]:
    """The rows of a CSV file. Raises ValueError, one line naming file, row, column and value."""
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"{path}: no such file; --overlay takes a CSV with a column speedup and one for each axis")
    if file.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path}: larger than {MOST_BYTES:,} bytes, which no table of speedups is")
    try:
        lines = list(csv.reader(file.read_text("utf-8-sig").splitlines()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV file in UTF-8: {brief(str(error))}") from None
    rows = [line for line in lines if line and not line[0].startswith("#")]
    header = [name.strip() for name in rows[0]] if rows else []
    if "speedup" not in header or len(set(header)) < len(header) or "" in header:
        raise ValueError(f"{path}: header {shown(header)}: must name every column once, one of them speedup")
    if not 1 < len(rows) <= MOST_ROWS + 1:
        raise ValueError(f"{path}: {len(rows) - 1} rows of data; allowed: 1 to {MOST_ROWS}")
    return [_row(path, number, header, row) for number, row in enumerate(rows[1:], 2)]


def beside(
    scenario: Scenario,
    measured: Sequence[Measured],
    fixed: Sequence[Axis] = (),
    ratio: Ratio | None = None,
    against: Sequence[str] = (),
) -> list[Measured]:
    """The same rows with ours; an axis that a row leaves out takes the curve's value if that has only one."""
    done = []
    for one in measured:
        axes = [Axis(path, (value,)).checked("--overlay") for path, value in one.at]
        named = {axis.path for axis in axes}
        for axis in fixed:
            if axis.path not in named:
                if len(axis.values) > 1:
                    raise ValueError(f"--overlay: no column {axis.path}, which takes {len(axis.values)} values here")
                axes.append(axis)
        ours = curve(scenario, axes, ratio, against).table["speedup"][0]
        done.append(Measured(one.at, one.speedup, float(ours)))
    return done


def _row(path: str, number: int, header: Sequence[str], row: Sequence[str]) -> Measured:
    if len(row) != len(header):
        raise ValueError(f"{path} row {number}: {len(row)} values under {len(header)} columns")
    cells = zip(header, row, strict=True)
    found = {name: yaml_value(cell, f"{path} row {number} {brief(name)}") for name, cell in cells}
    speedup = found.pop("speedup")
    if isinstance(speedup, bool) or not isinstance(speedup, int | float) or not (isfinite(speedup) and speedup > 0):
        raise ValueError(f"{path} row {number} speedup: {shown(speedup)} is not a positive number")
    return Measured(tuple(found.items()), float(speedup))
