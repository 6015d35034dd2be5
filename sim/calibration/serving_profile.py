"""A fitted service as an engine profile: ``engine: ./PROFILE.yaml`` in a scenario; errors as a table and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

import hardware_profiles
from hardware_profiles.schema import check_engine
from sim.calibration.serving_fit import TERMS, Fitted

__all__ = ["Errors", "errors", "profile", "save", "series"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Errors:
    """Errors of ``n`` measured values as shares: median, mean and 90th percentile of sizes, median of signed ones.

    ``stage``: with the class values, fitted, or predicted by a fit that had not seen the point.
    """

    quantity: str
    stage: str
    n: int
    median: float
    mean: float
    p90: float
    bias: float


def errors(found: Fitted) -> list[Errors]:
    """TTFT, TPOT and E2EL, whichever were fitted, at each stage; outliers are left out."""
    kinds = np.array([name.split("_")[1].upper() for _, name in found.rows])
    stages = {"class values": found.before, "fitted": found.fitted, "held out": found.held}
    usual = np.isfinite(found.held)
    return [
        _errors(kind, stage, np.expm1(logs[usual & (kinds == kind)]))
        for kind in dict.fromkeys(kinds.tolist())
        for stage, logs in stages.items()
        if (usual & (kinds == kind)).any()
    ]


def profile(found: Fitted, scenario: Mapping[str, Any], name: str, files: Sequence[str]) -> dict[str, Any]:
    """The engine profile, checked: terms that were fitted with their intervals, all others as the class has them."""
    engine = str(scenario.get("engine", "ideal"))
    base = hardware_profiles.engine(engine)
    values = {key: _round(value) for key, (value, _, _) in found.terms.items()}
    spans = {key: [_round(low), _round(high)] for key, (_, low, high) in found.terms.items()}
    kept = {key: span for key, span in base.get("interval", {}).items() if key not in TERMS or key in found.kept}
    made = {
        **base, **values, "name": name, "provenance": _provenance(found, scenario, files),
        "notes": f"what was not fitted is {engine}'s: {base['provenance']}", "interval": {**kept, **spans},
    }  # fmt: skip
    check_engine(made, name)
    return made


def save(made: Mapping[str, Any], path: Path) -> None:
    """Write the profile, whole or not at all."""
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(yaml.safe_dump(dict(made), sort_keys=False, width=120, allow_unicode=True), "utf-8")
    beside.replace(path)


def series(found: Fitted) -> dict[str, tuple[Floats, Floats]]:
    """(measured, predicted) seconds by quantity, of points held out; for sim/silicon/plots.py."""
    kinds = np.array([name.split("_")[1].upper() for _, name in found.rows])
    usual = np.isfinite(found.held)
    chosen = {kind: usual & (kinds == kind) for kind in dict.fromkeys(kinds.tolist())}
    return {f"{kind}, held out": (1e-3 * found.measured_ms[rows], 1e-3 * (found.measured_ms * np.exp(found.held))[rows])
            for kind, rows in chosen.items() if rows.any()}  # fmt: skip


def _provenance(found: Fitted, scenario: Mapping[str, Any], files: Sequence[str]) -> str:
    points = len({where for where, _ in found.rows}) - len(found.dropped)
    names = ", ".join(Path(file).name for file in files[:6]) + ", ..." * (len(files) > 6)
    held = "; ".join(f"{e.quantity} {e.median:.1%} median, {e.p90:.1%} p90" for e in errors(found)
                     if e.stage == "held out")  # fmt: skip
    return (
        f"FITTED ({', '.join(found.terms) or 'nothing: class values are as good'}) by decodesim calibrate --serving to "
        f"{points} points of {scenario['model']} on {scenario['hardware']} ({names}); held out by fifths: {held}; "
        "intervals are 5th to 95th percentiles over draws of points"
    )


def _errors(quantity: str, stage: str, each: Floats) -> Errors:
    size = np.abs(each)
    found = np.median(size), size.mean(), np.quantile(size, 0.9), np.median(each)
    return Errors(quantity, stage, len(size), *map(float, found))


def _round(value: float) -> float:
    return float(f"{value:.5g}")
