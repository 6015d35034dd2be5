"""The twin of ``sim/variants/distilled.py``: a student before its training, every other layer of its teacher."""

from __future__ import annotations

from sim.reference.transformer import Transformer
from sim.reference.variants.layer_choice import kept_layers


def twin(model: Transformer, every: int) -> Transformer:
    """Layers 0, ``every``, 2 ``every``, ... of a decoder; weights and meter shared."""
    return kept_layers(model, range(0, len(model.shape.layers), every))
