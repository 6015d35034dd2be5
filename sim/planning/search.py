"""One candidate with the clock: the largest rate that a unit sustains, then the fewest units that keep the promise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, inf, sqrt
from typing import Any

from analysis.sweep_files import summary_row
from sim.planning.candidates import Candidate
from sim.planning.screen import Screened, priced
from sim.planning.traffic import Traffic
from sim.planning.verdict import Judged, bounds, judged
from sim.run import Result, simulate
from sim.scenario import PlanPart, Scenario

__all__ = ["Capacity", "Question", "capacity", "confirmed", "fleet_scenario", "search"]

FINE = 1.05  # the capacity is known to this ratio
COARSE = 1.15  # or to this one, where that already says how many units
FIRST = 0.8  # of the bound on paper, where the search begins
ROOM, FEWER = 0.8, 3  # so many runs are enough for a bound that leaves a fifth of every limit
STEPS = 14
LOWEST = 0.005  # of the bound: below it, a unit that misses is taken to miss at any rate
LIFETIMES = 10  # a run has so many requests for each that decodes at once
TRACED = 20_000  # requests of a trace that a fleet is shown, its peaks included
MORE = 5  # fleets to try where the first one misses


@dataclass(frozen=True)
class Question:
    """What is asked of every candidate alike."""

    scenario: Scenario
    plan: PlanPart
    traffic: Traffic


@dataclass(frozen=True)
class Capacity:
    """``rate_per_s``: the largest that one unit was seen to sustain (0: none); ``above_per_s``: the smallest that it
    was seen not to, and what it missed there; ``runs``: simulated.
    """

    rate_per_s: float
    above_per_s: float
    missed: Judged
    runs: int


def capacity(
    question: Question, candidate: Candidate, paper: Screened, enough: float = inf, fine: float = FINE
) -> Capacity:
    """Bisect for the largest rate that keeps every objective in balance, from the bound on paper downwards.

    A unit whose smallest failing rate already needs more than ``enough`` dollars an hour is not looked at further, nor
    one, beyond ``COARSE``, whose both ends ask for the same number of units (``fine`` below FINE: to the end).
    """
    requests = max(question.plan.requests, round(LIFETIMES * paper.batch))
    low, high, missed, runs = 0.0, inf, Judged(()), 0
    rate = FIRST * paper.capacity_per_s
    while runs < STEPS and (not low or high / low > fine):
        seen = judged(simulate(_asked(question, candidate, 1, rate, requests)))
        runs += 1
        if seen.kept:
            low = rate
        else:
            high, missed = rate, seen
        if high < LOWEST * paper.capacity_per_s or least_usd(question, paper, high) > enough:
            break
        if fine == FINE and low and high / low < COARSE and _units(question, low) == _units(question, high):
            break
        rate = _next(low, high)
    return Capacity(low, high, missed, runs)


def _next(low: float, high: float) -> float:
    if high == inf:
        return 1.3 * low
    return sqrt(low * high) if low else high / 2


def least_usd(question: Question, paper: Screened, rate_per_s: float) -> float:
    """Dollars an hour of the units that carry the traffic at so much each."""
    return _units(question, rate_per_s) * (paper.usd_per_hour or 0.0)


def _units(question: Question, rate_per_s: float) -> int:
    return max(1, ceil(question.traffic.rate_per_s / rate_per_s - 1e-9))


def _asked(
    question: Question, candidate: Candidate, units: int, rate_per_s: float, requests: int, seed: int = 0
) -> Scenario:
    base, plan = question.scenario, question.plan
    chosen = (*candidate.fleet(units, plan.link_GBps), *question.traffic.settings(base, rate_per_s, requests))
    return priced(base, plan, candidate).with_settings([*chosen, f"seed={base.seed + seed}"])


def confirmed(
    question: Question, candidate: Candidate, paper: Screened, units: int,
    simulated: Callable[[int, int], Result] | None = None,
) -> tuple[dict[str, float], Result, int]:  # fmt: skip
    """(each objective's bound as a share of its limit, the first run, how many runs) of so many units under the whole
    traffic.

    A run that misses ends it: with few runs, no bound holds that one of them breaks.
    """
    runs, first = [], None
    for seed in range(question.plan.seeds):
        result = simulated(units, seed) if simulated else fleet(question, candidate, paper, units, seed)
        first = first or result
        runs.append(judged(result))
        if not runs[-1].kept:
            return dict(runs[-1].shares), first, len(runs)
        if len(runs) >= FEWER and max((known := bounds(runs, question.plan.confidence)).values()) <= ROOM:
            return known, first, len(runs)
    assert first is not None
    return bounds(runs, question.plan.confidence), first, len(runs)


def fleet(question: Question, candidate: Candidate, paper: Screened, units: int, seed: int = 0) -> Result:
    """One run of the fleet under the whole traffic: of a trace, its first hour or so as it comes."""
    return simulate(fleet_scenario(question, candidate, paper, units, seed))


def fleet_scenario(question: Question, candidate: Candidate, paper: Screened, units: int, seed: int = 0) -> Scenario:
    """What that run is of."""
    requests = max(question.plan.requests, round(LIFETIMES * paper.batch * candidate.decode * units))
    if question.traffic.traced:
        requests = max(requests, TRACED)
    return _asked(question, candidate, units, question.traffic.rate_per_s, requests, seed)


def search(question: Question, candidate: Candidate, paper: Screened, enough: float) -> dict[str, Any]:
    """The candidate's row: capacity of a unit, units, dollars, latencies, joules, or what it failed on by how much.

    ``enough``: dollars an hour beyond which nobody needs to know.
    """
    found = capacity(question, candidate, paper, enough)
    row: dict[str, Any] = {
        "capacity_per_s": found.rate_per_s,
        "above_per_s": _finite(found.above_per_s),
        "runs": found.runs,
        "fleet_runs": 0,
    }
    if least_usd(question, paper, found.above_per_s) > enough and not found.rate_per_s:
        return {
            **row,
            "status": "dear",
            "why": f"costs more than ${enough:.4g}/h, at most {found.above_per_s:.3g}/s a unit",
        }
    if not found.rate_per_s:
        return {**row, "status": "misses", **_missed(found.missed.shares, "at any rate")}
    units = _units(question, found.rate_per_s)
    return {**row, **_fleet(question, candidate, paper, units, enough)}


def _fleet(question: Question, candidate: Candidate, paper: Screened, units: int, enough: float) -> dict[str, Any]:
    """Up from the units that the capacity asks for until a fleet keeps the promise, then down while it still does."""
    price, tried = paper.usd_per_hour or 0.0, dict[int, tuple[dict[str, float], Result, int]]()
    for _ in range(MORE):
        if units > question.plan.max_replicas or units * price > enough:
            return {
                "status": "dear",
                "why": f"{candidate.size(units)} units cost ${units * price:.4g}/h",
                **_last(tried),
            }
        tried[units] = confirmed(question, candidate, paper, units)
        if _kept(tried[units][0]):
            break
        units = ceil(1.07 * units + 1e-9)
    else:
        return {"status": "misses", **_missed(tuple(tried[max(tried)][0].items()), f"with {max(tried)} units")}
    while units > 1 and units - 1 not in tried:
        tried[units - 1] = confirmed(question, candidate, paper, units - 1)
        if not _kept(tried[units - 1][0]):
            break
        units -= 1
    return _kept_row(question, candidate, paper, units, tried)


def _kept(shares: Mapping[str, float]) -> bool:
    return all(share <= 1.0 for share in shares.values())


def _kept_row(
    question: Question, candidate: Candidate, paper: Screened, units: int, tried: Mapping[int, Any]
) -> dict[str, Any]:
    shares, result, seeds = tried[units]
    summary, metrics = summary_row(result), result.metrics
    cost, ceiling = metrics["cost"]["usd_per_million_output_tokens"], question.plan.max_usd_per_million_output_tokens
    too_dear = ceiling is not None and cost is not None and cost > ceiling
    names = ("ttft_p99_ms", "tpot_p99_ms", "e2el_mean_ms", "attainment", "joules_per_output_token",
             "usd_per_million_output_tokens", "busy")  # fmt: skip
    fewer = (
        _missed(tuple(tried[units - 1][0].items()), f"with {candidate.size(units - 1)}") if units - 1 in tried else {}
    )
    return {
        "status": "dear" if too_dear else "kept",
        "why": f"costs ${cost:.4g} a million output tokens > ${ceiling:g}" if too_dear else "",
        "units": units,
        "seeds": seeds,
        "size": candidate.size(units),
        "devices": paper.devices * units,
        "usd_per_hour": (paper.usd_per_hour or 0.0) * units,
        **{name: summary[name] for name in names},
        **{f"{name.removesuffix('_ms')}_share": share for name, share in shares.items()},
        "fewer": fewer.get("why", ""),
        "fleet_runs": len(tried),
        "requests": len(result.request_columns["id"]),
        "settings": list(candidate.fleet(units, question.plan.link_GBps)),
    }


def _finite(value: float) -> float | None:
    return value if value < inf else None


def _last(tried: Mapping[int, Any]) -> dict[str, Any]:
    if not tried:
        return {}
    most = max(tried)
    missed = _missed(tuple(tried[most][0].items()), f"with {most} units")
    return {"missed": missed["missed"], "missed_by": missed["missed_by"]}


def _missed(shares: tuple[tuple[str, float], ...], where: str) -> dict[str, Any]:
    """What was missed most, and by how much of its limit."""
    name, share = Judged(shares).worst
    if name == "backlog":
        why = f"the backlog grows {where}"
    elif share == inf:
        why = f"{name} {where}: requests are turned away" if name == "rejected" else f"{name} {where}: has no value"
    else:
        why = f"{name.removesuffix('_ms').upper()} is {share - 1:.0%} over its limit {where}"
    return {"missed": name, "missed_by": None if share == inf else share - 1, "why": why}
