"""The meter: every product and every read of memory passes here and is counted under its op name.

Names and conventions are those of docs/conventions.md; bytes follow from the arrays really used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Meter:
    """Counts of work by op name, summed over everything run since the last :meth:`reset`.

    ``flops``: live work; ``masked_flops``: work really multiplied whose result a mask threw away; ``bytes_weights``,
    ``bytes_kv`` and ``bytes_activations``: bytes read plus written. All are ``Counter`` objects of integers.
    """

    def __init__(self) -> None:
        self._prefix = ""
        self.reset()

    def reset(self) -> None:
        """Forget all counts (the prefix in force stays)."""
        self.flops: Counter[str] = Counter()
        self.masked_flops: Counter[str] = Counter()
        self.bytes_weights: Counter[str] = Counter()
        self.bytes_kv: Counter[str] = Counter()
        self.bytes_activations: Counter[str] = Counter()

    @contextmanager
    def prefix(self, text: str) -> Iterator[Meter]:
        """Within the block every op name starts with ``text`` (``"draft."``, ``"encoder."``); blocks nest."""
        before = self._prefix
        self._prefix = before + text
        try:
            yield self
        finally:
            self._prefix = before

    def add(
        self, name: str, *, flops: int = 0, masked: int = 0, weights: int = 0, kv: int = 0, activations: int = 0
    ) -> None:
        """Count work that is not a matrix product. FLOPs (live and masked), then bytes; zeros leave no entry."""
        key = self._prefix + name
        for counter, amount in (
            (self.flops, flops),
            (self.masked_flops, masked),
            (self.bytes_weights, weights),
            (self.bytes_kv, kv),
            (self.bytes_activations, activations),
        ):
            if amount:
                counter[key] += int(amount)

    def linear(self, name: str, x: Array, w: Array, bias: Array | None = None, *, exact: bool = False) -> Array:
        """A weight product: ``[m, in] @ [in, out] -> [m, out]``, plus the bias.

        Weights and bias are read once, ``x`` is read and the result written. ``exact`` computes row by row.
        """
        out = rowwise(x, w) if exact else x @ w
        if bias is not None:
            out += bias
        read = w.nbytes + (0 if bias is None else bias.nbytes)
        self.add(name, flops=2 * out.size * x.shape[-1], weights=read, activations=x.nbytes + out.nbytes)
        return out

    def matmul(
        self, name: str, a: Array, b: Array, *, masked: int = 0, weights: int = 0, kv: int = 0, activations: int = 0
    ) -> Array:
        """A (stacked) product ``[..., m, k] @ [..., k, n] -> [..., m, n]``; FLOPs from the shapes multiplied.

        ``masked`` of these FLOPs are reported apart; the bytes are the caller's, who knows what was read.
        """
        out: Array = np.matmul(a, b)
        total = 2 * out.size * a.shape[-1]
        self.add(name, flops=total - masked, masked=masked, weights=weights, kv=kv, activations=activations)
        return out

    def sample(self, logits: Array) -> None:
        """Count one sampling step over ``logits`` [rows, V] (read as float32)."""
        self.add("sample", flops=5 * logits.size, activations=4 * logits.size)


def rowwise(x: Array, w: Array) -> Array:
    """``[m, in] @ [in, out] -> [m, out]``, each row by its own matrix-vector product.

    BLAS blocks a product by its number of rows, so that the last bits of a row depend on its neighbours; here they
    do not. Verification of a draft then gives the very logits that decoding one token at a time gives.
    """
    out = np.empty((x.shape[0], w.shape[1]), np.result_type(x, w))
    row, result = np.empty_like(x[:1][0]) if len(x) else x, np.empty(w.shape[1], out.dtype)
    for i in range(x.shape[0]):  # always from and to the same place: some BLAS round by how memory is aligned
        row[:] = x[i]
        np.matmul(row, w, out=result)
        out[i] = result
    return out
