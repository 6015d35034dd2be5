"""The seam for variants, seen from below: objects with some methods, each of which maps a value to a value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from sim.analytic.hardware import Device
from sim.analytic.model import ModelShape
from sim.analytic.precision import Precision

__all__ = ["apply", "bound", "in_stages"]

Value = TypeVar("Value")


def apply(variants: Sequence[Any], method: str, value: Value, *context: Any) -> Value:
    """``value`` after ``variant.method(value, *context)`` of each variant in order; one without it changes nothing."""
    for variant in variants:
        rewrite = getattr(variant, method, None)
        value = value if rewrite is None else rewrite(value, *context)
    return value


def bound(variants: Sequence[Any], shape: ModelShape, precision: Precision, device: Device) -> tuple[Any, ...]:
    """Each variant as it is on one device: ``variant.bound(shape, precision, device)`` where it has that method.

    ``shape`` is what the device computes, after every variant's ``reshape`` and the cut of the layout. What comes back
    takes the place of the variant in ``resident``, ``cached`` and ``rewrite``.
    """
    return tuple(v.bound(shape, precision, device) if hasattr(v, "bound") else v for v in variants)


def in_stages(variants: Sequence[Any]) -> tuple[Any, ...]:
    """Variants by ``stage`` (1 where one has none), those of one stage in the order given.

    Fewer bits have to be known before a part of them is gathered, and both before they move to another memory.
    """
    return tuple(sorted(variants, key=lambda variant: getattr(variant, "stage", 1)))
