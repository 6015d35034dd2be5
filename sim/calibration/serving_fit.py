"""Engine and device terms fitted to a measured service by running the simulator against every point.

As few terms as the points identify: a term whose deviation is beyond WIDEST of itself, or that is no farther from the
class value than SURE deviations, keeps the class value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

import hardware_profiles
from sim.calibration.serving_points import Fittable
from sim.calibration.serving_solve import Found, Problem, bootstrap, deviations, minimise
from sim.silicon.replayed import replayed
from sim.silicon.user_points import Service

__all__ = ["TERMS", "Fitted", "fit_service"]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Tick = Callable[[int, int], None]
# name: (offset of the logarithm, low, high, value where a profile says nothing); the search is in log(value + offset)
TERMS: dict[str, tuple[float, float, float, float]] = {
    "product_speed": (0.0, 0.2, 1.5, 1.0),
    "attention_speed": (0.0, 0.1, 2.0, 1.0),
    "host_us_per_step": (300.0, 0.0, 1e6, 0.0),
    "host_us_per_sequence": (20.0, 0.0, 2e4, 0.0),
    "request_ms": (5.0, 0.0, 1e4, 0.0),
}
OFFSET, LOW, HIGH, UNSAID = (np.array(column) for column in zip(*TERMS.values(), strict=True))
WIDEST, SURE, FOLDS = 0.35, 2.0, 5
FAR, SURELY = 0.3, 6.0  # a point is an outlier that is off by more than FAR and by more than so many usual misfits


@dataclass(frozen=True)
class Fitted:
    """Terms (value, low, high) that points identify, and log errors by row: with class values, fitted, held out.

    ``rows``: (point, name of what was measured); ``measured_ms`` of each. ``dropped``: outliers, in words.
    """

    terms: Mapping[str, tuple[float, float, float]]
    kept: Mapping[str, float]
    rows: tuple[tuple[str, str], ...]
    measured_ms: Floats
    before: Floats
    fitted: Floats
    held: Floats
    dropped: tuple[str, ...]
    runs: int


class _Runs:
    """The simulator as residuals: an engine profile with the terms asked about, a run for every point."""

    def __init__(self, given: Fittable, scenario: Mapping[str, Any], base: Mapping[str, Any], tick: Tick | None):
        self.given, self.scenario, self.base, self.tick = given, dict(scenario), dict(base), tick
        self.count, self.known = 0, dict[tuple[int, bytes], list[float]]()
        pairs = [(i, name) for i, names in enumerate(given.names) for name in names]
        self.owner = np.array([i for i, _ in pairs])
        self.names = [name for _, name in pairs]
        self.wanted = np.log([given.points[i].measured[name] for i, name in pairs])

    def residual(self, at: Floats, points: Mask) -> Floats:
        """Log of predicted over measured by row; NaN for points not asked for."""
        found = np.full(len(self.owner), np.nan)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "engine.yaml"
            path.write_text(yaml.safe_dump({**self.base, **_values(at)}), "utf-8")
            service = Service({**self.scenario, "engine": str(path)})
            for number in np.flatnonzero(points):
                found[self.owner == number] = self._point(int(number), at, service)
        return found - self.wanted

    def _point(self, number: int, at: Floats, service: Service) -> list[float]:
        key = number, at.round(9).tobytes()
        if key not in self.known:
            point, names = self.given.points[number], self.given.names[number]
            run = replayed(service.built(point), point, names)
            self.known[key] = [float(np.log(max(run.get(name, 1e-6), 1e-6))) for name in names]
            self.count += 1
            if self.tick is not None:
                self.tick(self.count, max(self.count, 60 * len(self.given.points)))
        return self.known[key]


def fit_service(given: Fittable, scenario: Mapping[str, Any], tick: Tick | None = None) -> Fitted:
    """Fit, with intervals and errors of points left out. Raises ValueError for an engine that is unknown."""
    base = hardware_profiles.engine(str(scenario.get("engine", "ideal")))
    base = {**base, "interval": {}}
    runs = _Runs(given, scenario, base, tick)
    problem = Problem(runs.residual, runs.owner, _coordinates(LOW), _coordinates(HIGH))
    start = np.clip(_coordinates(np.array([base.get(k, u) for k, u in zip(TERMS, UNSAID, strict=True)])),
                    problem.low, problem.high)  # fmt: skip
    before = runs.residual(start, problem.everything)
    found, active = _chosen(problem, start, problem.everything)
    usual = _outliers(problem, found)
    if not usual.all():
        found, active = _chosen(problem, start, usual)
    low, high = bootstrap(problem, found, active)
    held = _held_out(problem, found, active, start, usual)
    terms = {name: (float(v), float(a), float(b)) for name, v, a, b, on in zip(
        TERMS, _plain(found.at), _plain(low), _plain(high), active, strict=True) if on}  # fmt: skip
    kept = {name: float(v) for name, v, on in zip(TERMS, _plain(found.at), active, strict=True) if not on}
    rows = tuple((given.points[i].where, name) for i, name in zip(runs.owner, runs.names, strict=True))
    final = runs.residual(found.at, problem.everything)
    return Fitted(terms, kept, rows, np.exp(runs.wanted), before, final, held, _said(given, usual, final, runs.owner),
                  runs.count)  # fmt: skip


def _chosen(problem: Problem, start: Floats, points: Mask) -> tuple[Found, Mask]:
    """The search with as few terms as the points identify: the worst known leaves first, then those at class value."""
    active = np.ones(len(start), dtype=bool)
    found = minimise(problem, start, active, points)
    while active.any():
        deviation = np.where(active, deviations(found, active), 0.0)
        away = np.abs(found.at - start)
        near = np.where(active & (away < SURE * deviation), deviation / np.maximum(away, 1e-9), 0.0)
        if deviation.max() > WIDEST:
            active[int(deviation.argmax())] = False
        elif near.max() > 0:
            active[int(near.argmax())] = False
        else:
            break
        at = np.where(active, found.at, start)
        found = minimise(problem, at, active, points, found.matrix, rounds=4, renew=False)
    return minimise(problem, found.at, active, points, found.matrix) if active.any() else found, active


def _outliers(problem: Problem, found: Found) -> Mask:
    """Points to keep: all but those far off, at most three of ten."""
    worst = np.zeros(len(problem.everything))
    np.maximum.at(worst, problem.owner, np.abs(np.nan_to_num(found.residual)))
    usual = 1.4826 * float(np.median(np.abs(found.residual[np.isfinite(found.residual)])))
    odd = worst > max(FAR, SURELY * usual)
    return ~odd if odd.sum() <= 0.3 * len(worst) and (~odd).sum() >= 4 else ~np.zeros(len(worst), dtype=bool)


def _held_out(problem: Problem, found: Found, active: Mask, start: Floats, usual: Mask) -> Floats:
    """Each fold of the points predicted by a fit of the others, which starts at class values; NaN for outliers."""
    held = np.full(len(problem.owner), np.nan)
    numbers = np.flatnonzero(usual)
    for fold in range(min(FOLDS, len(numbers))):
        out = np.zeros(len(usual), dtype=bool)
        out[numbers[fold :: min(FOLDS, len(numbers))]] = True
        at = start
        if active.any():
            at = minimise(problem, start, active, usual & ~out, found.matrix, rounds=6, renew=False).at
        found_here = problem.residual(at, out)
        held = np.where(np.isfinite(found_here), found_here, held)
    return held


def _said(given: Fittable, usual: Mask, residual: Floats, owner: NDArray[np.int64]) -> tuple[str, ...]:
    worst = [float(residual[owner == i][np.abs(residual[owner == i]).argmax()]) for i in range(len(usual))]
    return tuple(f"{given.points[i].where}: predicted {np.expm1(worst[i]):+.0%} off: outlier, dropped"
                 for i in np.flatnonzero(~usual))  # fmt: skip


def _coordinates(values: Any) -> Floats:
    return np.asarray(np.log(np.asarray(values, dtype=float) + OFFSET), dtype=np.float64)


def _plain(at: Floats) -> Floats:
    """Terms in their own units; the logarithm's rounding leaves no negative time."""
    return np.asarray(np.maximum(np.exp(at) - OFFSET, LOW), dtype=np.float64)


def _values(at: Floats) -> dict[str, float]:
    return dict(zip(TERMS, _plain(at).tolist(), strict=True))
