"""Sweeps: points by hand, rows that are runs, what an interruption leaves, and what is refused."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from analysis.report import report_html
from analysis.sweep_files import tidy
from sim.axes import Axis
from sim.cli import app
from sim.executors import Place, crew
from sim.planning import journal as journals
from sim.planning.journal import Journal, code_stamp, scenario_stamp
from sim.planning.points import Range, over, points
from sim.planning.points import settings as settings_of
from sim.run import simulate
from sim.scenario import Scenario
from sim.sweep import about, sweep

TRAFFIC = "workload={rate: 8, arrivals: poisson, prompt: 200, output: 30, requests: 120}"


def small(*more: str) -> Scenario:
    return Scenario.load("chat_h100", [TRAFFIC, *more])


def swept(axes: list[str], design: str = "grid", count: int = 0, **options: Any) -> list[dict[str, Any]]:
    with crew(Place.parse("serial")) as hands:
        return sweep(small(), points(over(axes, design), design, count), hands, **options)


# -- points


def test_a_grid_is_every_combination_the_last_key_fastest() -> None:
    found = points(over(["replicas=1,2", "workload.rate=3,5"], "grid"))
    assert [tuple(one.values()) for one in found] == [(1, 3), (1, 5), (2, 3), (2, 5)]


def test_a_list_takes_values_in_step() -> None:
    found = points(over(["replicas=1,2", "workload.rate=3,5"], "list"), "list")
    assert found == [{"replicas": 1, "workload.rate": 3}, {"replicas": 2, "workload.rate": 5}]
    with pytest.raises(ValueError, match=r"--list: values go in step.*replicas: 2, workload.rate: 3"):
        points(over(["replicas=1,2", "workload.rate=1,2,3"], "list"), "list")


@given(st.integers(1, 60), st.integers(0, 2**32))
@settings(max_examples=40)
def test_a_latin_hypercube_has_one_point_in_each_part_of_every_axis(count: int, seed: int) -> None:
    axes = [Range("a", 0.0, 1.0), Range("b", -5.0, 5.0)]
    found = points(axes, "latin", count, seed)
    for axis in axes:
        shares = np.array([(one[axis.path] - axis.low) / (axis.high - axis.low) for one in found])
        assert sorted(np.floor(shares * count).astype(int)) == list(range(count))


def test_a_latin_hypercube_takes_every_value_of_a_list_equally_often() -> None:
    found = points([Axis("a", ("x", "y", "z")), Range("n", 1, 4)], "latin", 12, 5)
    assert sorted(one["a"] for one in found) == ["x"] * 4 + ["y"] * 4 + ["z"] * 4
    assert sorted(one["n"] for one in found) == sorted([1, 2, 3, 4] * 3)


def test_random_points_stay_inside_and_more_of_them_begin_with_the_same() -> None:
    axes = over(["a=0.5..2.5", "b=3..9", "c=p,q"], "random")
    found = points(axes, "random", 200, 7)
    assert found[:50] == points(axes, "random", 50, 7) and found != points(axes, "random", 200, 8)
    assert all(0.5 <= one["a"] < 2.5 and one["b"] in range(3, 10) and one["c"] in "pq" for one in found)
    assert {one["b"] for one in found} == set(range(3, 10)), "both ends are drawn"
    assert abs(np.mean([one["a"] for one in found]) - 1.5) < 0.15


@pytest.mark.parametrize(
    ("texts", "design", "message"),
    [
        ([], "grid", "--over: missing"),
        (["batch=1,2"], "grid", "no key of a scenario"),
        (["replicas=1", "replicas=2"], "grid", "given twice"),
        (["replicas=1..3"], "grid", "is drawn from"),
        (["replicas=3..1"], "random", "rising"),
        (["replicas=a..b"], "random", "two numbers"),
        (["replicas"], "grid", "must be KEY=VALUES"),
        (["=1,2"], "grid", "must be KEY=VALUES"),
        (["replicas=1:99999999"], "grid", "100,000"),
    ],
)
def test_axes_that_mean_nothing_are_one_line(texts: list[str], design: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        over(texts, design)
    assert "\n" not in str(caught.value)


def test_a_grid_beyond_a_million_points_is_refused_before_it_is_made() -> None:
    with pytest.raises(ValueError, match="points; must be from 1 to 1,000,000"):
        points(over(["replicas=1:10000", "workload.rate=1:10000"], "grid"))


# -- rows


def test_a_row_is_the_summary_of_the_same_run() -> None:
    """Every number as `run` gives it, to the bit."""
    row = swept(["workload.rate=4", "replicas=2"])[0]
    result = simulate(small("workload.rate=4", "replicas=2"))
    found = result.metrics
    assert row["status"] == "ok" and row["workload.rate"] == 4 and row["devices"] == 2
    assert row["ttft_p99_ms"] == found["latency"]["ttft_ms"]["p99"]
    assert row["tpot_mean_ms"] == found["latency"]["tpot_ms"]["mean"]
    assert row["joules_per_output_token"] == found["energy"]["joules_per_output_token"]
    assert row["attainment"] == found["goodput"]["attainment"] and row["finished"] == 120
    assert row["usd_per_hour"] == pytest.approx(2 * result.built.device.usd_per_hour)


def test_a_point_that_does_not_fit_or_makes_no_sense_is_a_row_with_its_reason() -> None:
    rows = swept(["model=llama-3.1-8b,llama-3-70b", "layout.tensor=1,3"])
    assert [row["status"] for row in rows] == ["ok", "invalid", "does_not_fit", "invalid"]
    assert "141 GB" in rows[2]["why"] and "does not divide" in rows[1]["why"]


def test_a_value_that_no_scenario_takes_is_refused_before_anything_runs() -> None:
    ticks: list[int] = []
    with pytest.raises(ValueError, match="replicas: -1"):
        swept(["replicas=1,-1"], tick=lambda done, total: ticks.append(done))
    with pytest.raises(ValueError, match="polcy.*did you mean 'policy'"):
        swept(["polcy=autoregressive"])
    assert not ticks


def test_a_sweep_of_which_no_point_can_run_says_why() -> None:
    with pytest.raises(ValueError, match="no point can run; layout.tensor=3: .*does not divide"):
        swept(["layout.tensor=3,5"])


def test_a_point_that_comes_twice_is_run_once_and_has_two_rows() -> None:
    ticks: list[tuple[int, int]] = []
    rows = swept(["workload.rate=4,4,8"], tick=lambda *at: ticks.append(at))
    assert len(rows) == 3 and {**rows[0], "point": 1} == rows[1] and ticks[-1] == (2, 2)


def test_a_table_has_one_type_a_column() -> None:
    table = tidy([{"a": 1, "b": [1], "c": None}, {"a": 2.5, "b": "x", "d": True}])
    assert table == {"a": [1, 2.5], "b": ["[1]", "x"], "c": [None, None], "d": [None, True]}


# -- what an interruption leaves


def test_rows_in_the_journal_are_not_computed_again(tmp_path: Path) -> None:
    """A row that the journal holds is taken as it is, even where a run would say otherwise."""
    kept = Journal(tmp_path / "out", about(small()))
    kept.add("workload.rate=4", {"status": "ok", "why": "", "finished": -7})
    kept.close()
    again = Journal(tmp_path / "out", about(small()))
    rows = swept(["workload.rate=4,8"], journal=again)
    assert rows[0]["finished"] == -7 and rows[1]["finished"] == 120 and len(again.rows) == 2
    again.close(done=True)
    assert not list(tmp_path.iterdir())


def test_rows_of_another_scenario_or_of_other_code_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Journal(tmp_path / "out", about(small()))
    kept.add("a", {})
    kept.close()
    with pytest.raises(ValueError, match="results of another scenario .* not mixed in; --restart"):
        Journal(tmp_path / "out", about(small("seed=1")))
    code_stamp.cache_clear()
    with monkeypatch.context() as older:
        older.setattr(journals, "__version__", "0.0.1")
        with pytest.raises(ValueError, match="results of another version"):
            Journal(tmp_path / "out", about(small()))
    code_stamp.cache_clear()
    fresh = Journal(tmp_path / "out", about(small("seed=1")), fresh=True)
    assert fresh.rows == {}
    fresh.close()


def test_the_stamp_of_a_scenario_follows_the_files_that_it_names(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,10,5\n1,10,5\n")
    scenario = Scenario.load("chat_h100", [f"workload={{trace: {trace}}}"])
    before = scenario_stamp(scenario)
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,10,5\n1,10,6\n")
    assert scenario_stamp(scenario) != before


def test_a_line_cut_short_is_computed_again_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    kept = Journal(tmp_path / "out", about(small()))
    kept.add("a", {"x": 1})
    kept.add("b", {"x": 2})
    kept.close()
    whole = kept.path.read_text()
    kept.path.write_text(whole[:-9])
    again = Journal(tmp_path / "out", about(small()))
    assert again.rows == {"a": {"x": 1}}
    again.add("c", {"x": 3})
    again.close()
    assert [json.loads(line).get("key") for line in kept.path.read_text().splitlines()] == [None, "a", "c"]
    kept.path.write_text(whole.replace('"key": "a"', '"key": \x00'))
    with pytest.raises(ValueError, match="line 2: is damaged"):
        Journal(tmp_path / "out", about(small()))


@given(st.binary(max_size=300))
@settings(max_examples=150, deadline=None)
def test_any_bytes_in_a_journal_are_an_error_of_one_line_or_ignored(tmp_path_factory: Any, noise: bytes) -> None:
    place = tmp_path_factory.mktemp("noise") / "out"
    (place.parent / ".out.journal").write_bytes(noise)
    try:
        Journal(place, {"study": "sweep"}).close()
    except ValueError as error:
        assert "\n" not in str(error)


def test_two_sweeps_do_not_write_the_same_journal(tmp_path: Path) -> None:
    first = Journal(tmp_path / "out", about(small()))
    with pytest.raises(ValueError, match="somebody else is at work"):
        Journal(tmp_path / "out", about(small()))
    first.close()


@pytest.mark.slow
def test_a_sweep_killed_half_way_resumes_to_the_same_table(tmp_path: Path) -> None:
    """SIGKILL after some rows: the second run computes the others only, and the table is that of an unbroken sweep."""
    words = ["sweep", "chat_h100", "--set", TRAFFIC.replace("120", "700"), "--over", "workload.rate=1:10",
             "--executor", "serial", "-q"]  # fmt: skip
    command = [sys.executable, "-m", "sim.cli", *words]
    whole = subprocess.run([*command, "--out", str(tmp_path / "whole")], capture_output=True, check=True)
    killed = subprocess.Popen([*command, "--out", str(tmp_path / "half")], stdout=subprocess.DEVNULL)
    journal = tmp_path / ".half.journal"
    while killed.poll() is None and (not journal.exists() or len(journal.read_text().splitlines()) < 4):
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    kept = journal.read_text()
    assert 4 <= len(kept.splitlines()) <= 10 and not (tmp_path / "half").exists()
    subprocess.run([*command, "--out", str(tmp_path / "half")], capture_output=True, check=True)
    assert whole.returncode == 0 and not journal.exists()
    assert (tmp_path / "half/sweep.parquet").read_bytes() == (tmp_path / "whole/sweep.parquet").read_bytes()


@pytest.mark.slow
def test_control_c_ends_a_sweep_with_130_and_keeps_its_rows(tmp_path: Path) -> None:
    words = ["sweep", "chat_h100", "--set", TRAFFIC.replace("120", "1000"), "--over", "workload.rate=1:60",
             "--executor", "processes:2", "--out", str(tmp_path / "out")]  # fmt: skip
    running = subprocess.Popen([sys.executable, "-m", "sim.cli", *words], stderr=subprocess.PIPE, text=True)
    journal = tmp_path / ".out.journal"
    while running.poll() is None and (not journal.exists() or len(journal.read_text().splitlines()) < 3):
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130 and "of 60 points are kept" in said and "Traceback" not in said
    assert len(journal.read_text().splitlines()) >= 3 and not (tmp_path / "out").exists()


# -- the command


def invoke(*words: str) -> Any:
    return CliRunner().invoke(app, ["sweep", "chat_h100", "--set", TRAFFIC, "--executor", "serial", *words])


def test_the_command_writes_a_tidy_table_and_what_it_is_of(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    done = invoke("--over", "workload.rate=4,8", "--over", "policy=autoregressive", "--out", out)
    assert done.exit_code == 0, done.output
    table = pd.read_parquet(f"{out}/sweep.parquet")
    assert table["workload.rate"].tolist() == [4, 8] and table["status"].tolist() == ["ok", "ok"]
    assert table["finished"].dtype == np.int64 and table["ttft_p99_ms"].dtype == np.float64
    assert len(pd.read_csv(f"{out}/sweep.csv")) == 2
    said = json.loads((tmp_path / "out/sweep.json").read_text())
    assert said["design"] == "grid" and said["points"] == 2 and said["version"] == code_stamp()
    assert Scenario.load(f"{out}/scenario.yaml").workload["requests"] == 120
    assert "2 points (grid) over workload.rate, policy" in report_html(out)
    again = invoke("--over", "workload.rate=4,8", "--out", out)
    assert isinstance(again.exception, ValueError) and "holds a result already" in str(again.exception)
    assert invoke("--over", "workload.rate=4", "--out", out, "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--random", "3", "--latin", "3"], "one design at a time"),
        (["--grid", "--list"], "one design at a time"),
        (["--random", "0"], "--random: 0"),
        (["--latin", "2000000"], "--latin: 2000000"),
    ],
)
def test_designs_that_mean_nothing_are_one_line(tmp_path: Path, words: list[str], message: str) -> None:
    done = invoke("--over", "workload.rate=4,8", "--out", str(tmp_path / "out"), *words)
    assert isinstance(done.exception, ValueError) and message in str(done.exception)
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_the_settings_of_a_point_are_those_of_set() -> None:
    assert settings_of({"policy.gamma": 3, "variants": [{"moe": {}}], "hardware": "l4"}) == (
        "policy.gamma=3", "variants=[{moe: {}}]", "hardware=l4")  # fmt: skip
