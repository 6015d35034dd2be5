"""Random draws addressed by (seed, purpose, stream): two purposes never share luck, nor do two parts of a mix."""

from __future__ import annotations

import numpy as np

BLOCK_ROWS = 8192
"""Rows are always drawn in blocks of this many and cut afterwards, so no result depends on a chunk size."""


def draws(seed: int, purpose: str, stream: int = 0) -> np.random.Generator:
    """The generator of one purpose (a word of at most 7 ASCII letters) of one stream (0 .. 255).

    Counter-based (Philox4x64, Salmon et al., SC 2011) with the key (seed, purpose). Raises ValueError for a seed
    outside 0 .. 2**64-1.
    """
    word = purpose.encode("ascii")
    assert len(word) <= 7 and 0 <= stream < 256, (purpose, stream)
    code = int.from_bytes(word.ljust(7), "big") | stream << 56
    return np.random.Generator(np.random.Philox(key=np.array([_whole(seed), code], np.uint64)))


def _whole(seed: object) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= int(seed) < 2**64:
        raise ValueError(f"seed: {seed!r}: a whole number from 0 to 2**64-1")
    return int(seed)
