"""Random: every replica with the same probability, whatever it has to do.

With Poisson arrivals each replica is a queue of its own with Poisson arrivals (M/G/1 at the same load).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sim.request import Request
from sim.routers import View


@dataclass(frozen=True)
class Random:
    """No options; the draw belongs to the request."""

    name: ClassVar[str] = "random"
    pulls: ClassVar[bool] = False

    def pick(self, request: Request, view: View) -> int:
        """The draw times the number of replicas, rounded down."""
        return int(view.draws(1)[0] * view.count)
