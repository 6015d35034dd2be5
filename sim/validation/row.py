"""One line of the table that ``decodesim validate`` prints."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite


@dataclass(frozen=True)
class Row:
    """A quantity as simulated and as measured; ``error`` is relative, ``threshold`` the most it may be on either side.

    ``comparison``: counts, tokens, distribution or seconds.
    """

    comparison: str
    quantity: str
    simulated: float
    measured: float
    error: float
    threshold: float

    @property
    def subject(self) -> str:
        """The policy or variant that the row is about, empty for seconds: what stands before the colon."""
        name, colon, _ = self.quantity.partition(": ")
        return name if colon else ""

    @property
    def passed(self) -> bool:
        """Whether the error is a number within the threshold."""
        return isfinite(self.error) and abs(self.error) <= self.threshold
