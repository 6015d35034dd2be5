"""What a run says about a promise: every objective as a share of its limit, and whether the system is in balance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf, log, sqrt
from typing import Any

from analysis.blocks import student_quantile
from sim.planning.steady import grows
from sim.run import INTERRUPTED, Result

__all__ = ["Judged", "bounds", "judged"]

GROWS, LOST = "backlog", "rejected"


@dataclass(frozen=True)
class Judged:
    """``shares``: of each objective, its value over its limit (above 1: missed); a queue that grows and requests that
    were turned away count as missed without measure.
    """

    shares: tuple[tuple[str, float], ...]

    @property
    def kept(self) -> bool:
        """Whether everything was kept."""
        return all(share <= 1.0 for _, share in self.shares)

    @property
    def worst(self) -> tuple[str, float]:
        """What was missed most, or came nearest."""
        return max(self.shares, key=lambda one: one[1], default=("", 0.0))


def judged(result: Result) -> Judged:
    """Judge a run by its scenario's objectives."""
    if any(note.startswith(INTERRUPTED) for note in result.notes):
        raise KeyboardInterrupt
    found, columns = result.metrics, result.request_columns
    shares = [(one["metric"], _share(one)) for one in found["slo"]]
    arrived = found["requests"]["arrived"]
    lost = (found["requests"]["rejected"] + found["requests"]["failed"]) / arrived
    if lost > 1 - result.scenario.slo.percentile / 100:
        shares.append((LOST, inf))
    if grows(columns["arrival_ns"], columns["finish_ns"]):
        shares.append((GROWS, inf))
    return Judged(tuple(shares))


def _share(one: dict[str, Any]) -> float:
    if one["value"] is None:
        return 0.0 if one["met"] else inf
    return float(one["value"] / one["limit"])


def bounds(runs: Sequence[Judged], confidence: float) -> dict[str, float]:
    """Of each objective, the share of its limit that one more run keeps below with that confidence.

    Values of independent runs are taken as lognormal: exp(mean + t s sqrt(1 + 1/n)) of their logarithms, t Student's
    quantile with n - 1 degrees of freedom (Hahn and Meeker 1991, section 4.8: a one-sided prediction bound).
    """
    names = list(dict.fromkeys(name for run in runs for name, _ in run.shares))
    return {name: _bound([dict(run.shares).get(name, 0.0) for run in runs], confidence) for name in names}


def _bound(shares: Sequence[float], confidence: float) -> float:
    n = len(shares)
    if inf in shares or n < 2:
        return max(shares)
    logs = [log(max(share, 1e-12)) for share in shares]
    mean = sum(logs) / n
    spread = sqrt(sum((x - mean) ** 2 for x in logs) / (n - 1))
    return exp(mean + student_quantile(confidence, n - 1) * spread * sqrt(1 + 1 / n))
