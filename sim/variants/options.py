"""Checks that options of variants share: each raises ValueError naming option, value and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sim.plugin import suggest
from workloads.errors import shown

__all__ = ["MOST", "choice", "per_layer", "whole"]

MOST = 1 << 20


def whole(key: str, value: Any, low: int, high: int = MOST) -> int:
    """A whole number from ``low`` to ``high``; ``key`` is the option in full, such as ``variants.pruning.d_model``."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{key}: {shown(value)}: must be a whole number from {low} to {high}")
    return value


def choice(key: str, value: Any, allowed: Sequence[str]) -> str:
    """One of ``allowed``."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{key}: {shown(value)}: must be one of {', '.join(allowed)}{suggest(str(value), allowed)}")
    return value


def per_layer(key: str, values: Any, layers: int, model: str) -> tuple[Any, ...]:
    """One value for all ``layers`` of a model, or a tuple with one for each of them."""
    if not isinstance(values, tuple):
        return (values,) * layers
    if len(values) != layers:
        raise ValueError(f"{key}: {len(values)} values: {model} has {layers} layers; give one for each, or one for all")
    return values
