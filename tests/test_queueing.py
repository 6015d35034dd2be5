"""A replica with one seat is a single-server queue: waits by Lindley's recursion exactly, means by the closed forms.

One output token and a cost that counts prompt tokens make the service time of a request its prompt, in nanoseconds.
Confidence intervals are Student's t at 99.9 % over independent replications, with the start-up left out; a test also
demands that the interval is narrow, so that it can fail.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from engine_setup import Case, FlatCost, run_engine, trace
from scipy import stats

from sim.policies.autoregressive import Autoregressive
from sim.policies.speculative import Speculative
from sim.request import Request
from sim.schedulers.chunked import Chunked
from sim.schedulers.continuous import Continuous
from sim.schedulers.static import Static

MEAN_TOKENS = 5000
SERVICE = ("deterministic", "exponential", "bimodal")
SCHEDULERS = (Chunked(1 << 20, 1), Continuous(1 << 20, 1), Static(1))


def services(kind: str, rng: np.random.Generator, n: int) -> Any:
    """Service times in tokens, mean 5000: one value, exponential (rounded up), or 1000 and 21000 four to one."""
    if kind == "deterministic":
        return np.full(n, MEAN_TOKENS)
    if kind == "exponential":
        return np.ceil(rng.exponential(MEAN_TOKENS - 0.5, n)).astype(int)
    return np.where(rng.random(n) < 0.8, 1000, 21_000)


def second_moment(kind: str) -> float:
    """E[S^2] in tokens squared."""
    return {"deterministic": 1.0, "exponential": 2.0, "bimodal": (0.8 + 0.2 * 441) / 25}[kind] * MEAN_TOKENS**2


def queue(kind: str, load: float, n: int, seed: int, scheduler: Any) -> tuple[Any, Any, Any]:
    """Arrivals, services and the waits of the engine in nanoseconds; one token takes one nanosecond."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(MEAN_TOKENS / load, n)).astype(np.int64)
    tokens = services(kind, rng, n)
    requests = tuple(Request(i, int(t), int(p), 1) for i, (t, p) in enumerate(zip(arrivals, tokens, strict=True)))
    case = Case(Autoregressive(), scheduler, requests, real=(FlatCost(token_ns=1.0),), max_context=1 << 20)
    table = run_engine(case)[2].requests.frame()
    order = np.argsort(table["id"])
    return arrivals, tokens, (table["admitted_ns"] - table["arrival_ns"])[order]


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda s: s.name)
@pytest.mark.parametrize("kind", SERVICE)
def test_lindley(kind: str, scheduler: Any) -> None:
    """Every wait, to the nanosecond: W' = max(0, W + S - A) (Lindley 1952)."""
    arrivals, tokens, waits = queue(kind, 0.9, 600, 3, scheduler)
    want = [0]
    for gap, service in zip(np.diff(arrivals), tokens, strict=False):
        want.append(max(0, want[-1] + int(service) - int(gap)))
    assert waits.tolist() == want


def interval(means: list[float]) -> tuple[float, float]:
    """Mean and half-width of its 99.9 % confidence interval over independent replications."""
    spread = float(np.std(means, ddof=1)) / math.sqrt(len(means))
    return float(np.mean(means)), float(stats.t.ppf(0.9995, len(means) - 1)) * spread


