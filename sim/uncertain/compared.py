"""Two scenarios on the same sample of hardware and under the same luck: intervals of their differences."""

from __future__ import annotations

from collections.abc import Callable

from analysis.pairs import metrics_of, pair_up
from sim.build import build_scenario, with_seed
from sim.run import INTERRUPTED, simulate
from sim.scenario import Scenario
from sim.uncertain.draws import Draw
from sim.uncertain.samples import drawn
from sim.uncertain.summary import intervals

__all__ = ["of_difference"]


def of_difference(
    first: Scenario, second: Scenario, samples: int, tick: Callable[[], None] = lambda: None
) -> dict[str, dict[str, float]]:
    """p10, p50 and p90 of B - A by metric, over ``samples`` of the hardware, all under the first scenario's seed.

    What both take from one device, engine and kind of kernel is off by the same factor in both, so it cancels.
    ``tick`` is called after every run. Raises KeyboardInterrupt where a run was cut short.
    """
    builts = [build_scenario(scenario) for scenario in (first, with_seed(second, first.seed))]
    tables = []
    for sample in range(samples):
        runs = []
        for built in builts:
            runs.append(simulate(drawn(built, Draw(first.seed, sample), {})))
            if any(note.startswith(INTERRUPTED) for note in runs[-1].notes):
                raise KeyboardInterrupt
            tick()
        pair = pair_up(runs[0], runs[1])
        a, b = metrics_of(pair, 0), metrics_of(pair, 1)
        known = ((name, a[name], b.get(name)) for name in a)
        tables.append({name: y - x for name, x, y in known if x is not None and y is not None})
    return intervals(tables)
