"""What a scenario says happens to its fleet while it serves, from names and seconds to events of the clock."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sim.plugin import suggest
from sim.scenario import AutoscalePart, FaultsPart, FleetPart, RestartPart, SpotPart
from sim.serving.autoscale import Scaling
from sim.serving.events import Event, Events
from sim.serving.faults import RandomOutages, StatedOutages
from sim.serving.outages import Outage
from sim.serving.restarts import Restart
from workloads.errors import shown

__all__ = ["events_of"]

NS = 1e9
HOUR_S = 3600.0


def events_of(fleet: FleetPart) -> Events:
    """Outages in the order of the page, then restarts, then autoscalers. Raises ValueError naming key and value."""
    return Events(tuple(_events(fleet)))


def _events(fleet: FleetPart) -> Iterator[Event]:
    entries: list[FaultsPart | SpotPart] = [*fleet.faults, *fleet.spot]
    for entry, part in enumerate(entries):
        kind, number = ("faults", entry) if isinstance(part, FaultsPart) else ("spot", entry - len(fleet.faults))
        yield _outage(fleet, part, f"fleet.{kind}[{number}]", entry)
    for i, restart in enumerate(fleet.restarts):
        yield from _restarts(fleet, restart, f"fleet.restarts[{i}]")
    for i, scaling in enumerate(fleet.autoscale):
        yield _scaling(fleet, scaling, f"fleet.autoscale[{i}]")


def _outage(fleet: FleetPart, part: FaultsPart | SpotPart, key: str, entry: int) -> Event:
    """``entry`` is the address of its luck."""
    place = _place(fleet, part.group, key)
    if isinstance(part, SpotPart):
        rate, mean_s = "rate_per_h", None if part.rate_per_h is None else HOUR_S / part.rate_per_h
        outage = Outage(_ns(part.notice_s), _or_ns(part.back_s), _ns(part.start_s))
        slot, exponential = None, False
    else:
        rate, mean_s = "mtbf_h", None if part.mtbf_h is None else HOUR_S * part.mtbf_h
        outage = Outage(0, _or_ns(part.repair_s), _ns(part.start_s))
        slot, exponential = part.slot, part.repair == "exponential"
    if (mean_s is None) == (part.at_s is None):
        raise ValueError(f"{key}: needs {rate} or at_s, one of the two")
    if mean_s is not None and slot is not None:
        raise ValueError(f"{key}.slot: {slot}: only with at_s; mtbf_h is of every replica of the group")
    if mean_s is not None:
        return RandomOutages(mean_s * NS, outage, place, exponential, entry)
    _check_at_s(part, slot, exponential, fleet, key)
    return StatedOutages(tuple(map(_ns, part.at_s or ())), outage, place, slot)


def _check_at_s(part: Any, slot: int | None, exponential: bool, fleet: FleetPart, key: str) -> None:
    if exponential:
        raise ValueError(f"{key}.repair: 'exponential': only with mtbf_h; at stated times repairs are fixed")
    if slot is None:
        return
    most = _most(fleet, part.group)
    if slot >= most:
        raise ValueError(f"{key}.slot: {slot}: must be below {most}, the replicas of {part.group or 'the fleet'}")


def _most(fleet: FleetPart, group: str | None) -> int:
    """Places that a group can ever have, or all groups together."""
    scaled = {part.group: part.max for part in fleet.autoscale}
    return sum(max(g.replicas, scaled.get(g.name, 0)) for g in fleet.groups if group in (None, g.name))


def _restarts(fleet: FleetPart, part: RestartPart, key: str) -> Iterator[Event]:
    place = _place(fleet, part.group, key)
    outage = Outage(_or_ns(part.drain_s), 0, _ns(part.start_s))
    for at_s in part.at_s:
        yield Restart(_ns(at_s), outage, place, part.at_once)


def _scaling(fleet: FleetPart, part: AutoscalePart, key: str) -> Event:
    place = _place(fleet, part.group, key)
    assert place is not None, "an autoscaler names its group"
    if sum(other.group == part.group for other in fleet.autoscale) > 1:
        raise ValueError(f"{key}.group: {part.group!r}: has another autoscaler already")
    replicas = fleet.groups[place].replicas
    if not part.min <= replicas <= part.max:
        raise ValueError(f"{key}: min {part.min} and max {part.max}: must enclose the {replicas} replicas at the start")
    if part.min == 0 and part.metric in ("kv", "ttft_ms"):
        raise ValueError(f"{key}.min: 0: without replicas there is no {part.metric}; must be 1 or more")
    if part.metric == "kv" and part.target > 1:
        raise ValueError(f"{key}.target: {part.target:g}: a share of KV memory must be at most 1")
    every_ns, start_ns, down_after_ns, window_ns = map(
        _ns, (part.every_s, part.start_s, part.down_after_s, part.window_s)
    )
    return Scaling(
        place, part.min, part.max, part.metric, part.target, every_ns, start_ns, down_after_ns, part.tolerance,
        window_ns, part.percentile,
    )  # fmt: skip


def _place(fleet: FleetPart, group: str | None, key: str) -> int | None:
    """The number of a group, None for all."""
    known: Sequence[str] = [one.name for one in fleet.groups]
    if group is not None and group not in known:
        raise ValueError(f"{key}.group: {shown(group)}: must be one of {', '.join(known)}{suggest(group, known)}")
    return None if group is None else known.index(group)


def _ns(seconds: float) -> int:
    return round(seconds * NS)


def _or_ns(seconds: float | None) -> int | None:
    return None if seconds is None else _ns(seconds)