def mean_wait(kind: str, load: float, n: int, replications: int) -> tuple[float, float]:
    """The engine's mean wait and the half-width of its interval; the first tenth of each replication is left out."""
    runs = [queue(kind, load, n, 100 + seed, SCHEDULERS[seed % 3])[2] for seed in range(replications)]
    return interval([float(waits[n // 10 :].mean()) for waits in runs])


def pollaczek_khinchine(kind: str, load: float) -> float:
    """Mean wait of M/G/1, lambda E[S^2] / (2 (1 - rho)); M/M/1 and M/D/1 are its special cases."""
    return load / MEAN_TOKENS * second_moment(kind) / (2 * (1 - load))


@pytest.mark.parametrize("kind, load", [("deterministic", 0.5), ("exponential", 0.4), ("bimodal", 0.3)])
def test_mean_wait(kind: str, load: float) -> None:
    """M/D/1, M/M/1 and M/G/1: the closed form lies within the engine's interval, which is narrower than +-15 %."""
    mean, half = mean_wait(kind, load, 1800, 14)
    assert half < 0.15 * mean
    assert abs(mean - pollaczek_khinchine(kind, load)) < half


@pytest.mark.slow
@pytest.mark.parametrize("kind", SERVICE)
def test_mean_wait_under_load(kind: str) -> None:
    """The same at load 0.7, within +-15 %."""
    mean, half = mean_wait(kind, 0.7, 12_000, 14)
    assert half < 0.15 * mean
    assert abs(mean - pollaczek_khinchine(kind, 0.7)) < half


def test_wrong_forms_are_told_apart() -> None:
    """The interval of M/D/1 excludes the wait of M/M/1, and the other way round: the check above can fail."""
    mean, half = mean_wait("deterministic", 0.5, 1000, 12)
    assert abs(mean - pollaczek_khinchine("exponential", 0.5)) > 3 * half


def test_decode_rounds_are_service_too() -> None:
    """Geometric answers, 100 ns a round: M/G/1 with S = 100 L, E[S^2] of the geometric distribution, load 0.35."""
    p, load, n = 0.05, 0.35, 1800
    mean_ns, square = 100 / p, 100**2 * (2 - p) / p**2
    means = []
    for seed in range(12):
        rng = np.random.default_rng(500 + seed)
        arrivals = np.cumsum(rng.exponential(mean_ns / load, n)).astype(int).tolist()
        outputs = rng.geometric(p, n).tolist()
        requests = tuple(Request(i, t, 1, o) for i, (t, o) in enumerate(zip(arrivals, outputs, strict=True)))
        case = Case(Autoregressive(), SCHEDULERS[seed % 3], requests, real=(FlatCost(100.0),))
        table = run_engine(case)[2].requests.frame()
        means.append(float((table["admitted_ns"] - table["arrival_ns"])[n // 10 :].mean()))
    mean, half = interval(means)
    want = load / mean_ns * square / (2 * (1 - load))
    assert half < 0.15 * mean and abs(mean - want) < half


def test_machine_repair() -> None:
    """Five users, exponential thinking of 4 mean services, exponential service: the server is busy 1 - p0, with
    1 / p0 = sum of 5! / (5 - k)! (S / Z)^k (the machine repair model, M/M/1//N). Up to the first user's last answer:
    served by arrival, users end at different times, and then there are fewer than five."""
    users, n, ratio = 5, 1500, 0.25
    busy = []
    for seed in range(10):
        tokens = services("exponential", np.random.default_rng(900 + seed), n)
        requests = tuple(Request(i, 0, int(t), 1) for i, t in enumerate(tokens))
        case = Case(
            Autoregressive(), Chunked(1 << 20, 1), requests, real=(FlatCost(token_ns=1.0),), max_context=1 << 20,
            seed=seed, concurrency=users, think_s=MEAN_TOKENS / ratio * 1e-9, exponential=True,
        )  # fmt: skip
        table = run_engine(case)[2].requests.frame()
        ends = table["finish_ns"][np.argsort(table["id"])]
        first = int(ends[-users:].min())
        busy.append(float(np.asarray(tokens)[ends <= first].sum()) / first)
    mean, half = interval(busy)
    p0 = 1 / sum(math.perm(users, k) * ratio**k for k in range(users + 1))
    assert half < 0.08 * mean and abs(mean - (1 - p0)) < half


def integral(times_up: Any, times_down: Any) -> int:
    """The area under a count that goes up and down at these times, swept event by event."""
    events = sorted([(int(t), 1) for t in times_up] + [(int(t), -1) for t in times_down])
    area = count = last = 0
    for time, step in events:
        area, count, last = area + count * (time - last), count + step, time
    assert count == 0
    return area


@pytest.mark.parametrize("policy", [Autoregressive(), Speculative("d", 3, 0.8)], ids=lambda p: p.name)
@pytest.mark.parametrize("scheduler", [Chunked(32, 4), Continuous(60, 4), Static(4)], ids=lambda s: s.name)
@pytest.mark.parametrize("gap_ns", [2_000, 40_000])
def test_littles_law(policy: Any, scheduler: Any, gap_ns: int) -> None:
    """L = lambda W, exactly, for the house (arrival to finish) and for the seats (as the rounds count them)."""
    case = Case(policy, scheduler, trace(40, gap_ns, 4), replicas=2)
    for one in (case, replace(case, concurrency=7)):
        told, _, recorder = run_engine(one)
        table, leaps = recorder.requests.frame(), recorder.leaps.frame()
        times = table["finish_ns"] - table["arrival_ns"]
        assert integral(table["arrival_ns"], table["finish_ns"]) == int(times.sum())
        served = int((table["finish_ns"] - table["admitted_ns"]).sum())
        assert int((leaps["duration_ns"] * leaps["running"]).sum()) == served
        assert len(told.requests) == 40


@pytest.mark.parametrize("scheduler", [Chunked(32, 4), Continuous(60, 4), Static(4)], ids=lambda s: s.name)
def test_tokens_are_conserved(scheduler: Any) -> None:
    """Prompt chunks add up to the prompts, and gaps plus first tokens bracket the tokens that came out."""
    requests = trace(40, 20_000, 5)
    told, _, recorder = run_engine(Case(Autoregressive(), scheduler, requests))
    assert recorder.chunks.frame()["new"].sum() == sum(r.prompt for r in requests)
    assert sum(told.gaps.values()) + len(requests) == sum(r.output for r in requests)
    first_to_last = [row[4] - row[3] for row in told.requests.values()]
    assert sum(gap * seen for gap, seen in told.gaps.items()) == sum(first_to_last)
