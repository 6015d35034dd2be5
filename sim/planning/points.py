"""The points of a sweep: every combination of the axes' values, values in step, or points drawn at random.

A drawn point depends on the seed, its number and the place of the axis alone, so that more points extend fewer (a
Latin hypercube is one piece and does not).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np

from hardware_profiles.strict_yaml import value as yaml_value
from sim.axes import OWN, Axis, yaml_text
from workloads.errors import shown

__all__ = ["DESIGNS", "Range", "over", "points"]

DESIGNS = ("grid", "list", "random", "latin")
MOST_POINTS = 1_000_000
GRIDS, LATIN = 0, 1


@dataclass(frozen=True)
class Range:
    """Everything from ``low`` to ``high``, to be drawn from; whole numbers only where both ends are whole."""

    path: str
    low: float
    high: float

    @property
    def numeric(self) -> bool:
        """Like an axis of numbers."""
        return True

    def at(self, share: float) -> float:
        """The value at a share of the way, 0 <= share < 1."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return self.low + int(share * (self.high - self.low + 1))
        return float(self.low + share * (self.high - self.low))


def over(texts: Sequence[str], design: str) -> tuple[Axis | Range, ...]:
    """The axes of ``--over``: KEY=VALUES, or KEY=LOW..HIGH to draw from. Raises ValueError, one line."""
    axes: list[Axis | Range] = []
    for text in texts:
        axis = _range(text) if ".." in text.partition("=")[2] else Axis.parse(text)
        if axis.path in OWN:
            raise ValueError(f"--over {axis.path}: is no key of a scenario; speedup has it, a sweep simulates traffic")
        if axis.path in [one.path for one in axes]:
            raise ValueError(f"--over {axis.path}: given twice; put all of its values into one")
        if isinstance(axis, Range) and design in ("grid", "list"):
            raise ValueError(f"--over {shown(text)}: LOW..HIGH is drawn from; add --random N or --latin N")
        axes.append(axis)
    if not axes:
        raise ValueError("--over: missing: say what to vary, as in --over workload.rate=1,2,4")
    return tuple(axes)


def _range(text: str) -> Range:
    path, _, said = text.partition("=")
    ends = [yaml_value(part.strip() or "~", f"--over {path}") for part in said.split("..")]
    numbers = [e for e in ends if isinstance(e, int | float) and not isinstance(e, bool) and abs(e) < 1e12]
    if not path.strip() or len(ends) != 2 or len(numbers) != 2 or not numbers[0] < numbers[1]:
        raise ValueError(f"--over {shown(text)}: must be KEY=LOW..HIGH, two numbers, rising")
    return Range(path.strip(), *numbers)


def points(axes: Sequence[Axis | Range], design: str = "grid", count: int = 0, seed: int = 0) -> list[dict[str, Any]]:
    """Values by key, a point each, in a fixed order; ``count`` of a drawn design. Raises ValueError, one line."""
    lists = [axis.values if isinstance(axis, Axis) else () for axis in axes]
    if design not in DESIGNS:
        raise ValueError(f"design: {design!r}: must be one of {', '.join(DESIGNS)}")
    many = {"grid": prod(len(values) for values in lists), "list": len(lists[0])}.get(design, count)
    if not 1 <= many <= MOST_POINTS:
        raise ValueError(f"--over: {many:,} points; must be from 1 to {MOST_POINTS:,}")
    if design == "list" and len({len(values) for values in lists}) > 1:
        lengths = ", ".join(f"{axis.path}: {len(values)}" for axis, values in zip(axes, lists, strict=True))
        raise ValueError(f"--list: values go in step, so every key needs as many ({lengths})")
    rows = {"grid": product(*lists), "list": zip(*lists, strict=True)}.get(design)
    values = rows if rows is not None else _drawn(axes, design, count, seed)
    return [dict(zip((axis.path for axis in axes), row, strict=True)) for row in values]


def _drawn(axes: Sequence[Axis | Range], design: str, count: int, seed: int) -> Iterator[tuple[Any, ...]]:
    shares = [_shares(design, count, seed, number) for number in range(len(axes))]
    for row in zip(*shares, strict=True):
        yield tuple(_at(axis, share) for axis, share in zip(axes, row, strict=True))


def _shares(design: str, count: int, seed: int, number: int) -> list[float]:
    """Of a point each, where along an axis it lies; of a Latin hypercube, one in each of ``count`` equal parts."""
    luck = np.random.default_rng([seed, number, LATIN if design == "latin" else GRIDS])
    if design != "latin":
        return [float(u) for u in luck.random(count)]
    strata = luck.permutation(count)
    return [float(u) for u in np.minimum((strata + luck.random(count)) / count, np.nextafter(1.0, 0.0))]


def _at(axis: Axis | Range, share: float) -> Any:
    return axis.at(share) if isinstance(axis, Range) else axis.values[int(share * len(axis.values))]


def settings(point: dict[str, Any]) -> tuple[str, ...]:
    """The point as ``--set`` takes it."""
    return tuple(f"{key}={value if isinstance(value, str) else yaml_text(value)}" for key, value in point.items())
