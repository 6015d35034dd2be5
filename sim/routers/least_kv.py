"""Least KV: the replica whose KV memory is the least full, those that wait in its line counted after the bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sim.request import Request
from sim.routers import View, first_of_least


@dataclass(frozen=True)
class LeastKv:
    """No options. Among replicas with the same line, the least share of KV memory; a shorter line goes first."""

    name: ClassVar[str] = "least_kv"
    pulls: ClassVar[bool] = False

    def pick(self, request: Request, view: View) -> int:
        """Least of (requests in its line, share of KV memory in use): whoever queues has no memory left."""
        states = [view.state(i) for i in range(view.count)]
        shortest = min(state.waiting for state in states)
        shares = [s.kv_bytes / max(s.kv_capacity_bytes, 1) if s.waiting == shortest else float("inf") for s in states]
        return first_of_least(shares, request, view.count)
