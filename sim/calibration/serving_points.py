"""What ``calibrate --serving`` is given: points of one service, checked before anything is fitted to them.

Refused in one line: other or several models, engines or devices; fewer than four points; a column or a load that never
changes; times on another scale than hardware allows, which are another unit. A point alone out of scale is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.analytic.model import ModelShape
from sim.build import load_shape
from sim.silicon.named import device_of, engine_of, model_of
from sim.silicon.replayed import replayed
from sim.silicon.user_points import Service
from workloads.errors import shown
from workloads.results import Lengths, Point, read

__all__ = ["FEWEST", "Fittable", "fittable"]

FEWEST = 4
FASTER, SLOWER = 0.6, 300.0  # than the roofline's single request: nothing is, and nothing served is
STATISTICS = ("mean", "median", "p50")
WIDE = ("ttft", "tpot", "e2el")


@dataclass(frozen=True)
class Fittable:
    """Points, and for each the names of what is fitted; ``notes``: what was left out, and why."""

    points: tuple[Point, ...]
    names: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def fittable(files: Sequence[str], scenario: Mapping[str, Any]) -> Fittable:
    """The points of all files that can be fitted with a scenario's service. Raises ValueError, one line."""
    points = [point for file in files for point in read(file)]
    notes = [note for point in points for note in point.notes]
    _same(points, "model", model_of, str(scenario["model"]))
    _same(points, "hardware", device_of, str(scenario["hardware"]))
    _same(points, "engine", engine_of, None)
    pairs = [(point, names) for point in points if (names := _names(point))]
    bare = [point.where for point in points if not _names(point)]
    notes += [f"{where}: no usable TTFT, TPOT or E2EL; dropped" for where in bare]
    pairs = _plausible(pairs, scenario, notes)
    if len(pairs) < FEWEST:
        raise ValueError(f"{', '.join(files)}: {len(pairs)} usable points: must be at least {FEWEST}" + _why(notes))
    _vary(pairs, ", ".join(files))
    return Fittable(tuple(p for p, _ in pairs), tuple(n for _, n in pairs), tuple(notes))


def _why(notes: Sequence[str]) -> str:
    return f" ({notes[0]})" if notes else ""


def _names(point: Point) -> tuple[str, ...]:
    """TTFT and TPOT by their mean, else their median; E2EL where there is neither."""
    found = {metric: next((name for s in STATISTICS if (name := f"{s}_{metric}_ms") in point.measured), "")
             for metric in WIDE}  # fmt: skip
    own = tuple(filter(None, (found["ttft"], found["tpot"])))
    return own or tuple(filter(None, (found["e2el"],)))


def _same(points: Sequence[Point], key: str, meaning: Any, wanted: str | None) -> None:
    """Raise ValueError where points are of several kinds, or of another than the scenario's."""
    seen: dict[str, Point] = {}
    for point in points:
        said = point.said.get(key)
        if isinstance(said, str) and not said.startswith("openai"):
            seen.setdefault(_meant(said, meaning), point)
    if len(seen) > 1:
        (a, first), (b, second) = list(seen.items())[:2]
        raise ValueError(f"{second.where}: {key}: {b}: {first.where} has {a}: must be one {key} in all files")
    for name, point in seen.items():
        if wanted is not None and not _alike(key, name, _meant(wanted, meaning)):
            said = point.said[key]
            raise ValueError(f"{point.where}: {key}: {shown(said)}: must be the scenario's, {wanted}")


def _meant(said: str, meaning: Any) -> str:
    try:
        return str(meaning(said))
    except ValueError:
        return said


def _alike(key: str, a: str, b: str) -> bool:
    """Whether two names are one; a model that is not shipped may be the scenario's config under its own name."""
    if a == b or key != "model":
        return a == b
    shapes: list[ModelShape] = []
    for name in (a, b):
        try:
            shapes.append(load_shape(name, key))
        except ValueError:
            return True
    return shapes[0].total_parameters == shapes[1].total_parameters


def _plausible(
    pairs: list[tuple[Point, tuple[str, ...]]], scenario: Mapping[str, Any], notes: list[str]
) -> list[tuple[Point, tuple[str, ...]]]:
    """Points whose times hardware can have. Raises ValueError where half of a column has another unit."""
    service = Service({**scenario, "engine": "ideal", "clock": "fixed"})
    odd: dict[int, tuple[str, float, float]] = {}
    by_name: dict[str, list[int]] = {}
    for number, (point, names) in enumerate(pairs):
        alone = Point(point.where, "", None, 1, 1, Lengths(point.prompt.mean), Lengths(max(2, point.output.mean)), {})
        wide = {name: f"mean_{name.split('_')[1]}_ms" for name in names}
        floor = replayed(service.built(alone), alone, tuple(wide.values()))
        for name in names:
            share = point.measured[name] / (floor[wide[name]] / (_gain(service, alone) if "tpot" in name else 1.0))
            if not FASTER <= share <= SLOWER * _crowd(point):
                odd[number] = name, share, floor[wide[name]]
                by_name.setdefault(name, []).append(number)
    for name, numbers in by_name.items():
        if 2 * len(numbers) >= len(pairs):
            point = pairs[numbers[0]][0]
            raise ValueError(f"{point.where}: {name}: {point.measured[name]:g}: {_unit(*odd[numbers[0]][1:])}")
    for number, (name, share, floor_ms) in odd.items():
        point = pairs[number][0]
        notes.append(f"{point.where}: {name}: {point.measured[name]:g}: {_unit(share, floor_ms)}; point dropped")
    return [pair for number, pair in enumerate(pairs) if number not in odd]


def _crowd(point: Point) -> float:
    """How many requests may stand before one: latencies grow with them."""
    return float(max(1, point.concurrency or point.requests))


def _gain(service: Service, point: Point) -> float:
    """Tokens that a round may give at most."""
    return float(service.built(point).policy.tokens_per_round)


def _unit(share: float, floor_ms: float) -> str:
    """What is wrong with a time that is so many times the roofline's."""
    said = f"{share:.2g} times the roofline's {floor_ms:.3g} ms for a request alone"
    for factor, word in ((1e3, "seconds"), (1e-3, "microseconds"), (1e-6, "nanoseconds")):
        if FASTER <= share * factor <= SLOWER:
            return f"{said}: {word}? must be milliseconds"
    return f"{said}: must be milliseconds, measured on this hardware"


def _vary(pairs: Sequence[tuple[Point, tuple[str, ...]]], files: str) -> None:
    """Raise ValueError where a column has one value in all points, or all points had the same load."""
    columns: dict[str, list[float]] = {}
    for point, names in pairs:
        for name in names:
            columns.setdefault(name, []).append(point.measured[name])
    for name, values in columns.items():
        if len(values) >= FEWEST and len(set(values)) == 1:
            raise ValueError(f"{files}: {name}: {values[0]:g} in all {len(values)} points: must be measured values")
    loads = {(p.rate, p.concurrency, round(p.prompt.mean), round(p.output.mean)) for p, _ in pairs}
    if len(loads) == 1:
        said = f"rate, concurrency, lengths: the same in all {len(pairs)} points"
        raise ValueError(f"{files}: {said}: must differ, or terms cannot be told apart")
    assert np.isfinite([v for values in columns.values() for v in values]).all()
