"""Measured services, predicted row by row: which layouts of a file are known, and who predicts each.

``LAYOUTS`` is asked in order; what no layout knows is read as results that users have (workloads/results).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from sim.silicon import inferencex, splitwise, tensorrt_llm, user_points, yosyp
from sim.silicon.served_tables import Tabled, tabled
from workloads.errors import shown
from workloads.results import Point, read

__all__ = ["LAYOUTS", "Layout", "Served", "served", "write_rows"]

Frame = Any
Pairs = list[tuple[str, str, str]]
Tick = Callable[[int, int], None]
SUFFIXES = (".csv", ".parquet")


class Predictor(Protocol):
    """A module, or an object, that predicts the rows of one layout."""

    NAME: str
    COLUMNS: frozenset[str]

    def predict(self, frame: Frame, progress: Callable[[int], None] | None = None) -> Frame:
        """The rows with predictions beside them, and a ``reason`` where there is none."""
        ...

    def pairs(self) -> Pairs:
        """(measured column, predicted column, title)."""
        ...


@dataclass(frozen=True)
class Layout:
    """Rows of one published kind: how they are recognised, and what predicts them."""

    name: str
    columns: frozenset[str]
    predict: Callable[..., Frame]
    pairs: Callable[[], Pairs]

    def matches(self, columns: set[str]) -> bool:
        """Whether a table with these columns is of this kind."""
        return self.columns <= columns


@dataclass(frozen=True)
class Served:
    """Every row of a file with what is predicted of it, errors by table, and how many rows have no prediction, why."""

    file: str
    layout: str
    frame: Frame
    tables: list[Tabled]
    unpredicted: dict[str, int]
    notes: tuple[str, ...] = ()


def _of(one: Any) -> Layout:
    return Layout(one.NAME, one.COLUMNS, one.predict, one.pairs)


LAYOUTS: tuple[Layout, ...] = tuple(
    map(_of, (inferencex, splitwise, tensorrt_llm, yosyp.PREFILLS, yosyp.DECODES, yosyp.LOADS))
)


def served(file: str, service: user_points.Service, progress: Tick | None = None, most: int | None = None) -> Served:
    """Predict the first ``most`` rows of a file. Raises ValueError, one line, for a file of no known layout."""
    frame = _table(Path(file))
    layout = None if frame is None else next((one for one in LAYOUTS if one.matches(set(frame.columns))), None)
    if frame is None or layout is None:
        return _of_points(file, read(file)[:most], service, progress)
    frame = frame.iloc[:most].reset_index(drop=True)
    found = layout.predict(frame, _ticking(progress, len(frame)))
    return _judged(Served(file, layout.name, found, [], {}), layout.pairs())


def write_rows(found: Served, path: Path) -> None:
    """All rows with their predictions, as CSV or Parquet, whole or not at all."""
    beside = path.with_name(path.name + ".tmp")
    frame = found.frame
    frame.to_parquet(beside, index=False) if path.suffix == ".parquet" else frame.to_csv(beside, index=False)
    beside.replace(path)


def _of_points(file: str, points: list[Point], service: user_points.Service, progress: Tick | None) -> Served:
    frame = user_points.predict(points, service, _ticking(progress, len(points)))
    notes = tuple(note for point in points for note in point.notes)
    found = Served(file, points[0].tool, frame, [], {}, notes)
    return _judged(found, user_points.pairs(frame))


def _judged(found: Served, pairs: Pairs) -> Served:
    """The tables, and rows without any prediction by their reason."""
    frame = found.frame
    reasons = frame["reason"].fillna("").astype(str)
    counted = reasons[reasons != ""].value_counts()
    listed = {measured for measured, _, _ in pairs}
    more = [(name, f"predicted_{name}", name) for name in frame.columns
            if f"predicted_{name}" in frame.columns and name not in listed]  # fmt: skip
    return replace(found, tables=tabled(frame, pairs + more), unpredicted={str(k): int(n) for k, n in counted.items()})


def _table(path: Path) -> Frame | None:
    """A CSV or Parquet table; None for what is neither. Raises ValueError for a damaged or missing one."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if path.suffix.lower() not in SUFFIXES and not path.name.lower().endswith(".csv.gz"):
        return None
    try:
        frame = pd.read_parquet(path) if path.suffix.lower() == ".parquet" else pd.read_csv(path)
    except Exception as error:  # pandas and Arrow raise what they like of a damaged file
        raise ValueError(f"{path}: {shown(str(error), 120)}: must be a table with a header") from None
    if frame.empty:
        raise ValueError(f"{path}: no rows: must hold one measured point at least")
    return frame.rename(columns=lambda name: str(name).strip())


def _ticking(progress: Tick | None, total: int) -> Callable[[int], None] | None:
    return None if progress is None else lambda done: progress(done, total)
