"""Rotary position embedding (RoFormer, arXiv 2104.09864) and the rules that stretch it to longer contexts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Rule = Literal["default", "linear", "dynamic", "yarn", "llama3"]
RULES: tuple[str, ...] = ("default", "linear", "dynamic", "yarn", "llama3")


@dataclass(frozen=True)
class Rope:
    """Frequencies of one rotary embedding over ``dim`` numbers of a head (a head's halves are rotated together).

    ``factor`` and the fields after it belong to the scaling ``rule``: ``linear`` (positions over factor), ``dynamic``
    (NTK: the base grows once a sequence passes ``original_context``), ``yarn`` (arXiv 2309.00071, section 3) and
    ``llama3`` (wavelengths beyond the original context slowed by factor, a ramp between).
    """

    dim: int
    theta: float = 10_000.0
    rule: Rule = "default"
    factor: float = 1.0
    original_context: int = 8192
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True

    def frequencies(self, length: int = 0) -> Array:
        """Radians a position, [dim / 2]; ``length`` (tokens so far) matters to the dynamic rule only."""
        if self.rule == "dynamic":
            return _plain(self.dim, self._stretched_theta(length))
        return self._fixed

    def angles(self, positions: Array, length: int = 0) -> Array:
        """Angle of every pair, [..., dim / 2], float64, for integer ``positions`` [...]."""
        out: Array = np.multiply.outer(positions, self.frequencies(length))
        return out

    def _stretched_theta(self, length: int) -> float:
        reach = max(length, self.original_context)
        stretch = self.factor * reach / self.original_context - (self.factor - 1)
        return float(self.theta * stretch ** (self.dim / (self.dim - 2)))

    @cached_property
    def _fixed(self) -> Array:
        plain = _plain(self.dim, self.theta)
        if self.rule == "linear":
            return plain / self.factor
        if self.rule == "llama3":
            return self._llama3(plain)
        return self._yarn(plain) if self.rule == "yarn" else plain

    def _llama3(self, plain: Array) -> Array:
        turns = self.original_context * plain / (2 * math.pi)
        keep = np.clip((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0, 1)
        out: Array = keep * plain + (1 - keep) * plain / self.factor
        return out

    def _yarn(self, plain: Array) -> Array:
        low, high = self._pair_with(self.beta_fast), self._pair_with(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.dim - 1)
        width = high - low if high != low else 0.001
        slowed = np.clip((np.arange(self.dim // 2) - low) / width, 0, 1)
        out: Array = slowed * plain / self.factor + (1 - slowed) * plain
        return out

    def _pair_with(self, turns: float) -> float:
        """Index of the pair that makes ``turns`` full turns within the original context."""
        reach = math.log(self.original_context / (turns * 2 * math.pi))
        return self.dim * reach / (2 * math.log(self.theta))


def yarn_attention_factor(factor: float) -> float:
    """YaRN's factor on queries and keys, ``0.1 ln(factor) + 1`` (arXiv 2309.00071, section 3.4)."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate heads: ``x`` [tokens, heads, dim], ``cos`` and ``sin`` [tokens, 1, dim / 2] -> [tokens, heads, dim]."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    out = np.empty_like(x)
    np.subtract(a * cos, b * sin, out=out[..., :half])
    np.add(b * cos, a * sin, out=out[..., half:])
    return out


def _plain(dim: int, theta: float) -> Array:
    out: Array = theta ** (-np.arange(0, dim, 2) / dim)
    return out
