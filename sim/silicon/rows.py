"""One line of an error table: a device, what ran on it, how far predictions are off, and what the datasheet says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

__all__ = ["Judged", "Verdict", "verdict"]


@dataclass(frozen=True)
class Judged:
    """Errors over ``n`` held-out cases, as shares: median and 90th percentile of sizes, median of signed ones.

    ``textbook``: the median error of the datasheet roofline over the same cases.
    """

    section: str
    device: str
    library: str
    what: str
    n: int
    median: float
    p90: float
    bias: float
    textbook: float


@dataclass(frozen=True)
class Verdict:
    """A quantity over its tables: the medians of their errors, the target, and the limit beyond which it fails."""

    quantity: str
    tables: int
    median: float
    p90: float
    textbook: float
    median_target: float
    p90_target: float
    median_limit: float
    p90_limit: float

    @property
    def met(self) -> bool:
        """Whether the target is reached."""
        return self.median <= self.median_target and self.p90 <= self.p90_target

    @property
    def passed(self) -> bool:
        """Whether the errors stay within the limits; NaN does not."""
        return self.median <= self.median_limit and self.p90 <= self.p90_limit


def verdict(
    quantity: str, rows: Iterable[Judged], target: tuple[float, float], limit: tuple[float, float] | None = None
) -> Verdict:
    """The verdict over ``rows``; limits are the targets where none are given."""
    found = list(rows)
    each = np.array([[r.median, r.p90, r.textbook] for r in found]) if found else np.full((1, 3), np.nan)
    median, p90, textbook = (float(v) for v in np.median(each, axis=0))
    return Verdict(quantity, len(found), median, p90, textbook, *target, *(limit or target))
