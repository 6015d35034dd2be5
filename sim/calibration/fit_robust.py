"""Robust least squares on log-time: Levenberg and Marquardt with Huber's weights and bounds, in NumPy.

Residuals are logarithms of predicted over measured, so that a microsecond and a second weigh the same; beyond DELTA
they count linearly (Huber 1964), so that outliers bend nothing. Intervals: groups of rows (shapes) are drawn again with
replacement, and the last Newton step is repeated for each draw, which needs no further pass over the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["DELTA", "Bounds", "Fit", "fit", "intervals"]

Floats = NDArray[np.float64]
Predict = Callable[[Floats], Floats]  # parameters -> seconds of every row
DELTA = 0.05
STEP = 1e-4
DRAWS = 200


@dataclass(frozen=True)
class Bounds:
    """What each parameter may be, and where the search starts; all in the coordinates of the search."""

    start: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class Fit:
    """Parameters in the coordinates of the search, and the mean of |log residual|, each at most 0.3."""

    parameters: Floats
    misfit: float


def fit(predict: Predict, log_seconds: Floats, bounds: Bounds, rounds: int = 40) -> Fit:
    """Parameters that make log(predict) nearest to ``log_seconds``."""
    at = bounds.start.copy()
    residual = np.log(predict(at)) - log_seconds
    loss, damping = _huber(residual), 1e-2
    for _ in range(rounds):
        matrix, slope = _normal(predict, at, residual, log_seconds)
        found = _step(predict, log_seconds, bounds, at, matrix, slope, loss, damping)
        if found is None:
            break
        gain, (at, residual, loss, damping) = loss - found[2], found
        if gain < 1e-6 * loss:
            break
    return Fit(at, float(np.minimum(np.abs(residual), 0.3).mean()))


def intervals(
    predict: Predict, log_seconds: Floats, bounds: Bounds, at: Floats, groups: NDArray[np.int64]
) -> tuple[Floats, Floats]:
    """5th and 95th percentile of every parameter over draws of groups; a parameter at a bound may not move."""
    residual = np.log(predict(at)) - log_seconds
    jacobian, weight = _jacobian(predict, at, residual, log_seconds), _weights(residual)
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=groups[order][0] - 1))
    outer = (weight[:, None, None] * jacobian[:, :, None] * jacobian[:, None, :])[order]
    matrices = np.add.reduceat(outer, starts)
    slopes = np.add.reduceat((jacobian * (weight * residual)[:, None])[order], starts)
    luck = np.random.Generator(np.random.Philox(0))
    draws = luck.multinomial(len(starts), np.full(len(starts), 1 / len(starts)), size=DRAWS).astype(np.float64)
    each = np.einsum("dg,gij->dij", draws, matrices) + 1e-9 * np.eye(len(at)) * len(residual)
    steps = -np.linalg.solve(each, (draws @ slopes)[..., None])[..., 0]
    moved = np.clip(at + steps, bounds.low, bounds.high)
    low, high = np.quantile(moved, 0.05, axis=0), np.quantile(moved, 0.95, axis=0)
    return np.minimum(low, at), np.maximum(high, at)


def _step(
    predict: Predict, log_seconds: Floats, bounds: Bounds, at: Floats, matrix: Floats, slope: Floats, loss: float,
    damping: float,
) -> tuple[Floats, Floats, float, float] | None:  # fmt: skip
    ridge = np.diag(matrix) + 1e-9 * len(log_seconds)
    for _ in range(8):
        moved = np.clip(at - np.linalg.solve(matrix + damping * np.diag(ridge), slope), bounds.low, bounds.high)
        residual = np.log(predict(moved)) - log_seconds
        found = _huber(residual)
        if found < loss:
            return moved, residual, found, max(damping / 5, 1e-6)
        damping *= 4
    return None


def _normal(predict: Predict, at: Floats, residual: Floats, log_seconds: Floats) -> tuple[Floats, Floats]:
    jacobian, weight = _jacobian(predict, at, residual, log_seconds), _weights(residual)
    weighted = jacobian * weight[:, None]
    return weighted.T @ jacobian, weighted.T @ residual


def _jacobian(predict: Predict, at: Floats, residual: Floats, log_seconds: Floats) -> Floats:
    columns = np.empty((len(residual), len(at)))
    for i in range(len(at)):
        moved = at.copy()
        moved[i] += STEP
        columns[:, i] = (np.log(predict(moved)) - log_seconds - residual) / STEP
    return columns


def _weights(residual: Floats) -> Floats:
    return np.minimum(1.0, DELTA / np.maximum(np.abs(residual), 1e-12))


def _huber(residual: Floats) -> float:
    size = np.abs(residual)
    return float(np.where(size < DELTA, 0.5 * size * size, DELTA * (size - 0.5 * DELTA)).sum())
