"""MatFormer: the first hidden units of every feed-forward block are a smaller model of their own, nested in the whole.

Devvrit et al. (arXiv 2310.07707): S, M, L and XL use an eighth, a quarter, half and all of the hidden units; attention,
embeddings and norms are shared by all. One size for each layer is Mix'n'Match. Keys and values have the same shape at
every size, so that a slice that drafts may use the cache of the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar

from sim.analytic.model import Layer, ModelShape
from sim.quality import LOSSLESS, UNKNOWN, Quality
from sim.variants.options import choice, per_layer, whole

__all__ = ["DIVISORS", "Matformer", "width_of"]

KEY = "variants.matformer.size"
DIVISORS: Mapping[str, int] = MappingProxyType({"S": 8, "M": 4, "L": 2, "XL": 1})
"""What the hidden width is divided by at each size."""


@dataclass(frozen=True)
class Matformer:
    """``size``: S, M, L, XL or a number of hidden units; or a list of them, one a layer (encoder layers first).

    Weights of a slice are the whole model's own: deployed alone it holds what it reads; drafting for the whole model
    it adds nothing to memory.
    """

    name: ClassVar[str] = "matformer"
    nested: ClassVar[bool] = True
    clashes: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"moe": "nested widths are those of dense feed-forward blocks, not of experts"}
    )
    size: Any = "S"

    def __post_init__(self) -> None:
        """Raise ValueError for an unknown size."""
        if isinstance(self.size, list):
            object.__setattr__(self, "size", tuple(self.size))
        sizes = self.size if isinstance(self.size, tuple) else (self.size,)
        if not sizes:
            raise ValueError(f"{KEY}: []: must have a size for each layer")
        for size in sizes:
            _ = choice(KEY, size, tuple(DIVISORS)) if not _is_count(size) else whole(KEY, size, 1)

    def reshape(self, shape: ModelShape) -> ModelShape:
        """The slice. Raises ValueError for experts, widths that S, M, L do not divide, and lists of other lengths."""
        stack = (*shape.encoder, *shape.layers)
        sizes = per_layer(KEY, self.size, len(stack), shape.name)
        sliced = tuple(_sliced(layer, size, shape.name) for layer, size in zip(stack, sizes, strict=True))
        split = len(shape.encoder)
        return replace(shape, encoder=sliced[:split], layers=sliced[split:])

    @property
    def quality(self) -> Quality:
        """Nothing is lost at XL; what a slice loses depends on the training: nobody published it for all models."""
        sizes = self.size if isinstance(self.size, tuple) else (self.size,)
        return LOSSLESS if set(sizes) == {"XL"} else UNKNOWN


def width_of(size: str | int, width: int, model: str) -> int:
    """Hidden units of a size in a block of ``width``. Raises ValueError where they are no whole number, or too many."""
    if isinstance(size, str):
        if width % DIVISORS[size]:
            raise ValueError(
                f"{KEY}: {size} is 1/{DIVISORS[size]} of {width} hidden units of {model}: not a whole number"
            )
        return width // DIVISORS[size]
    if size > width:
        raise ValueError(f"{KEY}: {size} hidden units: {model} has a layer of {width}; at most that many")
    return size


def _is_count(size: Any) -> bool:
    return isinstance(size, int | float) and not isinstance(size, bool)


def _sliced(layer: Layer, size: str | int, model: str) -> Layer:
    if layer.ffn.experts:
        raise ValueError(f"{KEY}: {model} has experts; nested widths are those of dense feed-forward blocks")
    return replace(layer, ffn=replace(layer.ffn, width=width_of(size, layer.ffn.width, model)))
