"""What a way of decoding costs in quality: nothing, a sourced number, or unknown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import nan

__all__ = ["LOSSLESS", "UNKNOWN", "Losses", "Quality", "losses", "quality_of"]


@dataclass(frozen=True)
class Quality:
    """``loss_percent``: of the reported metric, in percent of the baseline's (perplexity gained or accuracy dropped;
    negative: it got better); None where nobody measured it. ``what`` was measured, and by whom (``source``).
    """

    loss_percent: float | None
    what: str
    source: str


LOSSLESS = Quality(0.0, "the target's own distribution", "exact by construction")
UNKNOWN = Quality(None, "unknown", "nobody measured it")


@dataclass(frozen=True)
class Losses:
    """Everything that a way of decoding loses: each lossy part, and the sum of what is known of them.

    ``percent`` is NaN where some part is unknown. Losses are added, which nobody promises to be exact.
    """

    parts: tuple[tuple[str, Quality], ...]

    @property
    def percent(self) -> float:
        """Percent lost in all; 0 where nothing is lossy, NaN where something is unknown."""
        return sum(nan if q.loss_percent is None else q.loss_percent for _, q in self.parts) if self.parts else 0.0

    def within(self, limit: str | float) -> bool:
        """Whether a limit allows it: ``lossless``, ``any``, or percent, which nothing unknown is within."""
        if limit == "any" or not self.parts:
            return True
        return limit != "lossless" and self.percent <= float(limit)


def losses(policy: object, variants: Iterable[object], other: str = "") -> Losses:
    """Of a policy and its target's variants; ``other``: what else makes it another model, which loses what nobody
    knows. What a draft loses is not lost: lossless verification pays for it in acceptance.
    """
    found = [(repr(plugin), quality_of(plugin)) for plugin in (policy, *variants)]
    if other:
        found.append((other, UNKNOWN))
    return Losses(tuple(part for part in found if part[1] != LOSSLESS))


def quality_of(plugin: object) -> Quality:
    """What a policy or variant says of itself; one that says nothing changes no output."""
    said = getattr(plugin, "quality", LOSSLESS)
    assert isinstance(said, Quality), f"{plugin!r}.quality is not a Quality"
    return said
