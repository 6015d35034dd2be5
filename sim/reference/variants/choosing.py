"""What the twins of HiRE and contextual sparsity share: approximate copies of a matrix, the best of some scores."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.reference.meter import Meter
from sim.reference.packed_matrix import Packed, Rule, pack

Array = NDArray[Any]
TILE_ROWS = 128


@dataclass(frozen=True)
class Copy:
    """An approximate matrix [d, n]: ``project`` [d, r] or None, then ``scorer`` [r or d, n], packed or not."""

    project: Array | None
    scorer: Array | Packed

    @staticmethod
    def of(w: Array, rank: int | None, bits: int | None, block: int | str, inputs: Array | None = None) -> Copy:
        """Of a matrix [d, n]; ``inputs`` [tokens, d]: what the low rank is to serve (None: all directions alike)."""
        project, rest = (None, w) if rank is None else low_rank(w, rank, inputs)
        return Copy(project, rest if bits is None else pack(rest, Rule(bits, block)))

    def scores(self, meter: Meter, base: str, x: Array) -> Array:
        """Approximate products [m, d] -> [m, n], metered as ``base.project`` and ``base.approx``."""
        if self.project is not None:
            x = meter.linear(f"{base}.project", x, self.project)
        if not isinstance(self.scorer, Packed):
            return meter.linear(f"{base}.approx", x, self.scorer)
        w = self.scorer.decode().astype(x.dtype)
        out = meter.matmul(f"{base}.approx", x, w)
        meter.add(f"{base}.approx", weights=self.scorer.nbytes, activations=x.nbytes + out.nbytes)
        meter.add(f"{base}.approx.dequantise", flops=w.size * -(-len(x) // TILE_ROWS))
        return out


@dataclass
class Tally:
    """What choosing found, over everything run: ``hits`` of ``wanted`` true best, units ``touched`` by op name.

    ``unions``: (rows, distinct units) of each pass and layer.
    """

    hits: int = 0
    wanted: int = 0
    touched: Counter[str] = field(default_factory=Counter)
    unions: list[tuple[int, int]] = field(default_factory=list)
    by_row: list[float] = field(default_factory=list)
    masses: list[float] = field(default_factory=list)

    @property
    def recall(self) -> float:
        """Share of the true best that were among the candidates."""
        return self.hits / self.wanted

    def compare(self, exact: Array, chosen: Array, keep: int, group: int = 1) -> None:
        """Count how many of the ``keep`` best of ``exact`` [m, n] were ``chosen``; of activations the positive ones."""
        truth = best(exact, keep, group)
        real = (np.take_along_axis(exact, truth, axis=1) > 0) | (exact.min(initial=0.0) < 0)
        picked = np.zeros(exact.shape, bool)
        np.put_along_axis(picked, chosen, True, axis=1)
        found = np.take_along_axis(picked, truth, axis=1) & real
        self.hits += int(found.sum())
        self.wanted += int(real.sum())
        self.by_row += (found.sum(axis=1) / np.maximum(real.sum(axis=1), 1)).tolist()

    def touch(self, op: str, chosen: Array) -> int:
        """Note and return how many distinct units a pass chose, [m, k']."""
        count = len(np.unique(chosen))
        self.touched[op] += count
        self.unions.append((len(chosen), count))
        return count


def best(scores: Array, count: int, group: int = 1, shards: int = 1) -> Array:
    """Indices [m, count] of the highest scores [m, n], ascending; groups by their sum, each shard its own share."""
    m, n = scores.shape
    each, own = count // group // shards, n // group // shards
    grouped = scores.reshape(m, shards, own, group).sum(axis=-1)
    top = np.argpartition(-grouped, each - 1, axis=-1)[..., :each]  # [m, shards, each]
    groups = np.sort((top + np.arange(shards)[None, :, None] * own).reshape(m, -1), axis=1)
    return np.asarray((groups[..., None] * group + np.arange(group)).reshape(m, -1))


def low_rank(w: Array, rank: int, inputs: Array | None = None) -> tuple[Array, Array]:
    """[d, n] ~ [d, r] @ [r, n], the nearest in the products with ``inputs`` (Eckart-Young after whitening them)."""
    root = np.eye(len(w))
    if inputs is not None:
        x = np.asarray(inputs, np.float64)
        power = x.T @ x / len(x)
        root = np.linalg.cholesky(power + 1e-6 * np.trace(power) / len(power) * np.eye(len(power))).T
    u, s, v = np.linalg.svd(root @ w, full_matrices=False)
    project = np.linalg.solve(root, u[:, :rank])
    return project.astype(w.dtype), (s[:rank, None] * v[:rank]).astype(w.dtype)


def columns_product(x: Array, w: Array, chosen: Array) -> Array:
    """Each row with its own columns of ``w`` [d, n]: [m, d], [m, k] -> [m, k]."""
    return np.asarray(np.einsum("md,mkd->mk", x, w.T[chosen], optimize=True), x.dtype)


def rows_product(x: Array, w: Array, chosen: Array) -> Array:
    """Each row with its own rows of ``w`` [n, d]: [m, k], [m, k] -> [m, d]."""
    return np.asarray(np.einsum("mk,mkd->md", x, w[chosen], optimize=True), x.dtype)
