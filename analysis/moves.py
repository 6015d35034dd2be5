"""Caches that moved from prefill to decode replicas: a row each, and what they add up to."""

from __future__ import annotations

from typing import Any

import numpy as np

from analysis.frames import Columns, Run

__all__ = ["move_columns", "moves_section"]

MS = 1e-6  # milliseconds in a nanosecond


def move_columns(run: Run) -> Columns:
    """Columns of ``moves.parquet`` (docs/results.md), one row a move in the order in which they were asked for."""
    return {name: np.ascontiguousarray(column) for name, column in run.recorder.moves.frame().items()}


def moves_section(run: Run) -> dict[str, Any] | None:
    """The ``moves`` section of ``summary.json``: how many, bytes, means in milliseconds; None without pools."""
    if run.scenario.pools is None:
        return None
    rows = run.recorder.moves.frame()
    asked, start, end = (rows[name] for name in ("asked_ns", "start_ns", "end_ns"))
    spent = {"mean_ms": end - start, "wait_ms": np.maximum(start - asked, 0), "left_ms": end - asked}
    means = {name: float(ns.mean()) * MS if len(ns) else None for name, ns in spent.items()}
    return {"count": len(asked), "bytes": int(rows["bytes"].sum()), **means}
