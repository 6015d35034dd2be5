"""Weighted: a replica with probability weight / sum of weights, the weights being those of the groups (``weight``)."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

from sim.request import Request
from sim.routers import View


@dataclass(frozen=True)
class Weighted:
    """No options; weights come from ``fleet.groups``, and every replica of a group has the group's."""

    name: ClassVar[str] = "weighted"
    pulls: ClassVar[bool] = False

    def pick(self, request: Request, view: View) -> int:
        """Where the draw falls among the running sums of the weights."""
        upto = list(accumulate(view.facts(i).weight for i in range(view.count)))
        return min(bisect_right(upto, float(view.draws(1)[0]) * upto[-1]), view.count - 1)
