"""Ternary matrices on disk: two bits a weight, four weights a byte (NumPy alone).

Layout of Hugging Face's BitNet checkpoints: the rows are cut into four equal blocks, and byte [r, c] holds row r of
block i in bits 2i and 2i+1, as value + 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WEIGHTS_A_BYTE = 4


def pack_ternary(values: NDArray[np.int8]) -> NDArray[np.uint8]:
    """[4n, m] of -1, 0, 1 -> [n, m] bytes; ValueError for other values or row counts."""
    if values.ndim != 2 or values.shape[0] % WEIGHTS_A_BYTE:
        raise ValueError(f"ternary matrix of shape {values.shape}: rows must be a multiple of {WEIGHTS_A_BYTE}")
    if not np.isin(values, (-1, 0, 1)).all():
        raise ValueError("ternary matrix: allowed values are -1, 0 and 1")
    blocks = (values + 1).astype(np.uint8).reshape(WEIGHTS_A_BYTE, -1, values.shape[1])
    return blocks[0] | blocks[1] << 2 | blocks[2] << 4 | blocks[3] << 6


def unpack_ternary(packed: NDArray[np.uint8]) -> NDArray[np.int8]:
    """[n, m] bytes -> [4n, m] of -1, 0, 1; ValueError where a two-bit code is 3."""
    codes = np.concatenate([packed >> shift & 3 for shift in (0, 2, 4, 6)])
    if (codes == 3).any():
        raise ValueError("packed ternary matrix: two-bit code 3 found; allowed are 0, 1 and 2")
    return codes.astype(np.int8) - np.int8(1)
