"""DistillSpec table D.1: a round lasts r + c gamma steps; distillation changes acceptance alone."""

from __future__ import annotations

from functools import cache

import numpy as np

from sim.published import chains
from sim.published.leviathan import draft_cost_under_xl
from sim.published.table import Published, Table

PLAIN = "no distillation"


def _tau(row: Published, table: Table, gamma: str, config: str) -> float:
    return table.value(table.one(
        row, quantity="block_efficiency_tau", task=row.task, temperature=row.temperature, gamma=gamma, config=config
    ).id)  # fmt: skip


@cache
def _line(table: Table, task: str, temperature: str) -> tuple[float, float]:
    """r and c of the undistilled rows of a task and temperature: a straight line through three points."""
    rows = [
        r for r in table.rows
        if r.source == "distillspec" and r.quantity == "speedup" and r.config == PLAIN
        and (r.task, r.temperature) == (task, temperature)
    ]  # fmt: skip
    gammas = [int(r.gamma) for r in rows]
    steps = [
        chains.round_cost(_tau(r, table, r.gamma, PLAIN), g, float(r.published))
        for r, g in zip(rows, gammas, strict=True)
    ]
    c, verify = np.polyfit(gammas, steps, 1)
    return float(verify), float(c)


def speedup(row: Published, table: Table) -> float:
    """Through the policy with the measured tokens a round, r and c from the undistilled rows of the group."""
    verify, c = _line(table, row.task, row.temperature)
    return chains.gained(_tau(row, table, row.gamma, row.config), int(row.gamma), c, verify)


def bound(row: Published, table: Table) -> float:
    """The most that the measured tokens a round allow: verification takes a step, drafts nothing."""
    return chains.gained(_tau(row, table, row.gamma, row.config), int(row.gamma), 0.0, 1.0)


def roofline(row: Published, table: Table) -> float:
    """Verification takes one step, the draft what its bytes and an overhead a layer say."""
    c = draft_cost_under_xl(row, table)
    return chains.gained(_tau(row, table, row.gamma, row.config), int(row.gamma), c, 1.0)
