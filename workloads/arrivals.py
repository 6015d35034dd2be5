"""Arrival processes: when requests come, without end, as whole nanoseconds.

Every process is a renewal process of unit mean, Gamma_k = sum of k gaps, seen through a clock: the k-th request arrives
at the time t where the expected number of arrivals Lambda(t) reaches Gamma_k (time rescaling; Daley and Vere-Jones
2003, sec. 7.4). A constant rate gives Lambda(t) = rate * t. The first request comes after one gap, as in
`vllm bench serve`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from numpy.typing import NDArray

from workloads.columns import Ints
from workloads.draws import BLOCK_ROWS, draws
from workloads.keys import ARRIVAL_ALIASES, ARRIVALS, kind_of

Floats = NDArray[np.float64]
Gaps = Callable[[np.random.Generator, int], Floats]
Clock = Callable[[Floats], Floats]
BISECTIONS = 60


@dataclass(frozen=True)
class Arrivals:
    """A checked arrival process: kind, options, mean rate in requests/s (inf: all at 0)."""

    kind: str
    options: Mapping[str, object]
    rate: float

    def blocks(self, seed: int, stream: int = 0, requests: int | None = None) -> Iterator[Ints]:
        """Arrival times in ns, nondecreasing, in endless blocks of 8192.

        With `rescale` the first `requests` are stretched so that the last of them comes at exactly requests/rate.
        Raises ValueError where a time leaves int64 ns (292 years), or to rescale without `requests`.
        """
        if math.isinf(self.rate):
            while True:
                yield np.zeros(BLOCK_ROWS, np.int64)
        stretch = self._stretch(seed, stream, requests)
        clock = self._clock(seed, stream)
        for expected in self._expected(seed, stream):
            yield _whole_ns(clock(expected * stretch))

    def _expected(self, seed: int, stream: int) -> Iterator[Floats]:
        rng = draws(seed, "arrival", stream)
        gaps = _gaps(self.kind, self.options)
        total = 0.0
        while True:
            sums = np.cumsum(np.concatenate([[total], gaps(rng, BLOCK_ROWS)]))[1:]
            total = float(sums[-1])
            yield sums

    def _stretch(self, seed: int, stream: int, requests: int | None) -> float:
        if not self.options.get("rescale", False):
            return 1.0
        if requests is None:
            raise ValueError("arrivals: rescale: true: needs requests, the number to rescale to")
        left = requests
        for sums in self._expected(seed, stream):
            if left <= len(sums):
                return requests / float(sums[left - 1])
            left -= len(sums)
        raise AssertionError("arrivals never end")

    def _clock(self, seed: int, stream: int) -> Clock:
        if self.kind == "diurnal":
            return _diurnal(self.rate, self.options)
        if self.kind == "on_off":
            return _OnOff.of(self.rate, self.options, draws(seed, "phase", stream)).times
        return lambda expected: expected / self.rate


def arrivals(spec: object, rate: float, where: str = "workload: arrivals") -> Arrivals:
    """The process that `NAME` or `{kind: NAME, ...}` describes, at `rate` requests/s. Raises ValueError."""
    kind, options = kind_of(spec, ARRIVALS, where, ARRIVAL_ALIASES)
    if kind == "gamma" and {"burstiness", "cv"} <= set(options):
        raise ValueError(f"{where}: cv: give burstiness or cv, not both (burstiness = 1 / cv**2)")
    if kind == "weibull" and "shape" not in options:
        raise ValueError(f"{where}: shape: missing: {ARRIVALS['weibull']['shape'].allowed}")
    if kind == "inf" and math.isfinite(rate):
        raise ValueError(f"{where}: inf: all requests at once have no rate: leave rate out, or write rate: inf")
    return Arrivals(kind, options, rate)


def _gaps(kind: str, options: Mapping[str, object]) -> Gaps:
    """A sampler of gaps with mean 1."""
    if kind == "gamma":
        shape = _shape(options)
        return lambda rng, n: rng.standard_gamma(shape, n) / shape
    if kind == "weibull":
        k = _real(options, "shape", 1.0)
        mean = math.gamma(1 + 1 / k)
        return lambda rng, n: rng.weibull(k, n) / mean
    if kind == "uniform":
        return lambda _, n: np.ones(n)
    return lambda rng, n: rng.standard_exponential(n)


def _shape(options: Mapping[str, object]) -> float:
    """Gamma shape = burstiness (vLLM's word); its CV is 1 / sqrt(shape)."""
    return _real(options, "cv", 1.0) ** -2 if "cv" in options else _real(options, "burstiness", 1.0)


def _real(options: Mapping[str, object], key: str, default: float) -> float:
    return float(cast(float, options.get(key, default)))


def _diurnal(rate: float, options: Mapping[str, object]) -> Clock:
    """Inverts Lambda(t) for rate(t) = rate * (1 + amplitude * sin(2 pi (t + phase_s) / period_s)), by bisection."""
    period_s, amplitude = _real(options, "period_s", 86_400.0), _real(options, "amplitude", 0.5)
    turn = 2 * math.pi / period_s
    phase = turn * _real(options, "phase_s", 0.0)
    swing_s = amplitude / turn

    def expected_s(t: Floats) -> Floats:
        return t + swing_s * (math.cos(phase) - np.cos(turn * t + phase))

    def times(expected: Floats) -> Floats:
        target = expected / rate
        low, high = np.maximum(target - 2 * swing_s, 0.0), target + 2 * swing_s
        for _ in range(BISECTIONS):
            middle = 0.5 * (low + high)
            late = expected_s(middle) >= target
            low, high = np.where(late, low, middle), np.where(late, middle, high)
        return high

    return times


@dataclass
class _OnOff:
    """Two rates in turn, for exponential spells of mean on_s and off_s (a two-state MMPP), begun in equilibrium.

    `edges_s`, `expected` and `rates` hold the spells drawn so far: spell j runs from edges_s[j] at rates[j].
    """

    mean_s: tuple[float, float]
    rates_on_off: tuple[float, float]
    rng: np.random.Generator
    edges_s: Floats = field(default_factory=lambda: np.zeros(1))
    expected: Floats = field(default_factory=lambda: np.zeros(1))
    rates: Floats = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def of(cls, rate: float, options: Mapping[str, object], rng: np.random.Generator) -> _OnOff:
        """The process whose mean rate over all time is `rate`."""
        on_s, off_s = _real(options, "on_s", 10.0), _real(options, "off_s", 10.0)
        fraction = _real(options, "off_fraction", 0.0)
        on_rate = rate * (on_s + off_s) / (on_s + fraction * off_s)
        starts_on = rng.random() < on_s / (on_s + off_s)
        spells = (on_s, off_s), (on_rate, fraction * on_rate)
        return cls(*spells, rng) if starts_on else cls(spells[0][::-1], spells[1][::-1], rng)

    def times(self, expected: Floats) -> Floats:
        """The time at which each expected count [n], nondecreasing, is reached."""
        while self.expected[-1] < expected[-1]:
            self._draw_spells()
        spell = np.searchsorted(self.expected, expected, side="left") - 1
        spell = np.maximum(spell, 0)
        found = self.edges_s[spell] + (expected - self.expected[spell]) / self.rates[spell]
        self._forget(int(spell[-1]))
        return np.asarray(found)

    def _draw_spells(self, pairs: int = 256) -> None:
        lengths_s = self.rng.standard_exponential(2 * pairs) * np.tile(self.mean_s, pairs)
        rates = np.tile(self.rates_on_off, pairs)
        self.edges_s = np.append(self.edges_s, self.edges_s[-1] + np.cumsum(lengths_s))
        self.expected = np.append(self.expected, self.expected[-1] + np.cumsum(lengths_s * rates))
        self.rates = np.append(self.rates, rates)

    def _forget(self, spell: int) -> None:
        self.edges_s, self.expected, self.rates = self.edges_s[spell:], self.expected[spell:], self.rates[spell:]


def _whole_ns(seconds: Floats) -> Ints:
    if not seconds[-1] < 2**62 / 1e9:
        raise ValueError(f"arrivals: {seconds[-1]:.3g} s: arrivals must stay within 146 years; raise the rate")
    return np.rint(seconds * 1e9).astype(np.int64)
