"""The table of published numbers as it ships: rows.csv and sources.csv, checked completely when they are read."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache, cached_property
from pathlib import Path

__all__ = ["LABELS", "Published", "Table", "load"]

FOLDER = Path(__file__).parent
PREDICTED = "prediction after one named fit"
LABELS = ("identity", "prediction", PREDICTED, "fit", "direction only", "known failure", "data")
"""What a row claims.

*identity*: printed numbers must agree with each other through the formula. *prediction*: nothing was fitted on the
row or its table. *prediction after one named fit*: the note names the other row that one number was fitted on. *fit*:
solved from the row itself, or from its group: shows that the model can say it, and no more. *direction only*: above or
below another. *known failure*: simple theory misses it, by so much. *data*: nothing predicts it.
"""


NUMBER = r"\d+(\.\d+)?"
SHARE = rf"{NUMBER}%?"
TOLERANCES = {"data": ("", "nothing"), "direction only": (r"(above|below) \S+", "above or below, and a row or number"),
              "known failure": (rf"{NUMBER}%\.\.{NUMBER}%", "LOW%..HIGH%")}  # fmt: skip


@dataclass(frozen=True)
class Published:
    """One row of rows.csv, as text; an empty field says that the source does not.

    ``tolerance``: ``2%`` relative, ``0.005`` absolute, ``35%..50%`` how far a known failure misses, ``above ID``,
    ``below 1`` for a direction. ``ours``: ``file.function`` and, after a blank, what the function is told beside.
    """

    id: str
    deck: str
    slide: str
    method: str
    source: str
    place: str
    hardware: str
    model: str
    draft: str
    task: str
    temperature: str
    gamma: str
    batch: str
    config: str
    quantity: str
    published: str
    unit: str
    provenance: str
    label: str
    tolerance: str
    ours: str
    note: str

    @cached_property
    def value(self) -> float | None:
        """The published number; None where a range, a formula or nothing is printed."""
        try:
            return float(self.published)
        except ValueError:
            return None

    @property
    def decks(self) -> list[str]:
        """The decks it is printed in."""
        return self.deck.split("|") if self.deck else []

    def slide_in(self, deck: str) -> str:
        """Number and title of its slide in a deck (the number counts slides with numbers on them, in order)."""
        return self.slide.split("|")[self.decks.index(deck)]

    @property
    def argument(self) -> str:
        """What ``ours`` says after the function's name."""
        return self.ours.partition(" ")[2]

    @property
    def settings(self) -> dict[str, float]:
        """The numbers in ``config``, as in ``alpha=0.6;c=chat=0``."""
        found = {}
        for part in self.config.split(";"):
            *names, last = (word.strip() for word in part.split("="))
            if names and last.replace(".", "", 1).isdigit():
                found.update(dict.fromkeys(names, float(last)))
        return found

    @property
    def what(self) -> str:
        """The row in words: quantity and what it is of."""
        of = [self.model + (f" <- {self.draft}" if self.draft else ""), self.task, self.hardware]
        of += [f"T {self.temperature}" if self.temperature else "", f"gamma {self.gamma}" if self.gamma else ""]
        of += [f"batch {self.batch}" if self.batch not in ("", "1") else "", self.config]
        return f"{self.quantity.replace('_', ' ')}: {', '.join(part for part in of if part) or self.method}"


class Table:
    """All rows, in the file's order, and the citations of their sources."""

    def __init__(self, rows: tuple[Published, ...], citations: dict[str, str]) -> None:
        self.rows, self.citations = rows, citations
        self.known = {row.id: row for row in rows}

    def value(self, name: str) -> float:
        """The published number of a row by its id."""
        found = self.known[name].value
        assert found is not None, f"{name} prints no number"
        return found

    def like(self, row: Published, **changed: str) -> Iterator[Published]:
        """Rows of the same source that equal ``row`` in everything named by ``changed`` (a field and its value)."""
        for other in self.rows:
            if other.source == row.source and all(getattr(other, k) == v for k, v in changed.items()):
                yield other

    def one(self, row: Published, **changed: str) -> Published:
        """The first such row."""
        found = next(self.like(row, **changed), None)
        assert found is not None, f"{row.id}: no row of {row.source} with {changed}"
        return found


@cache
def load() -> Table:
    """The table that ships. Raises ValueError naming file, row and key."""
    citations = {source: said for source, said in _read("sources.csv", ["source", "citation"])}
    names = [f.name for f in fields(Published)]
    rows = tuple(Published(*cells) for cells in _read("rows.csv", names))
    seen: set[str] = set()
    for row in rows:
        _check(row, citations, seen)
        seen.add(row.id)
    return Table(rows, citations)


def _read(name: str, columns: list[str]) -> Iterator[list[str]]:
    with (FOLDER / name).open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        if next(reader) != columns:
            raise ValueError(f"{name}: the columns must be {', '.join(columns)}")
        for number, cells in enumerate(reader, 2):
            if len(cells) != len(columns):
                raise ValueError(f"{name}:{number}: {len(cells)} cells; {len(columns)} columns")
            yield cells


def _check(row: Published, citations: dict[str, str], seen: set[str]) -> None:
    """Raise ValueError for a row that says too little, or twice."""
    where = f"rows.csv: {row.id}"
    if row.id in seen:
        raise ValueError(f"{where}: twice")
    if row.source not in citations:
        raise ValueError(f"{where}: source: {row.source!r} is not in sources.csv")
    if row.label not in LABELS:
        raise ValueError(f"{where}: label: {row.label!r}; allowed: {', '.join(LABELS)}")
    if (row.label == "data") != (not row.ours):
        raise ValueError(f"{where}: ours: a row of label data has none, every other row one")
    pattern, allowed = TOLERANCES.get(row.label, (SHARE, "a number or a percentage"))
    if not re.fullmatch(pattern, row.tolerance):
        raise ValueError(f"{where}: tolerance: {row.tolerance!r}: {row.label} takes {allowed}")
    if row.label == PREDICTED and "fit" not in row.note:
        raise ValueError(f"{where}: note: must name the fit")
    if len(row.decks) != (len(row.slide.split("|")) if row.slide else 0):
        raise ValueError(f"{where}: slide: one for each deck")
