"""Options of policies, checked: one line that names key, value and what is allowed."""

from __future__ import annotations

from typing import Any

from workloads.errors import shown

__all__ = ["number", "probability", "whole"]


def whole(value: Any, key: str, low: int, high: int) -> int:
    """A whole number from ``low`` to ``high``. Raises ValueError naming ``key``."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{key}: {shown(value)} is not a whole number from {low} to {high}")
    return value


def number(value: Any, key: str, low: float, high: float) -> float:
    """A number from ``low`` to ``high``. Raises ValueError naming ``key``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{key}: {shown(value)} is not a number from {low:g} to {high:g}")
    return float(value)


def probability(value: Any, key: str) -> float:
    """A probability. Raises ValueError naming ``key``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
        raise ValueError(f"{key}: {shown(value)} is not a probability from 0 to 1")
    return float(value)
