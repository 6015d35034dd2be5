"""The twin of ``sim/variants/matformer.py``: nested slices of real weights, one size a layer."""

from __future__ import annotations

from collections.abc import Sequence

from sim.reference.transformer import Transformer

SHARES = {"S": 8, "M": 4, "L": 2, "XL": 1}
"""Hidden units of XL to one of each size (arXiv 2310.07707, section 3)."""


def twin(model: Transformer, size: str | int | Sequence[str | int]) -> Transformer:
    """The slice of one size, or of one for each layer; weights are views, the meter is shared.

    Raises ValueError for widths that the model does not have.
    """
    layers = model.shape.layers
    sizes = [size] * len(layers) if isinstance(size, str | int) else list(size)
    wide = [layer.ffn.width for layer in layers]
    return model.sliced([one if isinstance(one, int) else f // SHARES[one] for one, f in zip(sizes, wide, strict=True)])
