"""A published number with ours beside it: error, and whether the row holds."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from sim.published.table import Published

__all__ = ["Held"]


@dataclass(frozen=True)
class Held:
    """``ours``: the simulator's number, None for data; ``limit``: what a direction is measured against."""

    row: Published
    ours: float | None
    limit: float | None = None

    @property
    def error(self) -> float | None:
        """Ours over theirs less one; None where one of them is missing, or only a direction is claimed."""
        theirs = self.row.value
        if self.ours is None or not theirs or self.row.label == "direction only":
            return None
        return self.ours / theirs - 1.0

    @property
    def passed(self) -> bool:
        """Whether the row is as its label claims; data claims nothing."""
        if self.row.label == "data":
            return True
        if self.ours is None or not isfinite(self.ours):
            return False
        if self.row.label == "direction only":
            assert self.limit is not None
            side = self.ours - self.limit
            return side > 0 if self.row.tolerance.startswith("above ") else side < 0
        return self._within(self.ours)

    def _within(self, ours: float) -> bool:
        theirs, said = self.row.value, self.row.tolerance
        assert theirs is not None, f"{self.row.id} prints no number to hold ours against"
        if self.row.label == "known failure":
            low, high = (float(part.rstrip("%")) / 100 for part in said.split(".."))
            return low <= abs(ours / theirs - 1.0) <= high
        if said.endswith("%"):
            return abs(ours - theirs) <= float(said.rstrip("%")) / 100 * abs(theirs)
        return abs(ours - theirs) <= float(said)

    @property
    def verdict(self) -> str:
        """In a word or two."""
        if self.row.label == "data":
            return ""
        if not self.passed:
            return "FAILED"
        return "fails, as known" if self.row.label == "known failure" else "ok"
