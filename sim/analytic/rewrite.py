"""The seam for variants, seen from below: objects with some of four methods, each of which maps a value to a value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

__all__ = ["apply"]

Value = TypeVar("Value")


def apply(variants: Sequence[Any], method: str, value: Value, *context: Any) -> Value:
    """``value`` after ``variant.method(value, *context)`` of each variant in order; one without it changes nothing."""
    for variant in variants:
        rewrite = getattr(variant, method, None)
        value = value if rewrite is None else rewrite(value, *context)
    return value
