"""Power of two choices: of ``d`` replicas drawn at random, the one with the fewest outstanding requests.

Vvedenskaya, Dobrushin and Karpelevich 1996; Mitzenmacher 2001 (IEEE TPDS 12(10)): with many servers at load rho the
share that has at least k requests falls as rho^((d^k - 1)/(d - 1)) instead of rho^k.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sim.request import Request
from sim.routers import View, at_least


@dataclass(frozen=True)
class PowerOfTwo:
    """``choices``: how many are looked at, all different."""

    choices: int = 2
    name: ClassVar[str] = "power_of_two"
    pulls: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the option. Raises ValueError."""
        at_least(self.name, "choices", self.choices, 1, whole=True)

    def pick(self, request: Request, view: View) -> int:
        """The first drawn of those with the fewest."""
        return min(self._drawn(view), key=view.outstanding)

    def _drawn(self, view: View) -> list[int]:
        """The beginning of a shuffle (Fisher and Yates): draws without putting back."""
        count = view.count
        few = min(self.choices, count)
        moved: dict[int, int] = {}
        drawn = []
        for k, luck in enumerate(view.draws(few)):
            j = k + int(luck * (count - k))
            drawn.append(moved.get(j, j))
            moved[j] = moved.get(k, k)
        return drawn
