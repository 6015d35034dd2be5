"""Addressed luck: the random draws of one request, looked up and never consumed.

A draw is a pure function of (seed, request, sample, purpose, round), so that it depends neither on how rounds are
grouped nor on other requests, and two policies or cluster sizes meet the same luck. The generator is SplitMix64
(Steele, Lea and Flood, OOPSLA 2014, https://doi.org/10.1145/2714064.2660195): a counter through a 64-bit finaliser,
started at a key that the same finaliser makes of the address.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

GOLDEN = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1
_MIX1, _MIX2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_U = np.uint64
_SHIFTS = _U(30), _U(27), _U(31), _U(11)
_FACTORS = _U(_MIX1), _U(_MIX2)

NEIGHBOURS, ROUNDS, KEPT_TILES = 64, 128, 64
Build = Callable[..., Any]  # from as many float64 arrays [NEIGHBOURS, ROUNDS] as there are purposes
PURPOSES = {
    "acceptance": 1, "match": 2, "draft_length": 3, "think": 4, "router": 5, "offset": 6, "fault": 7, "repair": 8,
}  # fmt: skip


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


class Luck:
    """All the luck of a run; ``of`` addresses one sample of one request.

    The first rounds of neighbouring requests are drawn together and kept until other neighbours are asked for: the
    same numbers as one by one, at a tenth of the cost.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.key = mix(seed + GOLDEN)
        self._tiles: dict[tuple[Any, ...], Any] = {}

    def of(self, request: int, sample: int = 0, prompt: int = 0) -> Draws:
        """The draws of one sample of a request with so many prompt tokens."""
        return Draws(self, request, sample, prompt)

    def tile(self, block: int, sample: int, purpose: str) -> NDArray[np.float64]:
        """The first ``ROUNDS`` draws of ``NEIGHBOURS`` requests; shape [NEIGHBOURS, ROUNDS]."""
        keys = [self.stream(block * NEIGHBOURS + i, sample, purpose) for i in range(NEIGHBOURS)]
        return _uniforms(np.array(keys, dtype=np.uint64)[:, None], _COUNTER(0, ROUNDS))

    def kept_tile(self, address: tuple[int, int, str], build: Build | None, beside: tuple[str, ...] = ()) -> Any:
        """The tile at (block, sample, purpose), or what ``build`` makes of it, and of those of other purposes
        ``beside`` it; the last few are kept.
        """
        key = (*address, build, *beside)
        tile = self._tiles.get(key)
        if tile is None:
            if len(self._tiles) >= KEPT_TILES:
                del self._tiles[next(iter(self._tiles))]
            drawn = [self.tile(*address[:2], purpose) for purpose in (address[2], *beside)]
            tile = self._tiles[key] = drawn[0] if build is None else build(*drawn)
            for array in tile if isinstance(tile, tuple) else (tile,):
                array.setflags(write=False)
        return tile

    def stream(self, request: int, sample: int, purpose: str) -> int:
        """The key at which the counter of one address starts."""
        return mix(mix(mix(self.key ^ request) + sample * GOLDEN) + PURPOSES[purpose] * GOLDEN)


class Draws(NamedTuple):
    """Uniforms of one sample, addressed by purpose and by the sample's own decode round.

    ``prompt``: tokens of its prompt, for policies whose luck depends on the context; no draw does.
    """

    luck: Luck
    request: int
    sample: int
    prompt: int = 0

    def uniforms(self, purpose: str, start: int, count: int) -> NDArray[np.float64]:
        """``count`` draws in [0, 1) for rounds ``start, start + 1, ...``; shape [count], not to be written to."""
        if start + count <= ROUNDS:
            tile: NDArray[np.float64] = self.luck.kept_tile(self._address(purpose), None)
            return tile[self.request % NEIGHBOURS, start : start + count]
        return _uniforms(_U(self.luck.stream(self.request, self.sample, purpose)), _COUNTER(start, count))

    def from_tile(self, purpose: str, build: Build, *beside: str) -> tuple[Any, int, int]:
        """What ``build`` makes of a tile of draws, shape [NEIGHBOURS, ROUNDS], of this purpose and of each of those
        ``beside`` it; this request's row; ROUNDS.

        For policies whose futures are elementwise or running functions of their draws: done once for neighbours.
        """
        return self.luck.kept_tile(self._address(purpose), build, beside), self.request % NEIGHBOURS, ROUNDS

    def _address(self, purpose: str) -> tuple[int, int, str]:
        return self.request // NEIGHBOURS, self.sample, purpose


def _uniforms(key: Any, counter: NDArray[np.uint64]) -> NDArray[np.float64]:
    z: NDArray[np.uint64] = counter + key
    z ^= z >> _SHIFTS[0]
    z *= _FACTORS[0]
    z ^= z >> _SHIFTS[1]
    z *= _FACTORS[1]
    z ^= z >> _SHIFTS[2]
    z >>= _SHIFTS[3]
    drawn: NDArray[np.float64] = np.multiply(z, 2.0**-53)
    return drawn
