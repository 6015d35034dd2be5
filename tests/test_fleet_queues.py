"""Fleets of one-seat replicas are textbook queues: Erlang C and B, Allen-Cunneen, E_c/M/1, shortest lines, two choices.

One output token and a cost that counts prompt tokens make the service time of a request its prompt, in nanoseconds.
Intervals are Student's t at 99.9 % over independent replications; every test also demands that they are narrow.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from engine_setup import Case, FlatCost, run_engine
from scipy import optimize, sparse
from scipy.sparse.linalg import spsolve
from test_queueing import MEAN_TOKENS, interval, second_moment, services

from sim.policies.autoregressive import Autoregressive
from sim.request import Request
from sim.routers.central_queue import CentralQueue
from sim.routers.least_outstanding import LeastOutstanding
from sim.routers.power_of_two import PowerOfTwo
from sim.routers.random import Random
from sim.routers.round_robin import RoundRobin
from sim.schedulers.chunked import Chunked
from sim.serving.admission import Admission


def table(c: int, load: float, n: int, seed: int, router: Any, kind: str = "exponential", **more: Any) -> Any:
    """The request table of c one-seat replicas at a load, in order of arrival; one token takes one nanosecond."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(MEAN_TOKENS / load / c, n)).astype(np.int64).tolist()
    tokens = services(kind, rng, n).tolist()
    requests = tuple(Request(i, t, p, 1) for i, (t, p) in enumerate(zip(arrivals, tokens, strict=True)))
    case = Case(
        Autoregressive(), Chunked(1 << 20, 1), requests, real=(FlatCost(token_ns=1.0),), max_context=1 << 20,
        replicas=c, router=router, seed=seed, **more,
    )  # fmt: skip
    rows = run_engine(case)[2].requests.frame()
    order = np.argsort(rows["id"])
    return {name: column[order] for name, column in rows.items()}


