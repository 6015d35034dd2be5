"""One run divided among workers: the same facts as an undivided one, and bit for bit the same on any number of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from test_cli import Command, decodesim  # noqa: F401  (a fixture)

from sim.executors import Crew, Place, crew
from sim.run import Result, simulate
from sim.scenario import Scenario
from sim.serving.record import Gaps
from sim.split import simulate_split

SMALL = ["workload.requests=90", "workload.rate=60", "replicas=5"]
FLEET = ["fleet={groups: [{name: a, replicas: 2}, {name: b, replicas: 3, hardware: a100-sxm-80gb, weight: 2}]}"]
CASES = {
    "round robin": SMALL,
    "random": [*SMALL, "router=random"],
    "weighted groups": [*SMALL[:2], *FLEET, "router=weighted"],
    "a drafter": [*SMALL, "policy={name: speculative, draft: llama-3.2-1b, gamma: 3}"],
    "a governed clock": [*SMALL, "engine=vllm-v1", "hardware=a100-pcie-40gb", "clock=governed"],
}
TABLES = ("requests", "leaps", "chunks", "stays", "hits", "levels", "lives")


def scenario(settings: list[str]) -> Scenario:
    return Scenario.load("bench_autoregressive", settings)


def threads(count: int) -> Crew:
    return Crew(lambda: ThreadPoolExecutor(count), count)


def rows(result: Result, name: str) -> Any:
    """A table in an order of its own."""
    table = getattr(result.recorder, name).array()
    return table[np.lexsort(table.T[::-1])]


def split(settings: list[str], count: int) -> Result:
    return simulate_split(scenario(settings), threads(count))


@pytest.mark.parametrize("name", CASES)
def test_a_divided_run_is_the_undivided_one(name: str) -> None:
    """Every row of every table, every gap; sums to the last bits but a few."""
    whole, divided = simulate(scenario(CASES[name])), split(CASES[name], 3)
    for table in TABLES:
        assert np.array_equal(rows(whole, table), rows(divided, table)), table
    for one, other in zip(whole.recorder.gaps.weighted(), divided.recorder.gaps.weighted(), strict=True):
        assert np.array_equal(one, other)
    assert whole.recorder.leaps_of == divided.recorder.leaps_of
    assert divided.metrics["energy"]["joules"] == pytest.approx(whole.metrics["energy"]["joules"], rel=1e-12)
    assert divided.metrics["latency"] == whole.metrics["latency"]


@pytest.mark.parametrize("name", CASES)
def test_the_number_of_workers_changes_nothing(name: str) -> None:
    """Tables in the same order, and the whole summary, on one, two and five workers."""
    found = [split(CASES[name], count) for count in (1, 2, 5)]
    for table in TABLES:
        first, *others = [getattr(one.recorder, table).array() for one in found]
        assert all(np.array_equal(first, other) for other in others), table
    assert found[0].metrics == found[1].metrics == found[2].metrics


@pytest.mark.slow
def test_processes_tell_the_same() -> None:
    """Fresh interpreters, to the bit."""
    with crew(Place.parse("processes:2")) as two:
        far = simulate_split(scenario(SMALL), two)
    assert far.metrics == split(SMALL, 1).metrics


REFUSED = {
    "router=least_outstanding": "looks at what replicas do",
    "router=central_queue": "depend on each other",
    "router=session_sticky": "looks at what replicas do",  # nobody has a session here
    "router={name: random, stale_s: 1}": "stale_s",
    "admission={max_outstanding: 3}": "admission",
    "workload.sessions={turns: 2, think_time_s: 1}": "sessions",
    "pools={link_GBps: 50}": "pools",
}


@pytest.mark.parametrize("setting", REFUSED)
def test_what_ties_replicas_is_refused(setting: str, decodesim: Command) -> None:  # noqa: F811
    """One line, exit status 2, no folder."""
    said = [f"--set={one}" for one in (*SMALL[: 2 if "pools" in setting else 3], setting)]
    answer = decodesim("run", "bench_autoregressive", *said, "--executor", "serial", "-q")
    assert answer.status == 2 and REFUSED[setting] in answer.err and answer.err.count("\n") == 1


def test_run_takes_an_executor(decodesim: Command, tmp_path: Any) -> None:  # noqa: F811
    """The folder is that of a run."""
    said = [f"--set={one}" for one in SMALL]
    out = str(tmp_path / "split")
    answer = decodesim("run", "bench_autoregressive", *said, "--executor", "threads:2", "-q", "--out", out)
    assert answer.status == 0, answer.err
    assert (tmp_path / "split" / "summary.json").is_file() and (tmp_path / "split" / "requests.parquet").is_file()


def test_gaps_join_as_if_seen_at_once() -> None:
    """Below the limit exactly, above it in the same bins; the sum is exact."""
    draws = np.random.default_rng(3).integers(1, 30_000_000_000, 40)
    for limit in (8, 64):
        whole, parts = Gaps(limit), [Gaps(limit), Gaps(limit)]
        for i, gap in enumerate(draws.tolist()):
            whole.add_one(gap, 1 + i % 3)
            parts[i % 2].add_one(gap, 1 + i % 3)
        joined = Gaps.joined(parts)
        assert joined.total_ns == whole.total_ns and joined.quantum_ns == whole.quantum_ns
        for one, other in zip(joined.weighted(), whole.weighted(), strict=True):
            assert np.array_equal(one, other)
