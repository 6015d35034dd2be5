"""Routers: which replica serves a request. One per file, found by name, with ``pick(request, states) -> index``."""

from __future__ import annotations

from collections.abc import Sequence as Ordered
from dataclasses import dataclass
from typing import Protocol

from sim.request import Request


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """What a router may know of a replica: rounds that ended at or before the present are included."""

    waiting: int
    running: int
    kv_bytes: int
    kv_capacity_bytes: int


class Router(Protocol):
    """What the cluster asks of a router."""

    needs_state: bool

    def pick(self, request: Request, replicas: int, states: Ordered[ReplicaState]) -> int:
        """Index of the replica that serves the request."""
        ...
