"""Round robin: request number i goes to replica i modulo their number."""

from __future__ import annotations

from collections.abc import Sequence as Ordered
from dataclasses import dataclass
from typing import ClassVar

from sim.request import Request
from sim.routers import ReplicaState


@dataclass(frozen=True)
class RoundRobin:
    """No options, no state: the request's own number decides."""

    name: ClassVar[str] = "round_robin"
    needs_state: ClassVar[bool] = False

    def pick(self, request: Request, replicas: int, states: Ordered[ReplicaState]) -> int:
        """``request.id`` modulo the number of replicas."""
        return request.id % replicas
