"""A distilled student that keeps every other layer of its teacher, as DistilBERT does of BERT: a shape, no training.

Sanh et al. 2019 (arXiv 1910.01108): half of the layers, the same widths, no token types and no pooler. What the student
costs follows from its shape; what it knows follows from its training, which no shape says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from sim.analytic.model import ModelShape
from sim.quality import LOSSLESS, UNKNOWN, Quality
from sim.variants.options import whole

__all__ = ["Distilled"]

DROPPED = ("types", "pooler")
DISTILBERT = Quality(3.1, "GLUE score 79.5 -> 77.0, BERT-base to DistilBERT", "arXiv 1910.01108, table 1")


@dataclass(frozen=True)
class Distilled:
    """``every``: one layer of that many is kept, the first one first, in each stack; token types and pooler go."""

    name: ClassVar[str] = "distilled"
    every: int = 2

    def __post_init__(self) -> None:
        """Raise ValueError for anything but a step."""
        whole("variants.distilled.every", self.every, 1, 4096)

    def reshape(self, shape: ModelShape) -> ModelShape:
        """The student's shape; at least one layer of each stack remains."""
        if self.every == 1:
            return shape
        extra = tuple((tensor, count) for tensor, count in shape.extra if tensor not in DROPPED)
        return replace(shape, layers=shape.layers[:: self.every], encoder=shape.encoder[:: self.every], extra=extra)

    @property
    def quality(self) -> Quality:
        """DistilBERT's for half of the layers; otherwise unknown."""
        return {1: LOSSLESS, 2: DISTILBERT}.get(self.every, UNKNOWN)
