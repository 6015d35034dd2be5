"""What a plan searches: every combination of the values in ``plan.search``, as settings of the scenario."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import product
from typing import Any

from sim.analytic.layout import layouts
from sim.axes import OWN, yaml_text
from sim.build import load_shape
from sim.scenario import PlanPart, Scenario
from workloads.errors import shown

__all__ = ["Candidate", "candidates"]

POOLS = re.compile(r"([1-9][0-9]{0,3})P([1-9][0-9]{0,3})D")
MOST = 100_000
FLEET = ("replicas", "plan", "slo", "published", "seed", "warmup_s", "pools", "workload")  # set by the search, or given


@dataclass(frozen=True)
class Candidate:
    """``label``: what to call it; ``settings``: what makes it of the scenario. ``prefill``, ``decode``: replicas of one
    unit's pools (0, 1: a replica does both). A plan is a number of units.
    """

    label: str
    settings: tuple[str, ...]
    prefill: int = 0
    decode: int = 1

    @property
    def pooled(self) -> bool:
        """Whether prompts are read elsewhere than tokens are written."""
        return self.prefill > 0

    def fleet(self, units: int, link_GBps: float | None) -> tuple[str, ...]:
        """The settings of so many units."""
        if not self.pooled:
            return (*self.settings, f"replicas={units}")
        link = () if link_GBps is None else (f"pools.link_GBps={link_GBps}",)
        return (*self.settings, *link, f"pools.prefill.replicas={units * self.prefill}",
                f"pools.decode.replicas={units * self.decode}")  # fmt: skip

    def size(self, units: int) -> str:
        """So many units, in words: 6 replicas, 2P6D."""
        return f"{units * self.prefill}P{units * self.decode}D" if self.pooled else f"{units}"


def candidates(scenario: Scenario, plan: PlanPart) -> list[Candidate]:
    """All of them, in order of the search's keys; the scenario as written where nothing is searched.

    Raises ValueError, one line, for a key or value that no scenario takes and for more than ``MOST``.
    """
    axes = [[(key, value) for value in values] for key, values in _axes(scenario, plan).items()]
    count = 1
    for axis in axes:
        count *= len(axis)
    if count > MOST:
        raise ValueError(f"plan.search: {count:,} combinations; at most {MOST:,}")
    _checked(scenario, axes)
    names = {axis[0][0] for axis in axes if len(axis) > 1}
    found = [_candidate(choice, names) for choice in product(*axes)]
    for one in found:
        if one.pooled and plan.link_GBps is None and scenario.pools is None:
            raise ValueError("plan.link_GBps: missing: caches move from prefill to decode replicas over a link")
    return list(dict.fromkeys(found))


def _axes(scenario: Scenario, plan: PlanPart) -> dict[str, Sequence[Any]]:
    found: dict[str, Sequence[Any]] = {}
    for key, values in plan.search.items():
        if key in OWN or (key.split(".")[0] in FLEET and key != "pools"):
            raise ValueError(
                f"plan.search.{key}: is not searched over; the search sets replicas, the scenario the rest"
            )
        if key == "devices":
            found["layout"] = _layouts(scenario, values)
        else:
            found[key] = [_pools(value) for value in values] if key == "pools" else values
    return found


def _layouts(scenario: Scenario, devices: Sequence[Any]) -> list[dict[str, int]]:
    """Every legal cut of the model over each number of devices."""
    shape = load_shape(scenario.model, "model")
    found = []
    for count in devices:
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 1024:
            raise ValueError(f"plan.search.devices: {shown(count)}: must be a whole number from 1 to 1024")
        legal = (verdict.layout for verdict in layouts(shape, count) if verdict.reason is None)
        keys = ("tensor", "pipeline", "expert", "data")
        found += [{key: getattr(layout, key) for key in keys if getattr(layout, key) > 1} for layout in legal]
    if not found:
        raise ValueError(
            f"plan.search.devices: {shown(list(devices))}: no layout of {shape.name} is legal over so many"
        )
    return found


def _pools(value: Any) -> str:
    if value is None or value == "none":
        return "none"
    if not isinstance(value, str) or not POOLS.fullmatch(value):
        raise ValueError(f"plan.search.pools: {shown(value)}: must be none, or like 1P3D: prefill and decode replicas")
    return value


def _checked(scenario: Scenario, axes: Sequence[Sequence[tuple[str, Any]]]) -> None:
    """Every single value must be one that a scenario takes; what values do together is found out later."""
    for axis in axes:
        for key, value in axis:
            if key == "pools":
                continue
            try:
                scenario.with_settings([_setting(key, value)])
            except ValueError as error:
                raise ValueError(f"plan.search.{str(error).removeprefix('--set: ')}") from None


def _candidate(choice: Sequence[tuple[str, Any]], names: Set[str]) -> Candidate:
    """A choice of each axis; of its name, what is not the same in all."""
    settings = tuple(_setting(key, value) for key, value in choice if key != "pools")
    pools = next((POOLS.fullmatch(value) for key, value in choice if key == "pools"), None)
    label = ", ".join(filter(None, (_said(key, value) for key, value in choice if key in names)))
    if pools is None:
        return Candidate(label or "as written", settings)
    return Candidate(label or str(pools[0]), settings, int(pools[1]), int(pools[2]))


def _setting(key: str, value: Any) -> str:
    return f"{key}={value if isinstance(value, str) else yaml_text(value)}"


def _said(key: str, value: Any) -> str:
    """A choice in a few words: names alone where they say enough."""
    last = key.rpartition(".")[2]
    if key == "layout" and isinstance(value, Mapping):
        return " ".join(f"{name} {count}" for name, count in value.items()) or "1 device"
    if key == "pools":
        return "" if value == "none" else str(value)
    if isinstance(value, str) and last in ("hardware", "model", "engine", "policy", "router", "scheduler"):
        return value
    if isinstance(value, Mapping) and "name" in value:
        rest = " ".join(f"{k} {v}" for k, v in value.items() if k not in ("name", "acceptance") and not _nested(v))
        return f"{value['name']} {rest}".strip()
    if last == "variants":
        return _variants(value)
    return f"{last} {yaml_text(value)}"


def _nested(value: Any) -> bool:
    return isinstance(value, Mapping | list)


def _variants(value: Any) -> str:
    """Names of variants with the values of their options."""
    said = []
    for one in value if isinstance(value, list) else [value]:
        [(name, options)] = one.items() if isinstance(one, Mapping) and len(one) == 1 else [(str(one), {})]
        values = options.values() if isinstance(options, Mapping) else [options]
        said.append(" ".join([str(name), *map(str, values)]))
    return " + ".join(said)
