"""A model of some of another's layers: the same arrays under new layer numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from sim.reference.transformer import Transformer

Array = NDArray[Any]


def kept_layers(model: Transformer, kept: Sequence[int]) -> Transformer:
    """The decoder layers ``kept``, in that order, under the numbers 0, 1, ...; weights and meter shared.

    Raises ValueError for a layer that the model does not have.
    """
    layers = model.shape.layers
    if not kept or not all(0 <= i < len(layers) for i in kept):
        raise ValueError(f"layers: {list(kept)} not allowed, {model.shape.name} has 0..{len(layers) - 1}")
    weights = {key: w for key, w in model.weights.items() if not key.startswith("layers.")}
    for new, old in enumerate(kept):
        weights |= _renumbered(model.weights, f"layers.{old}.", f"layers.{new}.")
    return replace(model, shape=replace(model.shape, layers=tuple(layers[i] for i in kept)), weights=weights)


def _renumbered(weights: Mapping[str, Array], old: str, new: str) -> dict[str, Array]:
    return {new + key.removeprefix(old): w for key, w in weights.items() if key.startswith(old)}