def wait(c: int, load: float, router: Any, kind: str = "exponential", n: int = 1600, runs: int = 12) -> Any:
    """Mean wait in mean services, and the half-width of its interval; the first tenth is left out."""
    means = []
    for seed in range(runs):
        rows = table(c, load, n, 700 + seed, router, kind)
        means.append(float((rows["admitted_ns"] - rows["arrival_ns"])[n // 10 :].mean()) / MEAN_TOKENS)
    return interval(means)


def erlang_b(c: int, offered: float) -> float:
    """Share of calls lost on c lines (Erlang 1917), by its recursion."""
    lost = 1.0
    for k in range(1, c + 1):
        lost = offered * lost / (k + offered * lost)
    return lost


def erlang_c(c: int, load: float) -> float:
    """Mean wait of M/M/c in mean services: C(c, a) / (c - a)."""
    lost = erlang_b(c, c * load)
    return lost / (1 - load * (1 - lost)) / (c * (1 - load))


def test_erlang_by_hand() -> None:
    """Two servers at load 1/2: B(2, 1) = 1/5, C = 1/3, wait 1/3; one server: rho / (1 - rho)."""
    assert erlang_b(2, 1.0) == pytest.approx(0.2) and erlang_c(2, 0.5) == pytest.approx(1 / 3)
    assert erlang_c(1, 0.75) == pytest.approx(3.0)


@pytest.mark.parametrize("c, load", [(2, 0.6), pytest.param(5, 0.6, marks=pytest.mark.slow)])
def test_a_central_queue_is_erlang_c(c: int, load: float) -> None:
    """M/M/c: Erlang's wait lies within the interval, which is narrower than +-25 % and excludes c separate queues."""
    mean, half = wait(c, load, CentralQueue(1), n=1600 if c == 2 else 4000, runs=12 if c == 2 else 16)
    assert half < 0.25 * mean and abs(mean - erlang_c(c, load)) < half
    assert load / (1 - load) > mean + 2 * half


@pytest.mark.parametrize(
    "kind, tolerance", [("deterministic", 0.07), pytest.param("bimodal", 0.15, marks=pytest.mark.slow)]
)
def test_a_central_queue_is_near_allen_cunneen(kind: str, tolerance: float) -> None:
    """M/G/3 at load 0.7: Erlang's wait times (1 + c_s^2) / 2, within the interval and the stated tolerance: 7 % for
    fixed service (Cosmetatos 1975 puts M/D/3 4 % above), 15 % for two sizes with c_s^2 = 2.56.
    """
    n, runs = (1600, 12) if kind == "deterministic" else (5000, 16)
    mean, half = wait(3, 0.7, CentralQueue(1), kind, n, runs)
    want = erlang_c(3, 0.7) * second_moment(kind) / MEAN_TOKENS**2 / 2
    assert half < 0.25 * mean and abs(mean - want) < half + tolerance * want
    assert abs(mean - erlang_c(3, 0.7)) > half


def test_round_robin_is_erlang_arrivals() -> None:
    """c = 3 at load 0.7: E_3/M/1, wait s / (1 - s) with s the root of s = (c rho / (c rho + 1 - s))^c."""
    c, load = 3, 0.7
    root = optimize.brentq(lambda s: s - (c * load / (c * load + 1 - s)) ** c, 0.0, 0.999)
    mean, half = wait(c, load, RoundRobin())
    assert half < 0.25 * mean and abs(mean - root / (1 - root)) < half
    assert load / (1 - load) > mean + half


def test_a_random_split_is_separate_queues() -> None:
    """c = 3 at load 0.5: M/M/1 each, wait rho / (1 - rho), which is not that of a central queue."""
    mean, half = wait(3, 0.5, Random())
    assert half < 0.25 * mean and abs(mean - 1.0) < half
    assert erlang_c(3, 0.5) < mean - half


def chain(c: int, load: float, choices: int, most: int) -> float:
    """Mean wait of c exponential servers where the shortest of ``choices`` lines drawn is joined: the Markov chain of
    all lines, cut at ``most`` in each, solved; in mean services, by Little's law.
    """
    states = list(itertools.product(range(most + 1), repeat=c))
    number = {state: i for i, state in enumerate(states)}
    groups = list(itertools.combinations(range(c), choices))
    rates: dict[tuple[int, int], float] = {}

    def move(old: tuple[int, ...], place: int, step: int, rate: float) -> None:
        new = (*old[:place], old[place] + step, *old[place + 1 :])
        if 0 <= new[place] <= most:
            key = number[new], number[old]
            rates[key] = rates.get(key, 0.0) + rate

    for state in states:
        for place in range(c):
            move(state, place, -1, 1.0)
        for drawn in groups:
            least = min(state[i] for i in drawn)
            shortest = [i for i in drawn if state[i] == least]
            for place in shortest:
                move(state, place, 1, c * load / len(groups) / len(shortest))
    where = np.array(list(rates)).T
    flows = sparse.csc_matrix((list(rates.values()), where), shape=(len(states), len(states)))
    balance = (flows - sparse.diags(np.asarray(flows.sum(axis=0)).ravel())).tolil()
    balance[0, :] = 1.0
    shares = spsolve(balance.tocsc(), np.eye(1, len(states)).ravel())
    inside = float(shares @ np.array([sum(state) for state in states]))
    return inside / (c * load) - 1.0


def test_the_chain_knows_what_is_known() -> None:
    """One choice of two is M/M/1 each (wait 1 at load 1/2)."""
    assert chain(2, 0.5, 1, 24) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize(
    "c, load, router, choices, most", [(2, 0.7, LeastOutstanding(), 2, 30), (3, 0.6, PowerOfTwo(2), 2, 12)]
)
def test_the_shortest_line(c: int, load: float, router: Any, choices: int, most: int) -> None:
    """Joining the shorter of two lines, and of two drawn from three: the chain's wait lies within the interval, which
    lies between Erlang C (nobody can do better) and separate queues.
    """
    mean, half = wait(c, load, router)
    want = chain(c, load, choices, most)
    assert half < 0.25 * mean and abs(mean - want) < half
    assert erlang_c(c, load) < want < load / (1 - load) and mean + half < load / (1 - load)


def test_a_gateway_without_a_line_is_erlang_b() -> None:
    """At most three out and nobody held, offered load 2.1: Erlang's B(3, a) are refused, whatever the service."""
    lost = []
    for seed in range(10):
        limits = Admission(max_outstanding=3, queue_ns=0)
        rows = table(3, 0.7, 1500, 40 + seed, LeastOutstanding(), "bimodal", admission=limits)
        lost.append(float((rows["status"] == 1)[150:].mean()))
    mean, half = interval(lost)
    assert half < 0.15 * mean and abs(mean - erlang_b(3, 2.1)) < half


@pytest.mark.slow
def test_the_supermarket() -> None:
    """Two choices among 50 servers at load 0.8: the time in the system is at least that of infinitely many servers,
    the sum of rho^(2^k - 2) over k >= 1 (Mitzenmacher 2001), and at most a tenth more; one choice takes 5.
    """
    limit = sum(0.8 ** (2**k - 2) for k in range(1, 20))
    mean, half = wait(50, 0.8, PowerOfTwo(2), n=12_000, runs=6)
    assert half < 0.1 * limit and limit - half < 1 + mean < 1.1 * limit + half
    assert math.isfinite(limit) and limit < 3
