"""The entrance of a scenario: its router, how stale that one's view is, and who is let in, from names to things."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sim.plugin import build, suggest
from sim.routers import Router
from sim.scenario import LimitsPart, Scenario
from sim.serving.admission import Admission, TenantLimits
from workloads.errors import shown

__all__ = ["admission_of", "router_of"]

LONGEST_S = 1e6
NS = 1e9


def router_of(scenario: Scenario) -> tuple[Router, int]:
    """The router and how often its view is polled in nanoseconds, 0 for never (it sees the present).

    Raises ValueError where an option makes no sense, names a group that is not there, or cannot be kept.
    """
    said: dict[str, Any] = dict(scenario.router) if isinstance(scenario.router, Mapping) else {"name": scenario.router}
    stale_s = said.pop("stale_s", 0)
    number = isinstance(stale_s, int | float) and not isinstance(stale_s, bool)
    if not number or not (stale_s == 0 or 1e-9 <= stale_s <= LONGEST_S):
        raise ValueError(f"router.stale_s: {shown(stale_s)}: must be 0, or seconds from 1e-9 to {LONGEST_S:g}")
    router: Router = build("sim.routers", "router", said)
    if router.pulls and stale_s:
        raise ValueError(f"router.stale_s: {shown(stale_s)}: to {said['name']} replicas come by themselves; must be 0")
    if router.pulls and scenario.pools is not None:
        raise ValueError(f"router: {said['name']}: not with pools, whose decode replicas cannot be waited for")
    _check_groups(scenario, getattr(router, "groups", ()))
    return router, round(stale_s * NS)


def _check_groups(scenario: Scenario, named: tuple[str, ...]) -> None:
    known = [] if scenario.fleet is None else [group.name for group in scenario.fleet.groups]
    for name in named:
        if name not in known:
            allowed = ", ".join(known) or "none: the scenario has no fleet"
            raise ValueError(f"router.groups: {shown(name)}: must be one of {allowed}{suggest(name, known)}")


def admission_of(scenario: Scenario) -> Admission | None:
    """Who may come in; None where everybody may. Raises ValueError where two tenants or classes share a number."""
    tenants: dict[str, Any] = dict(scenario.tenants)
    _check_differ("tenants", "number", {name: part.number for name, part in tenants.items()})
    _check_differ("classes", "priority", {name: part.priority for name, part in scenario.classes.items()})
    said = scenario.admission
    own = {part.number: _limits(part) for part in tenants.values() if _limits(part) != TenantLimits()}
    if said is None and not own:
        return None
    if said is None:
        return Admission(tenants=own)
    queue_ns = None if said.queue_s is None else round(said.queue_s * NS)
    return Admission(said.max_outstanding, said.max_held, queue_ns, said.fair, _limits(said.each), own)


def _limits(part: LimitsPart) -> TenantLimits:
    return TenantLimits(part.rate_per_s, part.burst, part.max_outstanding)


def _check_differ(key: str, what: str, numbers: Mapping[str, int]) -> None:
    seen: dict[int, str] = {}
    for name, number in numbers.items():
        if number in seen:
            raise ValueError(f"{key}.{name}.{what}: {number}: {seen[number]} has that {what} already")
        seen[number] = name
