"""What a tenth more of something would change about a plan's dollars: bandwidth, compute, acceptance, price, traffic.

Capacities are found again under the same luck, a little finer than in the search; dollars are those of as many units
as the traffic needs in the mean, whole or not, so that a small change shows. ``units`` says what would be rented.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from math import ceil, nan
from pathlib import Path
from typing import Any

import yaml

import hardware_profiles
from sim.planning.candidates import Candidate
from sim.planning.screen import Screened
from sim.planning.search import Question, capacity
from sim.scenario import Scenario

__all__ = ["CHANGES", "changed_capacity", "changes_of", "row"]

MORE = 1.1
FINE = 1.015
CHANGES = ("as planned", "memory bandwidth", "compute", "acceptance", "price", "traffic")
SIMULATED = ("as planned", "memory bandwidth", "compute", "acceptance")


def changes_of(scenario: Scenario, candidate: Candidate) -> list[str]:
    """Those changes that mean something: acceptance only where the policy states one as a number below 1."""
    accepts = _more_accepted(scenario.with_settings(candidate.settings).policy) is not None
    return [change for change in CHANGES if change != "acceptance" or accepts]


def changed_capacity(question: Question, candidate: Candidate, paper: Screened, change: str) -> float:
    """Requests per second of one unit after a change that a simulation must answer; NaN where none is sustained."""
    with tempfile.TemporaryDirectory(prefix="decodesim-") as folder:
        settings = _settings(question.scenario.with_settings(candidate.settings), change, Path(folder))
        altered = Candidate(candidate.label, (*candidate.settings, *settings), candidate.prefill, candidate.decode)
        found = capacity(question, altered, paper, fine=FINE)
    return found.rate_per_s or nan


def _settings(scenario: Scenario, change: str, folder: Path) -> tuple[str, ...]:
    if change == "acceptance":
        return (
            f"policy={yaml.safe_dump(_more_accepted(scenario.policy), default_flow_style=True, width=10**6).strip()}",
        )
    if change == "as planned":
        return ()
    profile = hardware_profiles.load(scenario.hardware)
    if change == "memory bandwidth":
        profile["memory"]["bandwidth_GBps"] *= MORE
    else:
        profile["peak_TFLOPs"] = {k: v and v * MORE for k, v in profile["peak_TFLOPs"].items()}
    file = folder / f"{profile['name']}.yaml"
    file.write_text(yaml.safe_dump(profile, sort_keys=False), "utf-8")
    return (f"hardware={file}",)


def _more_accepted(policy: Any) -> dict[str, Any] | None:
    """The policy with a tenth more of its acceptance rate, at most 1; None where it states none."""
    if not isinstance(policy, Mapping):
        return None
    said = policy.get("acceptance")
    if isinstance(said, int | float) and not isinstance(said, bool) and 0 < said < 1:
        return {**policy, "acceptance": min(1.0, MORE * said)}
    if isinstance(said, Mapping) and isinstance(said.get("alpha"), int | float) and 0 < said["alpha"] < 1:
        return {**policy, "acceptance": {**said, "alpha": min(1.0, MORE * said["alpha"])}}
    return None


def row(question: Question, paper: Screened, change: str, capacities: Mapping[str, float]) -> dict[str, Any]:
    """One bar: dollars an hour and units after the change, and by how many percent the dollars changed."""
    base = capacities["as planned"]
    rate = question.traffic.rate_per_s * (MORE if change == "traffic" else 1.0)
    price = (paper.usd_per_hour or 0.0) * (MORE if change == "price" else 1.0)
    each = capacities.get(change, base)
    usd, before = rate / each * price, question.traffic.rate_per_s / base * (paper.usd_per_hour or 0.0)
    plain = each == each
    return {
        "change": change if change == "as planned" else f"{change} +{MORE - 1:.0%}",
        "capacity_per_s": each if plain else None,
        "units": ceil(rate / each - 1e-9) if plain else None,
        "usd_per_hour": usd if plain else None,
        "percent": 100 * (usd / before - 1) if plain else None,
    }
