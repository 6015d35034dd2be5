"""Printed numbers that are quotients of other printed numbers: identities without physics."""

from __future__ import annotations

from sim.published.table import Published, Table


def divide(row: Published, table: Table) -> float:
    """``ours``: ``quotients.divide A/B``, two rows by id, or ``A*B/C``."""
    top, bottom = (_product(part, table) for part in row.argument.split("/"))
    return top / bottom


def _product(text: str, table: Table) -> float:
    result = 1.0
    for name in text.split("*"):
        result *= table.value(name) if name in table.known else float(name)
    return result
