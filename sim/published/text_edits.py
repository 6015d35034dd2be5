"""EdiT5 beside T5: the deck's sentence, run through the scenarios that ship with the numbers it prints."""

from __future__ import annotations

from functools import cache

from sim.published.table import Published, Table
from sim.quantities import QUANTITIES
from sim.run import Result, simulate
from sim.scenario import Scenario


@cache
def _ran(name: str) -> Result:
    return simulate(Scenario.load(name))


def quantity(row: Published, table: Table) -> float:
    """``ours``: ``text_edits.quantity NAME SCENARIO``, or ``NAME A/B``: what one run has over what the other has."""
    name, _, said = row.argument.partition(" ")
    first, *over = (float(QUANTITIES[name](_ran(scenario))) for scenario in said.split("/"))
    return first / over[0] if over else first
