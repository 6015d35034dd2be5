"""Addressed luck: the random draws of one request, looked up and never consumed.

A draw is a pure function of (seed, request, sample, purpose, round), so that it depends neither on how rounds are
grouped nor on other requests, and two policies or cluster sizes meet the same luck. The generator is SplitMix64
(Steele, Lea and Flood, OOPSLA 2014, https://doi.org/10.1145/2714064.2660195): a counter through a 64-bit finaliser,
started at a key that the same finaliser makes of the address.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

GOLDEN = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1
_MIX1, _MIX2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_U = np.uint64
_SHIFTS = _U(30), _U(27), _U(31), _U(11)
_FACTORS = _U(_MIX1), _U(_MIX2)

PURPOSES = {"acceptance": 1, "match": 2, "draft_length": 3, "think": 4, "router": 5}


def mix(z: int) -> int:
    """SplitMix64's finaliser on a Python integer; a bijection of 64-bit words."""
    z &= MASK
    z = ((z ^ (z >> 30)) * _MIX1) & MASK
    z = ((z ^ (z >> 27)) * _MIX2) & MASK
    return z ^ (z >> 31)


class _Counter:
    """``GOLDEN * (1, 2, 3, ...)`` as uint64, grown on demand; slices of it are shared by all requests."""

    def __init__(self) -> None:
        self.words = np.arange(1, 4097, dtype=np.uint64) * _U(GOLDEN)

    def __call__(self, start: int, count: int) -> NDArray[np.uint64]:
        if start + count > len(self.words):
            self.words = np.arange(1, 2 * (start + count) + 1, dtype=np.uint64) * _U(GOLDEN)
        return self.words[start : start + count]


_COUNTER = _Counter()


@dataclass(frozen=True)
class Luck:
    """All the luck of a run; ``of`` addresses one sample of one request."""

    seed: int

    @cached_property
    def _key(self) -> int:
        return mix(self.seed + GOLDEN)

    def of(self, request: int, sample: int = 0) -> Draws:
        """The draws of one sample of a request."""
        return Draws(self._key, request, sample)


class Draws(NamedTuple):
    """Uniforms of one sample, addressed by purpose and by the sample's own decode round."""

    seed_key: int
    request: int
    sample: int

    def uniforms(self, purpose: str, start: int, count: int) -> NDArray[np.float64]:
        """``count`` draws in [0, 1) for rounds ``start, start + 1, ...``; shape [count]."""
        key = mix(mix(self.seed_key ^ self.request) + self.sample * GOLDEN)
        key = mix(key + PURPOSES[purpose] * GOLDEN)
        z = _COUNTER(start, count) + _U(key)
        z ^= z >> _SHIFTS[0]
        z *= _FACTORS[0]
        z ^= z >> _SHIFTS[1]
        z *= _FACTORS[1]
        z ^= z >> _SHIFTS[2]
        z >>= _SHIFTS[3]
        return z * 2.0**-53
