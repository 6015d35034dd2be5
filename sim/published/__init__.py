"""Published numbers beside ours, row by row: what ``decodesim validate --published`` prints.

``rows.csv`` holds every number with its label, tolerance and source; a row's ``ours`` names the function, in a file
of this folder, that asks the simulator for it. Rows that no cost model predicts carry the label *data* and have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from pathlib import Path

from sim.plugin import suggest
from sim.published.held import Held
from sim.published.table import LABELS, Published, Table, load

__all__ = ["LABELS", "Held", "Published", "chosen", "decks", "held", "hold"]


def held(deck: str | None = None, only_label: str | None = None) -> list[Held]:
    """The rows of a deck in slide order (``None``: all rows), with one label or several (``None``: all), ours computed.

    Raises ValueError naming what is allowed.
    """
    table = load()
    wanted = set(LABELS) if only_label is None else set(chosen(only_label))
    if deck is not None and deck not in decks(table):
        raise ValueError(f"--deck: {deck[:80]!r}; allowed: {', '.join(decks(table))}{suggest(deck, decks(table))}")
    rows = (row for row in table.rows if row.label in wanted and (deck is None or deck in row.decks))
    return hold(rows if deck is None else sorted(rows, key=lambda row: row.slide_in(deck)), table)


def hold(rows: Iterable[Published], table: Table) -> list[Held]:
    """Each row with ours beside it."""
    return [Held(row, ours(row, table), _limit(row, table)) for row in rows]


@cache
def ours(row: Published, table: Table) -> float | None:
    """What the simulator says; None where nothing predicts the row. Kept: a row's number does not change."""
    if not row.ours:
        return None
    return float(function(row)(row, table))


def function(row: Published) -> Callable[[Published, Table], float]:
    """The function that the row names, as ``file.function`` of this folder. Raises ValueError where there is none."""
    module, _, name = row.ours.partition(" ")[0].partition(".")
    known = {p.stem for p in Path(__file__).parent.glob("*.py")}
    found = getattr(import_module(f"sim.published.{module}"), name, None) if module in known else None
    if not callable(found):
        raise ValueError(f"rows.csv: {row.id}: ours: {row.ours!r} is no function of sim/published")
    return found  # type: ignore[no-any-return]


def _limit(row: Published, table: Table) -> float | None:
    """Ours of the row that a direction compares with; None for other rows."""
    other = row.tolerance.partition(" ")[2]
    if row.label != "direction only":
        return None
    found = table.known.get(other)
    return ours(found, table) if found is not None else float(other)


def decks(table: Table | None = None) -> list[str]:
    """The decks that rows belong to."""
    return sorted({deck for row in (table or load()).rows for deck in row.decks})


def chosen(said: str) -> list[str]:
    """The labels in a comma-separated list. Raises ValueError naming what is allowed."""
    names = [word.strip() for word in said.split(",")]
    for name in names:
        if name not in LABELS:
            raise ValueError(f"--only-label: {name[:80]!r}; allowed: {', '.join(LABELS)}{suggest(name, LABELS)}")
    return names
