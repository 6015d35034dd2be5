"""The draws of one sample, addressed and never consumed; and the two ways in which a number spreads about its point.

Addresses keep two scenarios under the same draw: what both take from one device and one kind of kernel is off by the
same factor in both. The generator is that of sim/serving/luck.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from math import isfinite
from statistics import NormalDist

from sim.analytic.hardware import Ratio
from sim.serving.luck import mix

__all__ = ["FURTHEST", "Draw", "between", "factor"]

NORMAL = NormalDist()
AT_10_90 = NORMAL.inv_cdf(0.9)  # where a ratio's outer percentiles lie
AT_5_95 = NORMAL.inv_cdf(0.95)  # where an interval's ends lie: fits give the 5th and 95th percentile
FURTHEST = 2.5  # standard deviations: what a table of some thousand rows cannot tell is not made up


@dataclass(frozen=True)
class Draw:
    """Sample number ``sample`` of a scenario's ``seed``."""

    seed: int
    sample: int

    def normal(self, address: str) -> float:
        """A standard normal number, cut at FURTHEST; a pure function of seed, sample and address."""
        digest = blake2b(f"{self.seed}/{self.sample}/{address}".encode(), digest_size=8).digest()
        share = (mix(int.from_bytes(digest, "big")) + 0.5) / 2.0**64
        return min(max(NORMAL.inv_cdf(min(max(share, 1e-12), 1 - 1e-12)), -FURTHEST), FURTHEST)


def factor(z: float, ratio: Ratio, widen: float = 1.0) -> float:
    """Seconds over the point's: lognormal on either side of the median, through the outer percentiles of ``ratio``.

    ``widen``: how many times further from the median, in logarithms.
    """
    low, middle, high = ratio
    side = high if z >= 0 else low
    return float(middle * (side / middle) ** (abs(z) / AT_10_90 * widen))


def between(z: float, value: float, low: float, high: float) -> float:
    """A value whose 5th and 95th percentile are ``low`` and ``high``, and whose median is ``value``.

    Lognormal on either side where all are above 0, else normal and cut at 0. A value outside its interval (a scenario
    says another than the profile), or an infinite one, stays.
    """
    if not (low <= value <= high) or not all(map(isfinite, (value, low, high))):
        return value
    share, side = abs(z) / AT_5_95, high if z >= 0 else low
    if low > 0:
        return float(value * (side / value) ** share)
    return max(0.0, value + (side - value) * share)
