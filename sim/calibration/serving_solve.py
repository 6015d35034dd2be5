"""Least squares for a simulator: robust, in logarithms, without derivatives.

Gauss and Newton's steps with a secant matrix: columns from one run a term, then Broyden's rank-one updates (1965) from
the steps themselves. Residuals are logarithms of predicted over measured; beyond DELTA they count linearly (Huber).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Found", "Problem", "bootstrap", "deviations", "minimise"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
DELTA = 0.05
STEP = 0.1
FARTHEST = 0.8
LEAST_MISFIT = 0.01  # a simulation's luck alone makes so much
NOTHING = 1e-3  # residuals that no measurement has
DRAWS = 400


@dataclass(frozen=True)
class Problem:
    """``residual(terms, points)``: log of predicted over measured by row, NaN for rows of points not asked for.

    ``owner``: the point of each row; ``low`` and ``high``: bounds of the terms, in the coordinates of the search.
    """

    residual: Callable[[Floats, Mask], Floats]
    owner: Ints
    low: Floats
    high: Floats

    @property
    def everything(self) -> Mask:
        """All points."""
        return np.ones(int(self.owner.max()) + 1, dtype=bool)


@dataclass(frozen=True)
class Found:
    """Where a search ended: terms, residuals of the rows asked for (else NaN), and the secant matrix [rows, terms]."""

    at: Floats
    residual: Floats
    matrix: Floats


def minimise(
    problem: Problem, start: Floats, active: Mask, points: Mask | None = None, matrix: Floats | None = None,
    rounds: int = 12, renew: bool = True,
) -> Found:  # fmt: skip
    """Move the ``active`` terms until no step helps, nor one by secants taken anew (``renew``).

    ``matrix``: secants of an earlier search, to save its runs.
    """
    chosen = problem.everything if points is None else points
    at, residual = start.copy(), problem.residual(start, chosen)
    fresh = matrix is None
    own = _secants(problem, at, residual, chosen, active) if matrix is None else matrix.copy()
    for _ in range(rounds):
        if np.nanmax(np.abs(residual)) < NOTHING:
            break
        step = _better(problem, at, residual, own, active, chosen)
        if step is None or step[2] < 3e-3:
            if step is not None:
                own = _updated(own, step[0] - at, step[1] - residual)
                at, residual = step[:2]
            if fresh or not renew:
                break
            own, fresh = _secants(problem, at, residual, chosen, active), True
            continue
        own = _updated(own, step[0] - at, step[1] - residual)
        at, residual, fresh = step[0], step[1], False
    return Found(at, residual, own)


def deviations(found: Found, active: Mask) -> Floats:
    """Standard deviation of each active term, all points counted; infinite where nothing depends on it; [terms]."""
    rows = np.isfinite(found.residual)
    matrix, residual = found.matrix[rows][:, active], found.residual[rows]
    weight = _weights(residual)
    freedom = max(1, len(residual) - matrix.shape[1])
    misfit = max(LEAST_MISFIT, float(np.sqrt((weight * residual**2).sum() / freedom)))
    normal = matrix.T @ (weight[:, None] * matrix)
    values, vectors = np.linalg.eigh(normal)
    variance = (vectors**2 / np.maximum(values, 1e-12)).sum(axis=1)
    out = np.full(len(found.at), np.inf)
    out[active] = misfit * np.sqrt(variance)
    return out


def bootstrap(problem: Problem, found: Found, active: Mask) -> tuple[Floats, Floats]:
    """5th and 95th percentile of each term over draws of points with replacement, at least what deviations say."""
    rows = np.isfinite(found.residual)
    matrix, residual, owner = found.matrix[rows], found.residual[rows], problem.owner[rows]
    weight = _weights(residual)
    luck = np.random.Generator(np.random.Philox(0))
    names, place = np.unique(owner, return_inverse=True)
    moved = np.tile(found.at, (DRAWS, 1))
    for draw in range(DRAWS):
        times = np.bincount(luck.integers(0, len(names), len(names)), minlength=len(names))[place] * weight
        moved[draw, active] += _step(matrix[:, active], residual, times, 1e-3)
    deviation = np.where(active, deviations(found, active), 0.0) * 1.645
    ends = np.quantile(moved, (0.05, 0.95), axis=0)
    low, high = np.minimum(ends[0], found.at - deviation), np.maximum(ends[1], found.at + deviation)
    return np.clip(low, problem.low, found.at), np.clip(high, found.at, problem.high)


def _better(
    problem: Problem, at: Floats, residual: Floats, matrix: Floats, active: Mask, points: Mask
) -> tuple[Floats, Floats, float] | None:
    """A step that lowers the loss: where it ends, residuals there, and the share of the loss it saves."""
    rows, before = np.isfinite(residual), _huber(residual)
    for damping in (1e-3, 0.1, 1.0, 10.0):
        step = np.zeros(len(at))
        step[active] = _step(matrix[rows][:, active], residual[rows], _weights(residual[rows]), damping)
        moved = np.clip(at + np.clip(step, -FARTHEST, FARTHEST), problem.low, problem.high)
        if np.abs(moved - at).max() < 1e-4:
            return None
        there = problem.residual(moved, points)
        if (after := _huber(there)) < before:
            return moved, there, 1 - after / max(before, 1e-300)
    return None


def _step(matrix: Floats, residual: Floats, weight: Floats, damping: float) -> Floats:
    normal = matrix.T @ (weight[:, None] * matrix)
    ridge = damping * np.diag(np.diag(normal)) + 1e-9 * max(1.0, len(residual)) * np.eye(len(normal))
    return np.asarray(-np.linalg.solve(normal + ridge, matrix.T @ (weight * residual)), dtype=np.float64)


def _secants(problem: Problem, at: Floats, residual: Floats, points: Mask, active: Mask) -> Floats:
    """How residuals change with each active term, from one run a term; other columns are 0."""
    matrix = np.zeros((len(residual), len(at)))
    for i in np.flatnonzero(active):
        moved = at.copy()
        moved[i] += STEP if at[i] + STEP <= problem.high[i] else -STEP
        matrix[:, i] = np.nan_to_num((problem.residual(moved, points) - residual) / (moved[i] - at[i]))
    return matrix


def _updated(matrix: Floats, step: Floats, change: Floats) -> Floats:
    """Broyden's update: the smallest change of the matrix that explains the step."""
    size = float(step @ step)
    return matrix if size == 0 else matrix + np.outer(np.nan_to_num(change - matrix @ step), step) / size


def _weights(residual: Floats) -> Floats:
    return np.minimum(1.0, DELTA / np.maximum(np.abs(residual), 1e-12))


def _huber(residual: Floats) -> float:
    size = np.abs(residual[np.isfinite(residual)])
    return float(np.where(size < DELTA, 0.5 * size * size, DELTA * (size - 0.5 * DELTA)).sum())
