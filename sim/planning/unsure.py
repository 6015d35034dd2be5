"""How often a plan would hold if the hardware were not quite as modelled: its fleet, run on samples of the hardware."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from math import isfinite
from typing import Any

import numpy as np

from sim.build import build_scenario
from sim.planning.candidates import Candidate
from sim.planning.screen import Screened
from sim.planning.search import Question, fleet_scenario
from sim.planning.verdict import judged
from sim.run import simulate
from sim.uncertainty import sampled

__all__ = ["in_short", "sample"]


def sample(
    question: Question, candidate: Candidate, paper: Screened, units: int, number: int, samples: int
) -> dict[str, Any]:
    """Sample ``number`` of so many: whether the fleet keeps every promise, and its shares of the limits."""
    built = build_scenario(fleet_scenario(question, candidate, paper, units))
    found = judged(simulate(next(islice(sampled(built, samples), number, None))))
    return {"kept": found.kept, "shares": {name: share if isfinite(share) else None for name, share in found.shares}}


def in_short(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The share of samples that keep every promise, and p10, p50, p90 of each value over its limit."""
    names = dict.fromkeys(name for one in found for name in one["shares"])
    values = {name: [v for one in found if (v := one["shares"].get(name)) is not None] for name in names}
    bands = {name: dict(zip(("p10", "p50", "p90"), np.percentile(each, [10, 50, 90]).tolist(), strict=True))
             for name, each in values.items() if each}  # fmt: skip
    return {"samples": len(found), "kept": sum(one["kept"] for one in found) / len(found), "of_limits": bands}
