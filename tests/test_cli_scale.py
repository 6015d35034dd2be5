"""Ten times the requests take ten times the CPU time, and little more memory than their own rows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def cost(folder: Path, requests: int) -> dict[str, float]:
    """cost.json of a whole process; BLAS keeps to one thread."""
    code = "from sim.cli import main; main()"
    settings = ["--set", f"workload.requests={requests}", "--set", "workload.rate=10", "-q", "--out", str(folder)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, "run", "bench_autoregressive", *settings]
    subprocess.run(command, env=env, check=True, capture_output=True)
    found: dict[str, float] = json.loads((folder / "cost.json").read_text())
    return found


@pytest.mark.slow
def test_cost_a_request_stays_flat(tmp_path: Path) -> None:
    """From 10 to 100 thousand: CPU a request at most half as much again, memory at most 3 kB a request more."""
    small, large = cost(tmp_path / "small", 10_000), cost(tmp_path / "large", 100_000)
    assert large["cpu_s"] / 100_000 < 1.5 * small["cpu_s"] / 10_000
    assert large["peak_memory_bytes"] - small["peak_memory_bytes"] < 3000 * 90_000
