"""Least outstanding: the replica with the fewest requests sent and not answered ("join the shortest queue").

Haight 1958, Kingman 1961 (two exponential servers); nginx and envoy call it least_conn and least_request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sim.request import Request
from sim.routers import View, first_of_least


@dataclass(frozen=True)
class LeastOutstanding:
    """``by_weight``: requests are divided by the weight of the replica's group first."""

    by_weight: bool = False
    name: ClassVar[str] = "least_outstanding"
    pulls: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the option. Raises ValueError."""
        if not isinstance(self.by_weight, bool):
            raise ValueError(f"router.by_weight: {self.by_weight!r}: must be true or false")

    def pick(self, request: Request, view: View) -> int:
        """The least; ties from the request's own place on."""
        if self.by_weight:
            keys: list[float] = [view.outstanding(i) / view.facts(i).weight for i in range(view.count)]
        else:
            keys = [view.outstanding(i) for i in range(view.count)]
        return first_of_least(keys, request, view.count)
