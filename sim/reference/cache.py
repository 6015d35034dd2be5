"""The KV cache: keys (rotated already) and values of every layer and sequence, padded to one capacity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sim.analytic.model import ModelShape

Array = NDArray[Any]


class KVCache:
    """Keys and values of ``sequences`` sequences.

    ``keys[layer]``: [sequences, kv_heads, capacity, head_dim], ``values[layer]`` likewise; ``lengths`` [sequences]
    counts the tokens that are valid. ``bases`` [sequences]: the length before the last pass, which
    :meth:`keep` counts from. ``cross[sequence]``: per layer (k, v) of the encoder's tokens. A window does not evict:
    what it hides is kept and neither read nor counted.
    """

    def __init__(self, shape: ModelShape, sequences: int, dtype: DTypeLike = np.float32, capacity: int = 64) -> None:
        if sequences < 1:
            raise ValueError(f"sequences: {sequences} is not allowed, a cache holds at least 1")
        kinds = [layer.attention for layer in shape.layers]
        self.keys = [np.zeros((sequences, a.kv_heads, capacity, a.head_dim), dtype) for a in kinds]
        self.values = [np.zeros((sequences, a.kv_heads, capacity, a.value_dim), dtype) for a in kinds]
        self.lengths: NDArray[np.int64] = np.zeros(sequences, np.int64)
        self.bases: NDArray[np.int64] = np.zeros(sequences, np.int64)
        self.cross: list[list[tuple[Array, Array]]] = [[] for _ in range(sequences)]

    @property
    def sequences(self) -> int:
        """How many sequences the cache holds."""
        return len(self.lengths)

    @property
    def capacity(self) -> int:
        """Tokens that fit before the arrays grow."""
        return int(self.keys[0].shape[2]) if self.keys else 0

    def reserve(self, length: int) -> None:
        """Grow (by doubling) until ``length`` tokens fit."""
        grown = max(self.capacity, 1)
        while grown < length:
            grown *= 2
        if grown > self.capacity:
            self.keys = [_grown(k, grown) for k in self.keys]
            self.values = [_grown(v, grown) for v in self.values]

    def write(self, layer: int, sequence: int, start: int, k: Array, v: Array) -> None:
        """Store ``k`` [n, kv_heads, head_dim] and ``v`` at slots start..start+n-1; lengths stay (see `commit`)."""
        stop = start + k.shape[0]
        self.reserve(stop)
        self.keys[layer][sequence, :, start:stop] = k.swapaxes(0, 1)
        self.values[layer][sequence, :, start:stop] = v.swapaxes(0, 1)

    def commit(self, sequences: Sequence[int] | NDArray[np.int64], counts: Sequence[int] | NDArray[np.int64]) -> None:
        """Make the ``counts`` tokens written past the lengths of ``sequences`` valid."""
        index = np.asarray(sequences)
        self.bases[index] = self.lengths[index]
        self.lengths[index] += np.asarray(counts)

    def truncate(self, sequence: int, length: int) -> None:
        """Roll back to the first ``length`` tokens (a rejected draft)."""
        if not 0 <= length <= self.lengths[sequence]:
            raise ValueError(f"length: {length} is not allowed, sequence {sequence} holds {self.lengths[sequence]}")
        self.lengths[sequence] = length
        self.bases[sequence] = min(length, int(self.bases[sequence]))

    def keep(self, sequence: int, indices: Sequence[int]) -> None:
        """Of the tokens of the last pass keep ``indices`` (counted within that pass), moved together, in order.

        For a tree: the accepted branch from its root on, whose depths are 0, 1, 2 ..., so that positions stay true.
        """
        base = int(self.bases[sequence])
        fresh = int(self.lengths[sequence]) - base
        if any(not 0 <= i < fresh for i in indices):
            raise ValueError(f"indices: {list(indices)} not allowed, the last pass of sequence {sequence} had {fresh}")
        source = base + np.asarray(indices, np.int64)
        for array in (*self.keys, *self.values):
            array[sequence, :, base : base + len(indices)] = array[sequence][:, source]
        self.lengths[sequence] = base + len(indices)

    def fork(self, sequence: int, copies: int = 1) -> list[int]:
        """Append ``copies`` copies of a sequence (several samples of one prompt); returns their numbers."""
        first = self.sequences
        self.keys = [_repeated(k, sequence, copies) for k in self.keys]
        self.values = [_repeated(v, sequence, copies) for v in self.values]
        self.lengths = _repeated(self.lengths, sequence, copies)
        self.bases = _repeated(self.bases, sequence, copies)
        self.cross += [list(self.cross[sequence]) for _ in range(copies)]
        return list(range(first, first + copies))

    def copy(self) -> KVCache:
        """A cache of its own with the same content."""
        twin = object.__new__(KVCache)
        twin.keys = [k.copy() for k in self.keys]
        twin.values = [v.copy() for v in self.values]
        twin.lengths, twin.bases = self.lengths.copy(), self.bases.copy()
        twin.cross = [list(pairs) for pairs in self.cross]
        return twin


def _grown(array: Array, capacity: int) -> Array:
    out = np.zeros((*array.shape[:2], capacity, array.shape[3]), array.dtype)
    out[:, :, : array.shape[2]] = array
    return out


def _repeated(array: Array, row: int, copies: int) -> Array:
    return np.concatenate([array, np.repeat(array[row : row + 1], copies, axis=0)])
