"""What a finished run asked of its kernels at most, beside what was measured of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from sim.analytic.work import Work
from sim.build import Built
from sim.uncertain.ranges import beyond, outside, widening

__all__ = ["asked_of", "notes_of", "widen_of"]

Run = Any  # analysis.frames.Run


def notes_of(run: Run) -> list[str]:
    """One line for each kind of kernel that the run's rounds ask of beyond what was measured."""
    return [line for built, works in asked_of(run) for line in outside(built.costs[0], works)]


def widen_of(run: Run) -> dict[str, float]:
    """How many times wider by kind of kernel, for the furthest that any round of the run went."""
    wider: dict[str, float] = {}
    for built, works in asked_of(run):
        for group, times in widening(beyond(built.costs[0], works)).items():
            wider[group] = max(times, wider.get(group, 1.0))
    return wider


def asked_of(run: Run) -> Iterator[tuple[Built, list[Work]]]:
    """The furthest passes of the target by pool: its largest batch at its longest context, its largest chunk."""
    rounds, requests = run.round_columns, run.request_columns
    context = int(np.ma.filled(rounds["context"], 0).max(initial=0))
    batch, tokens = int(rounds["batch"].max(initial=0)), int(rounds["prefill_tokens"].max(initial=0))
    longest = int(requests["prompt_tokens"].max(initial=0))
    for built, _ in run.built.pools:
        windows, parts = built.costs[0].shape.windows, built.layout.pipeline * built.layout.data
        decodes = [Work.decode(-(-batch // parts), context, windows=windows)] if batch and context else []
        chunk = min(tokens, longest)
        prefills = [Work.prefill(1, -(-chunk // parts), windows)] if chunk and not built.costs[0].shape.encoder else []
        yield built, [*decodes, *prefills]
