"""Run a scenario at many points: one flat row each, the same bits on any executor and any number of workers.

A point that cannot run (weights that do not fit, a layout that does not divide the model) is a row with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from analysis.sweep_files import summary_row
from sim.analytic.cost import DoesNotFit
from sim.executors import Crew
from sim.planning.journal import Journal, code_stamp, scenario_stamp
from sim.planning.points import Range, over, points, settings
from sim.run import INTERRUPTED, simulate
from sim.scenario import Scenario

__all__ = ["Range", "about", "over", "points", "run_point", "sweep"]

Point = dict[str, Any]
Task = tuple[dict[str, Any], tuple[str, ...], str]  # the scenario as written, a point's settings, who may compute it


def sweep(
    scenario: Scenario, chosen: Sequence[Point], crew: Crew, journal: Journal | None = None,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """A row for each point, in their order: its number, the axes' values, ``status``, ``why`` and summary metrics.

    Rows in the ``journal`` are not computed again; new ones are added to it. ``tick`` is told (rows done, rows in
    all). Raises ValueError, one line, for a key or value that no scenario takes, before anything runs, and where not
    one of the points can run.
    """
    keys = [settings(point) for point in chosen]
    data = scenario.model_dump(exclude_unset=True)
    for one in dict.fromkeys(keys):
        scenario.with_settings(one)
    rows: dict[tuple[str, ...], Any] = {key: journal.rows[" ".join(key)] for key in keys
                                        if journal and " ".join(key) in journal.rows}  # fmt: skip
    left = [key for key in dict.fromkeys(keys) if key not in rows]
    total = len(left) + len(rows)
    tick(len(rows), total)
    for number, row in crew.results(run_point, [(data, key, code_stamp()) for key in left], name=_named):
        rows[left[number]] = row
        if journal is not None:
            journal.add(" ".join(left[number]), row)
        tick(len(rows), total)
    _some(rows)
    return [{"point": i, **point, **rows[key]} for i, (point, key) in enumerate(zip(chosen, keys, strict=True))]


def about(scenario: Scenario) -> dict[str, str]:
    """What a journal's rows are of."""
    return {"study": "sweep", "version": code_stamp(), "scenario": scenario_stamp(scenario)}


def run_point(task: Task) -> dict[str, Any]:
    """The row of one point, whole: no seconds of this machine, nothing that another worker would answer otherwise.

    Raises ValueError on a worker with other code.
    """
    data, chosen, stamp = task
    same_code(stamp)
    try:
        result = simulate(Scenario.parse(data).with_settings(chosen))
    except DoesNotFit as error:
        return {"status": "does_not_fit", "why": str(error)}
    except ValueError as error:
        return {"status": "invalid", "why": str(error)}
    if any(note.startswith(INTERRUPTED) for note in result.notes):
        raise KeyboardInterrupt
    return {"status": "ok", "why": "", **summary_row(result)}


def same_code(stamp: str) -> None:
    """Raise ValueError where a worker's program is not the one that sent it a task."""
    if stamp != code_stamp():
        raise ValueError(f"--executor: a worker runs {code_stamp()}, not {stamp}: its results would not be ours")


def _named(task: Task) -> str:
    return " ".join(task[1])


def _some(rows: dict[tuple[str, ...], Any]) -> None:
    if rows and all(row["status"] != "ok" for row in rows.values()):
        key, row = next(iter(rows.items()))
        raise ValueError(f"--over: no point can run; {' '.join(key)}: {row['why']}")
