"""A run streamed to disk leaves the files of one kept in memory, and its memory does not grow with the trace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from output_runs import RUNS, TRAFFIC, scenario

import sim.run
from analysis.latency import describe
from analysis.order import SHIFTS, Order
from analysis.stream import streaming
from sim import simulate

ROOT = Path(__file__).parents[1]
PREFIXES = {**TRAFFIC, "prompt": 256, "shared_prefix": {"tokens": 256, "groups": 8}}
MORE: dict[str, dict[str, Any]] = {
    "fleet": {"fleet": {"groups": [{"name": "a", "replicas": 2}, {"name": "b", "replicas": 1,
                                                                  "hardware": "a100-sxm-80gb"}]}},
    "pools": {"pools": {"prefill": {"replicas": 1}, "decode": {"replicas": 1}, "link_GBps": 50}},
    "prefix cache": {"kv": {"prefix_cache": {}}, "workload": PREFIXES},
    "governed": {"clock": "governed", "model": "llama-3.1-8b"},
    "classes": {"classes": {"all": {"priority": 0, "ttft_ms": 30, "percentile": 75}}},
    "backlog": {"workload": {**TRAFFIC, "rate": 400, "output": 200}, "scheduler": {"name": "static",
                                                                                   "max_sequences": 4}},
}  # fmt: skip


def assert_same(ours: Any, theirs: Any, where: str = "") -> None:
    """Nested plain values, numbers to nine digits."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key, value in ours.items():
            assert_same(value, theirs[key], f"{where}.{key}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), where
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    elif isinstance(ours, float):
        assert ours == pytest.approx(theirs, rel=1e-9), where
    else:
        assert ours == theirs, where


def streamed(changes: dict[str, Any], folder: Path, rows: int = 40) -> int:
    """Stream a run to a folder in blocks of so many rows; how many there were."""
    with streaming(folder) as stream:
        stream.facts.rows = rows
        stream.save(simulate(scenario(**changes), flush=stream.facts.flush))
    return len(stream.facts)


@pytest.mark.parametrize("name", [*RUNS, *MORE])
def test_same_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every table has the same rows to the bit (joules to nine digits), every JSON file the same numbers."""
    monkeypatch.setattr(sim.run, "FLUSH_EVERY", 8)
    changes = {**RUNS, **MORE}[name]
    assert streamed(changes, tmp_path / "streamed") >= 1
    simulate(scenario(**changes)).save(str(tmp_path / "whole"))
    names = {file.name for file in (tmp_path / "whole").iterdir()}
    assert {file.name for file in (tmp_path / "streamed").iterdir()} == names
    for file in sorted(names):
        ours, theirs = tmp_path / "streamed" / file, tmp_path / "whole" / file
        if file.endswith(".json") and file != "cost.json":
            assert_same(json.loads(ours.read_text()), json.loads(theirs.read_text()), file)
        elif file.endswith(".parquet"):
            assert_same_rows(ours, theirs)


def assert_same_rows(ours: Path, theirs: Path) -> None:
    """Requests may come in another order."""
    mine, whole = pq.read_table(ours), pq.read_table(theirs)
    mine = mine.sort_by("id") if "id" in mine.column_names else mine
    assert mine.column_names == whole.column_names and len(mine) == len(whole)
    for name in whole.column_names:
        if name == "joules":
            a, b = (np.array(t.column(name).to_pylist(), dtype=float) for t in (mine, whole))
            np.testing.assert_allclose(a, b, rtol=1e-9)
        else:
            assert mine.column(name).to_pylist() == whole.column(name).to_pylist(), name


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.floats(0, 1e12), st.integers(0, 3).map(float)), min_size=1, max_size=300),
    st.integers(1, 9),
)
def test_percentiles_are_exact(values: list[float], parts: int) -> None:
    """Order statistics read in blocks are NumPy's, whatever the numbers and the blocks."""
    order = Order((50.0, 90.0, 95.0, 99.0))
    for _ in SHIFTS:
        for block in np.array_split(np.array(values), parts):
            order.add(block)
        order.turn()
    found, want = order.statistics(), describe(np.array(values))
    assert {k: found[k] for k in ("p50", "p90", "p99", "max")} == {k: want[k] for k in ("p50", "p90", "p99", "max")}
    assert order.percentile(95.0) == np.percentile(values, 95)
    assert (found["mean"], found["std"]) == pytest.approx((want["mean"], want["std"]), rel=1e-9, abs=1e-6)


def test_one_reading_less_is_seen() -> None:
    """The percentiles test can fail: after two readings the numbers are not told apart yet."""
    order, values = Order(), np.linspace(1.0, 1.001, 50)
    for _ in SHIFTS[:2]:
        order.add(values)
        order.turn()
    assert order.percentile(50.0) != np.percentile(values, 50)


def command(folder: Path, *settings: str) -> list[str]:
    """A command that streams the autoregressive benchmark."""
    code = "from sim.cli import main; main()"
    asked = [word for setting in settings for word in ("--set", setting)]
    return [sys.executable, "-c", code, "run", "bench_autoregressive", *asked, "-q", "--stream", "--out", str(folder)]


ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_ctrl_c_leaves_a_whole_folder(tmp_path: Path) -> None:
    """An interrupted stream has all its files, says that it is not complete, and every request has ended somehow."""
    run = subprocess.Popen(command(tmp_path / "r", "workload.requests=2000000", "workload.rate=40"), env=ENV,
                           stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # fmt: skip
    part = tmp_path / f".r.{run.pid}.part"
    for _ in range(600):
        if any(part.glob("facts-*")):
            break
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=120)
    assert run.returncode == 130 and "interrupted" in said
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert not summary["complete"] and summary["requests"]["partial"] > 0
    assert len(pq.read_table(tmp_path / "r" / "requests.parquet")) == summary["requests"]["arrived"]
    assert [file.name for file in tmp_path.iterdir()] == ["r"]


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    """Where no more can be written, one line names the folder, and nothing is left of it."""
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)); "
    words = command(tmp_path / "r", "workload.requests=1500", "workload.rate=100")
    words[2] = limit + words[2]
    run = subprocess.run(words, env=ENV, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 2 and len(run.stderr.splitlines()) == 1, run.stderr
    assert "cannot be written" in run.stderr and str(tmp_path / "r") in run.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", [["--detailed"], ["--uncertainty", "5"]])
def test_what_needs_all_rows_is_refused(option: list[str], tmp_path: Path) -> None:
    """Options that need every row in memory end with one line."""
    words = [*command(tmp_path / "r", "workload.requests=20"), *option]
    run = subprocess.run(words, env=ENV, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 2 and f"{option[0]}: needs all rows in memory" in run.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_memory_does_not_grow_with_the_trace(tmp_path: Path) -> None:
    """From 100 to 200 thousand requests: at most 30 MB more, where rows kept in memory take about 150."""
    peaks = []
    for requests in (100_000, 200_000):
        settings = (f"workload.requests={requests}", "workload.rate=40")
        subprocess.run(command(tmp_path / str(requests), *settings), env=ENV, check=True, capture_output=True)
        peaks.append(json.loads((tmp_path / str(requests) / "cost.json").read_text())["peak_memory_bytes"])
    assert peaks[1] - peaks[0] < 30e6
