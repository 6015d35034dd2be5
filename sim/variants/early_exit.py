"""Early exit: some of the model's layers, then its own norm and head. Above all a draft that costs no memory.

A prefix of the layers is LayerSkip's draft (Elhoushi et al., arXiv 2404.16710); any subset is Draft & Verify's (Zhang
et al., arXiv 2309.08168). A prefix computes the very keys and values that the whole model would, so that both may share
one cache.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from sim.analytic.model import ModelShape
from sim.quality import UNKNOWN, Quality
from sim.variants.options import whole

__all__ = ["EarlyExit"]

KEY = "variants.early_exit.layers"


@dataclass(frozen=True)
class EarlyExit:
    """``layers``: how many of the first layers run, or a rising list of the layers that do (from 0).

    Of an encoder-decoder the decoder's layers, of an encoder its own.
    """

    name: ClassVar[str] = "early_exit"
    nested: ClassVar[bool] = True
    layers: Any = 1

    def __post_init__(self) -> None:
        """Raise ValueError for what is no number of layers and no rising list of them."""
        if isinstance(self.layers, list):
            object.__setattr__(self, "layers", tuple(self.layers))
        if not isinstance(self.layers, tuple):
            whole(KEY, self.layers, 1, 4096)
            return
        kept = [whole(KEY, layer, 0, 4095) for layer in self.layers]
        if not kept or kept != sorted(set(kept)):
            raise ValueError(f"{KEY}: {kept}: must be a rising list of at least one layer")

    def reshape(self, shape: ModelShape) -> ModelShape:
        """The model of these layers. Raises ValueError where it has fewer."""
        stack = shape.layers or shape.encoder
        kept = self.layers if isinstance(self.layers, tuple) else tuple(range(self.layers))
        if kept[-1] >= len(stack):
            raise ValueError(f"{KEY}: {kept[-1] + 1} layers: {shape.name} has {len(stack)}")
        chosen = tuple(stack[i] for i in kept)
        return replace(shape, layers=chosen) if shape.layers else replace(shape, encoder=chosen)

    @property
    def quality(self) -> Quality:
        """Unknown as a model of its own; as a draft it loses nothing, since the whole model verifies."""
        return UNKNOWN
