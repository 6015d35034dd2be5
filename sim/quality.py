"""What a way of decoding costs in quality: nothing, a sourced number, or unknown."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LOSSLESS", "UNKNOWN", "Quality", "quality_of"]


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


def quality_of(plugin: object) -> Quality:
    """What a policy or variant says of itself; one that says nothing changes no output."""
    said = getattr(plugin, "quality", LOSSLESS)
    assert isinstance(said, Quality), f"{plugin!r}.quality is not a Quality"
    return said
