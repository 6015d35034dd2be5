"""Which layer of a model an op belongs to: kernels carry the place of their layer among the distinct ones."""

from __future__ import annotations

import re
from typing import Any

from sim.analytic.model import Layer, ModelShape
from sim.analytic.ops import Op
from sim.analytic.work import Work

__all__ = ["half_of", "layer_of", "tag_of"]

TAG = re.compile(r"(dec|enc)(\d+)/")


def tag_of(op: Op) -> str:
    """The part of the kernel's name that all ops of its layer share, such as ``dec0``; "" outside the layers."""
    found = TAG.match(op.kernel)
    return found[0][:-1] if found else ""


def layer_of(op: Op, shape: ModelShape) -> Layer | None:
    """The layer of ``shape`` that an op was written for (``sim.analytic.ops`` folds equal ones); None outside them."""
    found = TAG.match(op.kernel)
    if found is None:
        return None
    stack = shape.layers if found[1] == "dec" else shape.encoder
    return list(dict.fromkeys(stack))[int(found[2])]


def half_of(op: Op, work: Work) -> tuple[str, int, Any, Any]:
    """Of attention in one half of a pass: which half, the kind of attention, its pairs and its cached tokens read."""
    assert not isinstance(op.driver, str), f"{op.name} belongs to no half"
    half, kind = op.driver
    return half, kind, getattr(work, f"{half}_pairs")[kind], getattr(work, f"{half}_reads")[kind]
