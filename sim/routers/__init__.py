"""Routers: which replica serves a request. One per file, found by name, with ``pick(request, view)``.

A router keeps nothing: what it picks follows from the request and from what the view shows of the replicas that may be
picked now. ``None`` means nobody yet: the request is held at the gateway and asked for again when something changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Ordered
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from sim.plugin import build
from sim.request import Request

__all__ = ["GroupFacts", "ReplicaState", "Router", "Some", "View", "at_least", "first_of_least", "named"]


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """What a router may know of a replica: rounds that ended at or before the present are included."""

    waiting: int
    running: int
    kv_bytes: int
    kv_capacity_bytes: int


@dataclass(frozen=True, slots=True)
class GroupFacts:
    """What a router may know of the group that a replica is of, and what does not change.

    ``place``: its number among the groups. ``usd_per_hour``: rent of one replica, None where nobody knows it.
    ``seats``: sequences that a replica runs at once. ``parameters``: of its model, 0 where unknown.
    """

    name: str = ""
    place: int = 0
    weight: float = 1.0
    usd_per_hour: float | None = None
    seats: int = 1
    parameters: int = 0


class View(Protocol):
    """The replicas that may be picked, numbered from 0; nothing is computed before it is asked for."""

    @property
    def count(self) -> int:
        """How many there are; at least one."""
        ...

    def outstanding(self, i: int) -> int:
        """Requests that a replica has and has not answered, as of the last poll where the view is stale."""
        ...

    def state(self, i: int) -> ReplicaState:
        """Queue, batch and memory of a replica, likewise."""
        ...

    def cached_prefix(self, i: int) -> int:
        """Tokens of the request's prompt that the replica's prefix cache holds now."""
        ...

    def facts(self, i: int) -> GroupFacts:
        """What is known of its group."""
        ...

    def score(self, key: int, i: int) -> int:
        """A random 64-bit number that belongs to a key and the replica's place in the fleet, whoever else is there."""
        ...

    def draws(self, count: int) -> Ordered[float]:
        """Uniforms in [0, 1) that belong to this request and to how often it was tried."""
        ...


class Router(Protocol):
    """What the gateway asks of a router. ``pulls``: it may answer None while everybody is busy."""

    @property
    def pulls(self) -> bool:
        """Whether ends of requests matter to it at once, so that each must be an event."""
        ...

    def pick(self, request: Request, view: View) -> int | None:
        """Number of the replica that serves the request, None to hold it."""
        ...


@dataclass(frozen=True, slots=True)
class Some:
    """A view of some of the replicas of another one, renumbered in the order of ``which``."""

    view: View
    which: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many."""
        return len(self.which)

    def outstanding(self, i: int) -> int:
        """As the whole view has it."""
        return self.view.outstanding(self.which[i])

    def state(self, i: int) -> ReplicaState:
        """As the whole view has it."""
        return self.view.state(self.which[i])

    def cached_prefix(self, i: int) -> int:
        """As the whole view has it."""
        return self.view.cached_prefix(self.which[i])

    def facts(self, i: int) -> GroupFacts:
        """As the whole view has it."""
        return self.view.facts(self.which[i])

    def score(self, key: int, i: int) -> int:
        """As the whole view has it."""
        return self.view.score(key, self.which[i])

    def draws(self, count: int) -> Ordered[float]:
        """As the whole view has it."""
        return self.view.draws(count)

    def pick(self, router: Router, request: Request) -> int | None:
        """What a router picks of these, by the number in the whole view."""
        picked = router.pick(request, self)
        return None if picked is None else self.which[picked]


def first_of_least(keys: Iterable[float], request: Request, count: int) -> int:
    """Place of the least key; ties go to the first one from place ``request.id`` modulo ``count`` on, round and round,
    so that idle replicas share what comes.
    """
    found = list(keys)
    start, least = request.id % count, min(found)
    if start and least in found[start:]:
        return found.index(least, start)
    return found.index(least)


@cache
def named(name: str, option: str) -> Router:
    """Another router, with its defaults, that a router falls back to. Raises ValueError naming the option."""
    router: Router = build("sim.routers", option, name)
    return router


def at_least(router: str, option: str, value: float, least: float, whole: bool = False) -> None:
    """Raise ValueError, one line, unless an option is a number of at least ``least``."""
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not number or not least <= value < float("inf"):
        kind = "a whole number" if whole else "a number"
        raise ValueError(f"router.{option}: {value!r}: {router} needs {kind} >= {least:g}")
