"""A run once more for every sample, under the same luck: intervals of its metrics."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from sim.run import INTERRUPTED, Result, simulate
from sim.uncertain.about import about
from sim.uncertain.asked import widen_of
from sim.uncertain.samples import sampled
from sim.uncertain.summary import flat, intervals

__all__ = ["of_run"]

Tick = Callable[[], None]


def of_run(result: Result, samples: int, tick: Tick = lambda: None) -> dict[str, Any]:
    """What ``summary.json`` says under ``uncertainty``: how many samples, and p10, p50 and p90 of every metric.

    ``tick`` is called after every sample. Ctrl-C keeps the samples that are whole. ``point_outside``: metrics whose
    point lies outside its own interval, because a table is biased, or the point is a datasheet's alone; ``notes`` say
    where spreads come from.
    """
    tables: list[dict[str, float]] = []
    with suppress(KeyboardInterrupt):
        for one in sampled(result.built, samples, widen_of(result)):
            run = simulate(one)
            if any(note.startswith(INTERRUPTED) for note in run.notes):
                break
            tables.append(flat(run.metrics))
            tick()
    found, point = intervals(tables), flat(result.metrics)
    apart = [name for name, one in found.items() if name in point and not one["p10"] <= point[name] <= one["p90"]]
    return {"samples": len(tables), "asked": samples, "metrics": found, "point_outside": apart,
            "notes": about(result.built)}  # fmt: skip
