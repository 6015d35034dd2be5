"""``--uncertainty N`` of run, compare and speedup: intervals beside what was asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from analysis.compare import Comparison
from sim.axes import Axis
from sim.build import build_scenario
from sim.commands.bar import bar
from sim.run import Result
from sim.scenario import Scenario
from sim.speedup import Curve, Known, Ratio, curve_of
from sim.uncertainty import about, curve_notes, of_difference, of_run, samples_checked, with_intervals

__all__ = ["checked", "of_pair", "of_result", "study"]


def checked(samples: int | None) -> int:
    """How many samples; 0 where nobody asks. Raises ValueError, one line."""
    return 0 if samples is None else samples_checked(samples)


def of_result(result: Result, samples: int, hidden: bool) -> None:
    """Put the intervals of a run among its metrics; of an interrupted run there are none."""
    if not samples or any(note.startswith("interrupted") for note in result.notes):
        return
    with bar("samples", hidden) as told:
        done = iter(range(1, samples + 1))
        result.metrics["uncertainty"] = of_run(result, samples, lambda: told(next(done), samples))


def of_pair(found: Comparison, first: Scenario, second: Scenario, samples: int, hidden: bool) -> Comparison:
    """The comparison with the intervals of its differences over samples of the hardware."""
    if not samples:
        return found
    with bar("runs", hidden) as told:
        done = iter(range(1, 2 * samples + 1))
        metrics = of_difference(first, second, samples, lambda: told(next(done), 2 * samples))
    notes = dict.fromkeys(note for one in (first, second) for note in about(build_scenario(one)))
    return replace(found, uncertainty={"samples": samples, "metrics": metrics, "notes": list(notes)})


def study(
    scenario: Scenario, axes: Sequence[Axis], ratio: Ratio | None, against: Sequence[str], samples: int
) -> tuple[Curve, list[str]]:
    """A speedup study, with intervals at every point where samples are asked for, and notes. Raises ValueError."""
    if samples and ratio is not None:
        raise ValueError("--uncertainty: costs by decree (--cost-ratio) have no uncertainty; leave one of them out")
    known = Known(scenario, against)
    found = curve_of(known, axes, ratio)
    notes = [] if ratio is not None else curve_notes(known, found)
    if not samples:
        return found, notes
    return with_intervals(known, found, samples), [*notes, *about(known.of([])[0])]
