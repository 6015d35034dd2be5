"""Which value of one axis gives a wanted speedup: a scan that misses no hump it can see, then bisection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sim.axes import OWN, Axis, bounds
from sim.build import load_shape
from sim.scenario import Scenario
from sim.speedup import Known, Ratio, curve_of
from workloads import models
from workloads.errors import shown

__all__ = ["Answer", "solve", "suggested", "target_of"]

SCAN = 41  # points of the first look; a hump narrower than a fortieth of the range may be missed
HALVINGS = 40
FINE = 1e-6  # of the range: where bisection of a real number stops


@dataclass(frozen=True)
class Answer:
    """Where an axis reaches the target.

    ``values``: of a number, where the speedup crosses it (a whole number: the one beside the crossing that reaches it);
    of names, those that reach it. ``speedups``: there. ``lowest`` and ``highest``: over all values looked at. ``at``:
    where the other axes stood.
    """

    path: str
    values: tuple[Any, ...]
    speedups: tuple[float, ...]
    lowest: float
    highest: float
    at: tuple[tuple[str, Any], ...] = ()


def target_of(text: str) -> float:
    """The number in ``speedup=2``. Raises ValueError, one line."""
    name, _, said = text.partition("=")
    try:
        wanted = float(said)
    except ValueError:
        wanted = 0.0
    if name.strip() != "speedup" or not 0.0 < wanted < 1e6:
        raise ValueError(f"--solve {shown(text)}: must be speedup=NUMBER, as in speedup=2")
    return wanted


def solve(
    scenario: Scenario,
    target: float,
    axis: str,
    fixed: Sequence[Axis] = (),
    ratio: Ratio | None = None,
    against: Sequence[str] = (),
) -> Answer:
    """Where ``axis`` (``KEY=LOW:HIGH``, or ``KEY=a,b,c``) gives ``target``, other axes fixed to one value each.

    Raises ValueError, one line.
    """
    for one in fixed:
        if len(one.values) != 1:
            raise ValueError(f"--over {one.path}: --solve takes one value of every other axis, not {len(one.values)}")

    known = Known(scenario, against)

    def speedups(values: Sequence[Any]) -> list[float]:
        along = Axis(path, tuple(values)).checked("--for")
        rest = [one for one in fixed if one.path != path]
        return [float(s) for s in curve_of(known, [*rest, along], ratio).table["speedup"]]

    span = bounds(axis)
    path = axis.partition("=")[0].strip() if span is None else span[0]
    if span is None:
        answer = _reaching(path, target, Axis.parse(axis, "--for").values, speedups)
    else:
        answer = _crossings(path, target, _grid(path, span[1], span[2]), speedups)
    return replace(answer, at=tuple((one.path, one.values[0]) for one in fixed if one.path != path))


def suggested(scenario: Scenario) -> tuple[str, ...]:
    """What ``--solve`` looks at unless told: acceptance, every shipped draft of that vocabulary, batch."""
    policy = scenario.policy if isinstance(scenario.policy, dict) else {"name": scenario.policy}
    asked = ["batch=1:1024"]
    if policy.get("name") == "speculative":
        target = load_shape(scenario.model, "model")
        shapes = (load_shape(name, "policy.draft") for name in models.names())
        fit = [s for s in shapes if s.layers and not s.encoder and s.vocab == target.vocab
               and 2 * s.total_parameters <= target.total_parameters]  # fmt: skip
        asked = ["policy.acceptance=0:1", *asked]
        if fit:
            fit.sort(key=lambda s: s.total_parameters)
            asked.insert(1, "policy.draft=" + ",".join(s.name for s in fit))
    return tuple(asked)


def _reaching(
    path: str, target: float, values: Sequence[Any], speedups: Callable[[Sequence[Any]], list[float]]
) -> Answer:
    found = speedups(values)
    good = [(v, s) for v, s in zip(values, found, strict=True) if s >= target]
    return Answer(path, tuple(v for v, _ in good), tuple(s for _, s in good), min(found), max(found))


def _grid(path: str, low: float, high: float) -> list[Any]:
    """What is looked at first: every whole number of a short whole range, else evenly (batch, context: in ratio)."""
    if not (isinstance(low, int) and isinstance(high, int)) or not _counts(path):
        return [float(v) for v in np.linspace(low, high, SCAN)]
    if high - low < SCAN:
        return list(range(low, high + 1))
    spaced = np.geomspace(low, high, SCAN) if low > 0 else np.linspace(low, high, SCAN)
    return sorted({low, high, *(int(v) for v in spaced)})


def _counts(path: str) -> bool:
    """Whether an axis takes whole numbers only; of a policy's options, gammas and the like do."""
    return path in OWN or not any(word in path for word in ("acceptance", "alpha", "match", "mean", "share", "rate"))


def _crossings(
    path: str, target: float, grid: Sequence[Any], speedups: Callable[[Sequence[Any]], list[float]]
) -> Answer:
    found = speedups(grid)
    values, there = [], []
    for (a, fa), (b, fb) in zip(zip(grid, found, strict=True), zip(grid[1:], found[1:], strict=True), strict=False):
        if (fa >= target) != (fb >= target):
            value, speedup = _bisect(a, b, fb >= target, target, grid[-1] - grid[0], speedups)
            values.append(value)
            there.append(speedup)
    return Answer(path, tuple(values), tuple(there), min(found), max(found))


def _bisect(
    low: Any, high: Any, rises: bool, target: float, span: float, speedups: Callable[[Sequence[Any]], list[float]]
) -> tuple[Any, float]:
    """The end that reaches the target, once the two are next to each other."""
    whole = isinstance(low, int)
    for _ in range(HALVINGS):
        if high - low <= (1 if whole else FINE * span):
            break
        middle = (low + high) // 2 if whole else (low + high) / 2
        reaches = speedups([middle])[0] >= target
        low, high = (low, middle) if reaches == rises else (middle, high)
    value = high if rises else low
    return value, speedups([value])[0]
