"""The twin of ``sim/variants/early_exit.py``: the model stops after some of its layers, or runs some of them."""

from __future__ import annotations

from collections.abc import Sequence

from sim.reference.transformer import Transformer
from sim.reference.variants.layer_choice import kept_layers


def twin(model: Transformer, layers: int | Sequence[int]) -> Transformer:
    """The first ``layers`` layers, or those listed; weights and meter shared. Raises ValueError as `kept_layers`."""
    return model.early_exit(layers) if isinstance(layers, int) else kept_layers(model, layers)
