"""Results that users have (workloads/results), predicted point by point with a scenario's service."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pandas as pd

from sim.build import Built, build_scenario, load_device, load_engine
from sim.scenario import Scenario
from sim.silicon.named import device_of, engine_of, model_of, precision_of
from sim.silicon.replayed import replayed
from workloads.results import Point
from workloads.results.point import MEASURED

__all__ = ["Service", "pairs", "predict", "service_of"]

Frame = Any
LAYOUT = ("tensor", "pipeline", "data", "expert")
TRAFFIC = {"rate": 1, "requests": 1, "prompt": 16, "output": 2}  # stands where a point's load will be


class Unnamed(ValueError):
    """Neither the file nor an option says what was measured."""


class Service:
    """A scenario, or a device and an engine, under points that may say more of themselves; built once for each kind.

    A point's own words on model, hardware, precision and layout count; its engine only where ``base`` names none.
    """

    def __init__(self, base: Mapping[str, Any]) -> None:
        """``base``: keys of a scenario, of which any may be missing."""
        self.base, self.built_by = {k: v for k, v in base.items() if k != "workload"}, dict[str, Built]()

    def scenario(self, point: Point) -> dict[str, Any]:
        """The scenario that a point is simulated with. Raises ValueError for an unknown name, Unnamed for none."""
        said = dict(self.base) | _own(point, self.base)
        for key, option in (("model", "--scenario"), ("hardware", "--device")):
            if key not in said:
                raise Unnamed(f"{point.where}: {key}: missing: name it in the file, or add {option} NAME")
        return {**said, "workload": TRAFFIC}

    def built(self, point: Point) -> Built:
        """The same, built."""
        said = self.scenario(point)
        key = repr(said)
        if key not in self.built_by:
            self.built_by[key] = build_scenario(Scenario.parse(said))
        return self.built_by[key]


def service_of(scenario: str | None, device: str | None, engine: str | None) -> Service:
    """From the options of a command. Raises ValueError for what does not load."""
    if device is not None:
        load_device(device)
    if engine is not None:
        load_engine(engine)
    base = {} if scenario is None else Scenario.load(scenario).model_dump(exclude_unset=True, mode="python")
    said = {"hardware": device, "engine": engine}
    return Service(base | {key: value for key, value in said.items() if value is not None})


def predict(points: Iterable[Point], service: Service, progress: Callable[[int], None] | None = None) -> Frame:
    """One row a point: what was asked and measured, ``predicted_...`` beside it, ``reason`` where there is none.

    Raises Unnamed where a point's model or hardware is nowhere named.
    """
    rows = []
    for number, point in enumerate(points, 1):
        rows.append(_row(point, service))
        if progress is not None:
            progress(number)
    return pd.DataFrame(rows)


def pairs(frame: Frame) -> list[tuple[str, str, str]]:
    """(measured column, predicted column, title) of what the frame has."""
    names = [name for name in frame.columns if MEASURED.fullmatch(str(name))]
    return [(name, f"predicted_{name}", name) for name in names if f"predicted_{name}" in frame.columns]


def _row(point: Point, service: Service) -> dict[str, Any]:
    row: dict[str, Any] = {
        "point": point.where, "tool": point.tool, "rate": point.rate, "concurrency": point.concurrency,
        "requests": point.requests, "prompt_tokens": point.prompt.mean, "output_tokens": point.output.mean,
    }  # fmt: skip
    row |= {key: point.said.get(key) for key in ("model", "hardware", "engine")}
    try:
        said = service.scenario(point)
        row |= {key: said[key] for key in ("model", "hardware")} | {"engine": said.get("engine", "ideal")}
        row["layout"] = _layout(said.get("layout", {}))
        found = replayed(service.built(point), point, tuple(point.measured))
        row |= {key: value for name, one in point.measured.items()
                for key, value in ((name, one), (f"predicted_{name}", found.get(name)))}  # fmt: skip
        return {**row, "reason": ""}
    except Unnamed:
        raise
    except ValueError as error:
        reason = " ".join(str(error).split()).removeprefix(f"{point.where}: ")
        return {**row, **point.measured, "reason": reason}


def _own(point: Point, base: Mapping[str, Any]) -> dict[str, Any]:
    """What the point says of its own service, in a scenario's words. Raises ValueError for unknown names."""
    said, found = point.said, dict[str, Any]()
    if "model" in said and (point.tool == "csv" or "model" not in base):
        found["model"] = model_of(str(said["model"]))
    if "hardware" in said:
        found["hardware"] = device_of(str(said["hardware"]))
    if "engine" in said and "engine" not in base:
        found |= _engine(str(said["engine"]), point.tool)
    if "precision" in said:
        found["precision"] = precision_of(str(said["precision"]))
    layout = {key: int(said[key]) for key in LAYOUT if isinstance(said.get(key), int | float)}
    return {**found, "layout": {**base.get("layout", {}), **layout}} if layout else found


def _engine(said: str, tool: str) -> dict[str, str]:
    """The engine, where it is one: tools name the protocol that they speak (``openai-chat``)."""
    try:
        return {"engine": engine_of(said)}
    except ValueError:
        if tool == "csv":
            raise
        return {}


def _layout(said: Mapping[str, Any]) -> str:
    short = {"tensor": "TP", "pipeline": "PP", "data": "DP", "expert": "EP"}
    return " ".join(f"{short[key]}{said[key]}" for key in LAYOUT if said.get(key, 1) != 1) or "TP1"
