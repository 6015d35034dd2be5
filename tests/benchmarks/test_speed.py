"""How fast the simulator itself is. Run with ``pytest tests/benchmarks -m benchmark``; docs/performance.md says how.

Fewer requests than in the shipped benchmark scenarios, whose figures come from whole processes. ``extra_info`` has
requests per second of the best round, setting up left out.
"""

from __future__ import annotations

import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.stream import streaming
from sim.analytic.work import Work
from sim.build import build_scenario
from sim.run import simulate
from sim.scenario import Scenario
from workloads import open_trace

ROOT = Path(__file__).parents[2]
REQUESTS = 4000
LENGTHS = {
    "constant": "workload.output=128",
    "azure": "workload={trace: azure-2023-conv, rate: 10}",
    "sharegpt": "workload={rate: 10, lengths: sharegpt-vicuna}",
}


def simulated(benchmark: Any, name: str, *settings: str) -> None:
    """Time ``simulate`` alone on a scenario that is already put together."""
    built = build_scenario(Scenario.load(name, [*settings, f"workload.requests={REQUESTS}"]))
    result = benchmark.pedantic(lambda: simulate(built), rounds=2, warmup_rounds=1)
    assert result.complete and len(result.recorder.requests) == REQUESTS
    benchmark.extra_info["requests_per_s"] = round(REQUESTS / benchmark.stats.stats.min)


@pytest.mark.parametrize("rate", [2, 10, 40])
@pytest.mark.parametrize("name", ["bench_autoregressive", "bench_speculative"])
def test_simulate(benchmark: Any, name: str, rate: int) -> None:
    """The benchmark scenarios at three rates: leaps are long at 2 requests/s and short at 40."""
    simulated(benchmark, name, f"workload.rate={rate}")


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("name", ["bench_autoregressive", "bench_speculative"])
def test_lengths(benchmark: Any, name: str, lengths: str) -> None:
    """Constant lengths, and those of real chats, at 10 requests/s."""
    simulated(benchmark, name, LENGTHS[lengths])


FLEETS = {
    "azure at ten times its rate": ("chat_h100", "replicas=16", "policy=autoregressive", "workload.rate_scale=10"),
    "a day's traffic": ("bench_autoregressive", "replicas=32", "router=round_robin", "workload.rate=400"),
}


@pytest.mark.parametrize("name", FLEETS)
def test_fleets(benchmark: Any, name: str) -> None:
    """Many replicas on one clock; 8,000 requests a second is the aim."""
    simulated(benchmark, *FLEETS[name])


def test_streaming(benchmark: Any, tmp_path: Path) -> None:
    """A fleet's run with its tables flushed to disk and its folder made block by block."""
    built = build_scenario(Scenario.load("bench_autoregressive", [*FLEETS["a day's traffic"][1:],
                                                                  f"workload.requests={REQUESTS}"]))  # fmt: skip

    def streamed() -> int:
        with streaming(tmp_path / "streamed", overwrite=True) as stream:
            stream.save(simulate(built, flush=stream.facts.flush))
        return stream.facts.arrived

    assert benchmark.pedantic(streamed, rounds=2, warmup_rounds=1) == REQUESTS
    benchmark.extra_info["requests_per_s"] = round(REQUESTS / benchmark.stats.stats.min)


@pytest.mark.parametrize("rounds", [1, 100])
def test_cost_of_rounds(benchmark: Any, rounds: int) -> None:
    """``PassCost.seconds`` of one decode round, and of a hundred in one call."""
    cost = build_scenario(Scenario.load("bench_autoregressive")).costs[0]
    context = 1000 if rounds == 1 else 1000 + np.arange(rounds)
    work = Work.decode(32, context, windows=cost.shape.windows)
    assert np.all(benchmark(lambda: cost.seconds(work)) > 0)


@pytest.mark.parametrize("name", ["azure-2023-conv", "mooncake-conversation", "sharegpt-vicuna"])
def test_reading_a_trace(benchmark: Any, name: str) -> None:
    """A whole shipped trace, unpacked, checked and thrown away."""
    trace = open_trace(name)
    benchmark.pedantic(lambda: deque(trace.lengths(), maxlen=0), rounds=3, warmup_rounds=1)


@pytest.fixture(scope="module")
def chat() -> Any:
    """A run to be accounted for and saved."""
    return build_scenario(Scenario.load("chat_h100", ["workload.requests=4000"]))


def test_metrics(benchmark: Any, chat: Any) -> None:
    """Accounts, tables and metrics of a finished run."""
    found = benchmark.pedantic(lambda run: run.metrics, setup=lambda: ((simulate(chat),), {}), rounds=3)
    assert found["requests"]["finished"] == 4000


def test_save(benchmark: Any, chat: Any, tmp_path: Path) -> None:
    """Every file of a result folder, metrics included."""

    def fresh() -> tuple[tuple[Any, str], dict[str, bool]]:
        return (simulate(chat), str(tmp_path / "r")), {"overwrite": True}

    benchmark.pedantic(lambda run, folder, overwrite: run.save(folder, overwrite=overwrite), setup=fresh, rounds=3)
    assert (tmp_path / "r/requests.parquet").is_file()


@pytest.mark.parametrize("command", ["--help", "schema", "explain chat_h100"])
def test_start(benchmark: Any, command: str) -> None:
    """A whole process that does next to nothing."""

    def once() -> int:
        arguments = [sys.executable, "-c", "from sim.cli import main; main()", *command.split()]
        return subprocess.run(arguments, cwd=ROOT, capture_output=True, check=False).returncode

    assert benchmark.pedantic(once, rounds=3, warmup_rounds=1) == 0
