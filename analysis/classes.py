"""Who was promised what, and who got it: SLO classes and tenants, a row each."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.frames import Columns, Run, known
from analysis.latency import describe
from analysis.promise import LIMITED, judge, kept

__all__ = ["classes_section", "good_ones", "tenants_section"]

ENDS = ("finished", "rejected", "failed")


def good_ones(run: Run, chosen: Columns) -> NDArray[np.bool_] | None:
    """Which requests met every objective of their class, else of the scenario; None where nobody promised anything."""
    scenario = run.scenario
    promises = [scenario.slo, *scenario.classes.values()]
    if all(getattr(slo, name) is None for slo in promises for name in LIMITED):
        return None
    good = kept(chosen, scenario.slo)
    for slo in scenario.classes.values():
        good = np.where(chosen["priority"] == slo.priority, kept(chosen, slo), good)
    return good


def classes_section(run: Run, chosen: Columns, seconds: float) -> dict[str, Any]:
    """By name of the class: requests of its priority, what was judged, attainment and goodput."""
    return {
        name: {"priority": slo.priority, "slo": judge(_only(chosen, chosen["priority"] == slo.priority), slo)}
        | _row(run, chosen, chosen["priority"] == slo.priority, seconds)
        for name, slo in run.scenario.classes.items()
    }


def tenants_section(run: Run, chosen: Columns, seconds: float) -> dict[str, Any]:
    """By name of the tenant, else by its number: the same. Requests without a tenant are in no row."""
    numbers = np.ma.filled(chosen["tenant"], -1)
    names = {part.number: name for name, part in run.scenario.tenants.items()}
    found = sorted({*np.unique(numbers[numbers >= 0]).tolist(), *names})
    return {names.get(n, str(n)): {"number": n} | _row(run, chosen, numbers == n, seconds) for n in found}


def _row(run: Run, chosen: Columns, rows: NDArray[np.bool_], seconds: float) -> dict[str, Any]:
    mine, sent = _only(chosen, rows), int(rows.sum())
    counts = {status: int((mine["status"] == status).sum()) for status in ENDS}
    latency = {name: describe(known(mine, name)) for name in LIMITED}
    good = good_ones(run, mine)
    met = None if good is None else int(good.sum())
    return {
        "requests": sent,
        **counts,
        "output_tokens": int((mine["output_tokens"] * mine["samples"])[mine["status"] == "finished"].sum()),
        **{name: {key: table[key] for key in ("p50", "p99")} for name, table in latency.items()},
        "goodput": None if met is None or not seconds else met / seconds,
        "attainment": None if met is None or not sent else met / sent,
    }


def _only(columns: Columns, rows: NDArray[np.bool_]) -> Columns:
    return {name: column[rows] for name, column in columns.items()}
