"""Cost aware: the cheapest group that still has room; dearer ones only take what overflows.

Groups by rent of a replica (``usd_per_hour``), the cheapest first. A group has room while one of its replicas has fewer
outstanding requests than ``limit`` of its seats. Where none has, the least loaded replica by share of its seats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sim.request import Request
from sim.routers import View, at_least, first_of_least


@dataclass(frozen=True)
class CostAware:
    """``limit``: share of a replica's seats up to which it is filled before a dearer group is used."""

    limit: float = 0.5
    name: ClassVar[str] = "cost_aware"
    pulls: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the option. Raises ValueError."""
        at_least(self.name, "limit", self.limit, 0)

    def pick(self, request: Request, view: View) -> int:
        """The least loaded of the cheapest group that has room."""
        loads = [view.outstanding(i) / view.facts(i).seats for i in range(view.count)]
        roomy = [i for i, load in enumerate(loads) if load < self.limit]
        rents = [_rent(view, i) for i in roomy]
        if rents:
            cheapest = min(rents)
            open_ = {i for i, rent in zip(roomy, rents, strict=True) if rent == cheapest}
            loads = [load if i in open_ else float("inf") for i, load in enumerate(loads)]
        return first_of_least(loads, request, view.count)


def _rent(view: View, i: int) -> float:
    rent = view.facts(i).usd_per_hour
    return float("inf") if rent is None else rent
