"""Structured pruning: fewer layers, heads, hidden units or a narrower model; the Sheared LLaMA shapes by name.

Xia et al. 2023 (arXiv 2310.06694): LLaMA-2-7B cut to 1.3B and 2.7B and trained on. Layers may be cut unevenly: each
kept layer then runs kernels of its own shape. Unstructured pruning, zeros scattered over the weights, saves no time and
no memory: dense kernels multiply the zeros all the same, and they are stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar

from sim.analytic.model import Attention, Layer, ModelShape
from sim.quality import LOSSLESS, UNKNOWN, Quality
from sim.variants.options import choice, per_layer, whole
from workloads.errors import shown

__all__ = ["NAMED", "Pruning"]

KEY = "variants.pruning"
NAMED: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "sheared-llama-1.3b": {"layers": 24, "d_model": 2048, "heads": 16, "ffn": 5504},
        "sheared-llama-2.7b": {"layers": 32, "d_model": 2560, "heads": 20, "ffn": 6912},
    }
)
SHEARED = "arXiv 2310.06694, table 2"
QUALITY: Mapping[str, Quality] = MappingProxyType(
    {
        "sheared-llama-1.3b": Quality(21.1, "mean score of 11 tasks 64.6 -> 51.0, LLaMA-2-7B, trained on", SHEARED),
        "sheared-llama-2.7b": Quality(12.2, "mean score of 11 tasks 64.6 -> 56.7, LLaMA-2-7B, trained on", SHEARED),
    }
)
CUTS = ("layers", "d_model", "heads", "ffn")


@dataclass(frozen=True)
class Pruning:
    """``to``: a shape of NAMED, whose values the other options override. ``layers``: how many remain, or which ones.

    ``d_model``: width of the model. ``heads``: query heads that remain, with the key/value heads of their groups;
    ``ffn``: hidden units that remain (of every expert); both one number, or a list with one for each remaining layer.
    ``unstructured``: share of zeros among the weights; changes no cost.
    """

    name: ClassVar[str] = "pruning"
    to: str | None = None
    layers: Any = None
    d_model: int | None = None
    heads: Any = None
    ffn: Any = None
    unstructured: float = 0.0

    def __post_init__(self) -> None:
        """Raise ValueError naming option and value."""
        for option in ("layers", "heads", "ffn"):
            if isinstance(getattr(self, option), list):
                object.__setattr__(self, option, tuple(getattr(self, option)))
        if self.to is not None:
            choice(f"{KEY}.to", self.to, tuple(NAMED))
        for option in CUTS:
            self._check(option, getattr(self, option))
        zeros = self.unstructured
        if isinstance(zeros, bool) or not isinstance(zeros, int | float) or not 0 <= zeros < 1:
            raise ValueError(f"{KEY}.unstructured: {shown(zeros)}: must be a share of the weights, from 0 to below 1")

    def reshape(self, shape: ModelShape) -> ModelShape:
        """What remains. Raises ValueError for more than there was, or heads that leave no whole groups."""
        if shape.encoder and shape.layers:
            raise ValueError(f"{KEY}: {shape.name} has an encoder and a decoder; pruning cuts models of one stack")
        stack = shape.layers or shape.encoder
        kept = self._kept(len(stack), shape.name)
        heads, widths = (self._spread(option, len(kept), shape.name) for option in ("heads", "ffn"))
        cut = tuple(_cut(stack[i], h, f, shape.name) for i, h, f in zip(kept, heads, widths, strict=True))
        narrow = _narrowed(shape, self.said("d_model"))
        return replace(narrow, layers=cut) if shape.layers else replace(narrow, encoder=cut)

    @property
    def quality(self) -> Quality:
        """Sheared LLaMA's for its two shapes; otherwise unknown, unless nothing is cut."""
        if all(self.said(option) is None for option in CUTS) and not self.unstructured:
            return LOSSLESS
        return QUALITY.get(self.to or "", UNKNOWN) if self == Pruning(self.to) else UNKNOWN

    def said(self, option: str) -> Any:
        """An option, or what the named shape says of it."""
        value = getattr(self, option)
        return NAMED[self.to].get(option) if value is None and self.to is not None else value

    def _check(self, option: str, value: Any) -> None:
        low = 0 if option == "layers" and isinstance(value, tuple) else 1
        values = value if isinstance(value, tuple) and option != "d_model" else (value,)
        if value is None:
            return
        checked = [whole(f"{KEY}.{option}", v, low) for v in values]
        if not checked or (low == 0 and checked != sorted(set(checked))):
            raise ValueError(f"{KEY}.{option}: {shown(list(checked))}: must be a rising list of at least one layer")

    def _kept(self, layers: int, model: str) -> tuple[int, ...]:
        """Numbers of the layers that remain; evenly spread where only their number is said."""
        said = self.said("layers")
        if said is None:
            return tuple(range(layers))
        if (said[-1] + 1 if isinstance(said, tuple) else said) > layers:
            raise ValueError(f"{KEY}.layers: {shown(said)}: {model} has {layers}")
        return said if isinstance(said, tuple) else tuple(i * layers // said for i in range(said))

    def _spread(self, option: str, layers: int, model: str) -> tuple[Any, ...]:
        return per_layer(f"{KEY}.{option}", self.said(option), layers, f"{model}, pruned,")


def _cut(layer: Layer, heads: int | None, width: int | None, model: str) -> Layer:
    attention = layer.attention if heads is None else _fewer_heads(layer.attention, heads, model)
    if width is None:
        return replace(layer, attention=attention)
    if width > layer.ffn.width:
        raise ValueError(f"{KEY}.ffn: {width}: {model} has a layer of {layer.ffn.width} hidden units")
    return replace(layer, attention=attention, ffn=replace(layer.ffn, width=width))


def _fewer_heads(block: Attention, heads: int, model: str) -> Attention:
    """Whole groups of query heads go, each with its key/value head."""
    group = block.heads // block.kv_heads
    if heads > block.heads or heads % group:
        raise ValueError(
            f"{KEY}.heads: {heads}: {model} has {block.heads} query heads, {group} to a key/value head; "
            f"a multiple of {group} up to {block.heads}"
        )
    return replace(block, heads=heads, kv_heads=heads // group)


def _narrowed(shape: ModelShape, d_model: int | None) -> ModelShape:
    if d_model is None:
        return shape
    if d_model > shape.d_model:
        raise ValueError(f"{KEY}.d_model: {d_model}: {shape.name} is {shape.d_model} wide")
    if shape.extra:
        tensors = ", ".join(tensor for tensor, _ in shape.extra)
        raise ValueError(f"{KEY}.d_model: {shape.name} has tensors of the old width beside its layers ({tensors})")
    return replace(shape, d_model=d_model)
