"""Round robin: request number i goes to replica i modulo their number, so that each gets every c-th request.

With Poisson arrivals each replica is a queue of its own with Erlang-c gaps between arrivals (E_c/G/1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sim.request import Request
from sim.routers import View


@dataclass(frozen=True)
class RoundRobin:
    """No options, no state: the request's own number decides."""

    name: ClassVar[str] = "round_robin"
    pulls: ClassVar[bool] = False

    def pick(self, request: Request, view: View) -> int:
        """``request.id`` modulo the number of replicas."""
        return request.id % view.count
