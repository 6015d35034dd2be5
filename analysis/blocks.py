"""Confidence intervals for correlated requests: block length, blocks drawn again, and Student's interval over pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.pairs import Pair, sampled

__all__ = ["Blocks", "block_length", "student", "student_quantile"]

Floats = NDArray[np.float64]
LEAST_REQUESTS = 8
MOST_DRAWS, LEAST_DRAWS, WORK = 1000, 200, 10_000_000


@dataclass(frozen=True)
class Blocks:
    """Circular blocks of ``length`` consecutive rows out of ``n``; ``cut``: the length wanted was longer."""

    n: int
    length: int
    draws: int
    cut: bool

    @classmethod
    def of(cls, pair: Pair) -> Blocks:
        """Blocks for the requests of a pair, as long as the differences of their E2EL stay correlated."""
        series = pair.latencies[1]["E2EL"] - pair.latencies[0]["E2EL"]
        n = len(series)
        length, cut = block_length(series)
        return cls(n, length, min(MOST_DRAWS, max(LEAST_DRAWS, WORK // n)), cut)

    def differences(self, pair: Pair) -> dict[str, Floats]:
        """B - A of every metric over every draw, less B - A over all requests; each of shape [draws]."""
        if self.n < LEAST_REQUESTS:
            return {}
        whole = _minus(sampled(pair, 1), sampled(pair, 0))
        drawn = [_minus(sampled(pair, 1, rows), sampled(pair, 0, rows)) for rows in self._samples()]
        return {name: np.array([d.get(name, np.nan) for d in drawn]) - value for name, value in whole.items()}

    def _samples(self) -> Iterator[NDArray[np.int64]]:
        """Rows of every draw, shape [n]."""
        rng = np.random.default_rng([self.n, self.length])
        offsets = np.arange(self.length)
        for _ in range(self.draws):
            starts = rng.integers(0, self.n, -(-self.n // self.length))
            yield ((starts[:, None] + offsets) % self.n).ravel()[: self.n]


def _minus(b: Mapping[str, float | None], a: Mapping[str, float | None]) -> dict[str, float]:
    return {name: y - x for name, x in a.items() if x is not None and (y := b.get(name)) is not None}


def block_length(series: Floats) -> tuple[int, bool]:
    """Length of circular blocks for a mean, and whether it was cut to a third of the series or 3 sqrt(n).

    Politis and White 2004, corrected by Patton, Politis and White 2009: b = (2 G^2 / D)^(1/3) n^(1/3), with
    G = sum of lag * covariance and D = 4/3 (sum of covariances)^2 under a flat-top window as wide as correlations last.
    """
    n = len(series)
    most = max(1, math.ceil(min(3 * math.sqrt(n), n / 3)))
    covariances = _covariances(series, min(n - 1, most + max(5, math.ceil(math.sqrt(math.log10(max(n, 10)))))))
    if n < LEAST_REQUESTS or covariances[0] <= 1e-24 * float(np.max(series * series, initial=0.0)):
        return 1, False
    lags = np.arange(len(covariances))
    window = np.clip(2 * (1 - lags / _window(covariances, n)), 0.0, 1.0)
    weighted = window * covariances
    spectrum = weighted[0] + 2 * weighted[1:].sum()
    slope = 2 * (lags * weighted)[1:].sum()
    if spectrum <= 0:
        return most, True
    wanted = (1.5 * (slope / spectrum) ** 2) ** (1 / 3) * n ** (1 / 3)
    return min(most, max(1, math.ceil(wanted))), wanted > most


def _covariances(series: Floats, lags: int) -> Floats:
    """Autocovariances at lags 0 .. ``lags``."""
    centred = series - series.mean()
    n = len(series)
    return np.array([float(centred[: n - k] @ centred[k:]) / n for k in range(lags + 1)])


def _window(covariances: Floats, n: int) -> int:
    """Twice the first lag after which five or more correlations in a row are insignificant; all lags if none is."""
    quiet = max(5, math.ceil(math.sqrt(math.log10(n))))
    small = np.abs(covariances[1:] / covariances[0]) < 2 * math.sqrt(math.log10(n) / n)
    for lag in range(len(small) - quiet + 1):
        if small[lag : lag + quiet].all():
            return max(1, 2 * lag)
    return max(1, len(covariances) - 1)


def student(differences: Floats, confidence: float) -> tuple[float, float]:
    """Mean -+ t * s / sqrt(n) of paired differences, shape [pairs >= 2]."""
    n = len(differences)
    half = student_quantile(0.5 + confidence / 2, n - 1) * float(differences.std(ddof=1)) / math.sqrt(n)
    mean = float(differences.mean())
    return mean - half, mean + half


def student_quantile(p: float, freedom: int) -> float:
    """The p-quantile (0.5 < p < 1) of Student's t with whole degrees of freedom, by bisection."""
    low, high = 0.0, 1.0
    while _student_cdf(high, freedom) < p:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_cdf(middle, freedom) < p else (low, middle)
    return high


def _student_cdf(t: float, freedom: int) -> float:
    """Abramowitz and Stegun 1964, 26.7.3 and 26.7.4: a finite series in the angle atan(t / sqrt(freedom))."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = freedom % 2
    term = total = (cosine if odd else 1.0) if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    return 0.5 + ((angle + sine * total) / math.pi if odd else sine * total / 2)
