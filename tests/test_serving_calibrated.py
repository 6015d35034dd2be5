"""``calibrate --serving``: terms that made a file are found in it again, and files that cannot tell are refused."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

import hardware_profiles
from analysis.bench import bench
from sim import Scenario, simulate
from sim.analytic.work import Work
from sim.build import build_scenario
from sim.calibration.serving_fit import fit_service
from sim.calibration.serving_points import fittable
from sim.calibration.serving_solve import Problem, bootstrap, deviations, minimise
from sim.cli import app

SERVICE = {"model": "qwen2.5-1.5b", "hardware": "l40s", "engine": "vllm-v1"}
SCENARIO = {**SERVICE, "workload": {"rate": 1, "prompt": 1, "output": 2, "requests": 1}}
TRUTH = {"request_ms": 40.0, "host_us_per_sequence": 60.0, "product_speed": 0.8}
LOADS = [(1, 256, 8), (1, 4096, 6), (4, 512, 24), (16, 512, 80), (48, 512, 160), (8, 2048, 32)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Results of a service with the terms of TRUTH, one file a load."""
    folder = tmp_path_factory.mktemp("measured")
    engine = {**hardware_profiles.engine("vllm-v1"), **TRUTH, "interval": {}}
    (folder / "truth.yaml").write_text(yaml.safe_dump(engine), "utf-8")
    made = []
    for users, prompt, count in LOADS:
        load = {"concurrency": users, "prompt": prompt, "output": 32, "requests": count}
        run = simulate(Scenario.parse({**SCENARIO, "engine": str(folder / "truth.yaml"), "workload": load}))
        made.append(str(folder / f"c{users}-{prompt}.json"))
        (folder / f"c{users}-{prompt}.json").write_text(json.dumps(bench(run)), "utf-8")
    return made


def table(tmp_path, rows, **columns):
    """A documented CSV of loads and times, columns overriding."""
    lines = [
        "concurrency,prompt_tokens,output_tokens,requests,mean_ttft_ms,mean_tpot_ms" + "".join(f",{c}" for c in columns)
    ]
    lines += [",".join(map(str, row)) + "".join(f",{v[i]}" for v in columns.values()) for i, row in enumerate(rows)]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n", "utf-8")
    return str(tmp_path / "t.csv")


ROWS = [(c, 512, 32, 10 * c, 50.0 + 5 * c, 6.0 + 0.1 * c) for c in (1, 2, 4, 8)]


def scaled(ttft, tpot):
    """ROWS with times multiplied."""
    return [(*row[:4], row[4] * ttft, row[5] * tpot) for row in ROWS]


@pytest.mark.slow
def test_terms_come_back(files):
    """Simulated with known terms, written as vLLM writes, fitted: each term within its interval, the rest untouched."""
    found = fit_service(fittable(files, SCENARIO), SCENARIO)
    assert set(found.terms) >= set(TRUTH) and not found.dropped
    for name, value in TRUTH.items():
        fitted, low, high = found.terms[name]
        assert low <= value <= high and fitted == pytest.approx(value, rel=0.05), name
    assert np.nanmedian(np.abs(found.fitted)) < 0.01 < 0.15 < np.nanmedian(np.abs(found.before))
    assert np.nanmedian(np.abs(found.held)) < 0.05


@pytest.mark.slow
def test_class_values_stay_where_they_are_right(files, tmp_path):
    """A service with the class's own terms identifies none that differs from them; the profile runs a scenario."""
    made = []
    for number, (users, prompt, count) in enumerate(LOADS[:5]):
        load = {"concurrency": users, "prompt": prompt, "output": 32, "requests": count}
        made.append(tmp_path / f"{number}.json")
        made[-1].write_text(json.dumps(bench(simulate(Scenario.parse({**SCENARIO, "workload": load})))), "utf-8")
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(SCENARIO), "utf-8")
    options = ["--scenario", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "mine.yaml"), "--json"]
    done = CliRunner().invoke(app, ["calibrate", "--serving", *map(str, made), *options])
    said = json.loads(done.output)
    assert done.exit_code == 0 and said["terms"] == {} and set(said["kept"]) >= set(TRUTH)
    assert (tmp_path / "mine.png").exists() and {e["stage"] for e in said["errors"]} >= {"fitted", "held out"}
    assert simulate(Scenario.parse({**SCENARIO, "engine": str(tmp_path / "mine.yaml")})).complete


@pytest.mark.slow
def test_an_outlier_is_named_and_dropped(files, tmp_path):
    """One file with times of another machine: named, left out, and the terms are found all the same."""
    odd = json.loads(Path(files[2]).read_text("utf-8"))
    odd |= {key: value * 3 for key, value in odd.items() if key.endswith("_ms")}
    (tmp_path / "odd.json").write_text(json.dumps(odd), "utf-8")
    found = fit_service(fittable([*files, str(tmp_path / "odd.json")], SCENARIO), SCENARIO)
    assert len(found.dropped) == 1 and "odd.json" in found.dropped[0]
    assert found.terms["request_ms"][0] == pytest.approx(40, rel=0.1)


REFUSED = {
    "three rows": (ROWS[:3], {}, "3 usable points: must be at least 4"),
    "seconds for ms": (scaled(1, 1e-3), {}, "mean_tpot_ms: 0.0061: .*seconds\\? must be milliseconds"),
    "seconds for all": (scaled(1e-3, 1e-3), {}, "mean_ttft_ms: 0.055: .*seconds\\? must be milliseconds"),
    "microseconds": (scaled(1e3, 1e3), {}, "microseconds\\? must be milliseconds"),
    "a constant column": ([(*r[:5], 7.5) for r in ROWS], {}, "mean_tpot_ms: 7.5 in all 4 points"),
    "one load": ([(2, 512, 32, 20, *r[4:]) for r in ROWS], {}, "the same in all 4 points"),
    "NaN": ([(*r[:4], "nan", "nan") for r in ROWS], {}, "0 usable points.*mean_ttft_ms: nan"),
    "mixed engines": (ROWS, {"engine": ["vllm", "vllm", "sglang", "vllm"]}, "line 4: engine: sglang: .* has vllm-v1"),
    "mixed models": (ROWS, {"model": ["qwen2.5-1.5b"] * 3 + ["qwen3-8b"]}, "line 5: model: qwen3-8b"),
    "another model": (ROWS, {"model": ["qwen3-8b"] * 4}, "model: 'qwen3-8b': must be the scenario's, qwen2.5-1.5b"),
    "another device": (ROWS, {"hardware": ["H100"] * 4}, "hardware: 'H100': must be the scenario's, l40s"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(tmp_path, name):
    """One line naming file, column, value and what is allowed."""
    rows, columns, line = REFUSED[name]
    with pytest.raises(ValueError, match=line) as error:
        fittable([table(tmp_path, rows, **columns)], SCENARIO)
    assert "t.csv" in str(error.value) and "\n" not in str(error.value)


def test_a_single_bad_point_is_dropped_and_named(tmp_path):
    """NaN in one row, and one row faster than light: both named, the others kept."""
    rows = [*ROWS, (16, 512, 32, 160, "nan", "nan"), (32, 512, 32, 160, 200.0, 0.001)]
    found = fittable([table(tmp_path, rows)], SCENARIO)
    assert len(found.points) == 4 and any("line 6" in n for n in found.notes)
    assert any("line 7: mean_tpot_ms: 0.001" in n and "dropped" in n for n in found.notes)


@pytest.mark.parametrize(
    ("args", "line"),
    [(["--serving", "x.json"], "--serving: model: missing: add --scenario"),
     (["--serving", "x.json", "--here"], "calibrate: add --here"), (["x.json"], "calibrate: add --here"),
     (["--here", "x.json"], "FILE: says something of served requests; add --serving"),
     (["--kernels", "k.csv", "--engine", "vllm-v1"], "--engine: says something of served requests"),
     (["--serving", "x.json", "--out", "p.txt"], "a profile's name ends in .yaml")],
)  # fmt: skip
def test_options(args, line):
    """What goes with what, in one line."""
    done = CliRunner().invoke(app, ["calibrate", *args])
    assert done.exit_code != 0 and line in str(done.exception)


def test_speeds_of_an_engine_scale_what_kernels_reach(tmp_path):
    """A product speed of one half: a decode step's products take twice as long, all else as before."""
    engine = {**hardware_profiles.engine("vllm-v1"), "host_us_per_sequence": 0.0, "interval": {}}
    seconds = {}
    for speed in (1.0, 0.5):
        (tmp_path / "e.yaml").write_text(yaml.safe_dump({**engine, "product_speed": speed}), "utf-8")
        built = build_scenario(Scenario.parse({**SCENARIO, "engine": str(tmp_path / "e.yaml")}))
        seconds[speed] = float(built.costs[0].seconds(Work.decode(4, 500)))
    assert 1.3 < seconds[0.5] / seconds[1.0] < 2.0
    bad = {**engine, "product_speed": 0.0}
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(bad), "utf-8")
    with pytest.raises(ValueError, match=r"product_speed is 0\.0"):
        hardware_profiles.engine(str(tmp_path / "e.yaml"))


def known(noise):
    """A problem of two terms that matter and one that does not; rows are pairs of points."""
    luck = np.random.default_rng(1)
    matrix = np.hstack([luck.uniform(0.2, 1, (24, 2)), np.zeros((24, 1))])
    wanted = matrix @ [0.5, -0.7, 0.0] + noise * luck.standard_normal(24)
    owner = np.repeat(np.arange(12), 2)

    def residual(at, points):
        return np.where(points[owner], np.tanh(matrix @ at) - np.tanh(wanted), np.nan)

    return Problem(residual, owner, np.full(3, -3.0), np.full(3, 3.0))


def test_the_search_finds_known_terms():
    """Without noise: the terms, to three digits; the term that nothing depends on has no finite deviation."""
    problem = known(0.0)
    found = minimise(problem, np.zeros(3), np.ones(3, dtype=bool))
    assert found.at[:2] == pytest.approx([0.5, -0.7], abs=1e-3)
    assert deviations(found, np.ones(3, dtype=bool))[2] > 1e3


def test_intervals_hold_the_truth():
    """With noise of 1 %: both ends on their own side of the truth, and not wider than they need be."""
    problem, active = known(0.01), np.array([True, True, False])
    low, high = bootstrap(problem, minimise(problem, np.zeros(3), active), active)
    assert (low[:2] <= [0.5, -0.7]).all() and (high[:2] >= [0.5, -0.7]).all() and (high - low).max() < 0.1


def test_a_search_of_some_points_never_asks_for_others():
    """Folds: residuals of other points stay unknown."""
    problem, points = known(0.0), np.arange(12) < 9
    asked = []
    spied = replace(problem, residual=lambda at, p: asked.append(p.copy()) or problem.residual(at, p))
    found = minimise(spied, np.zeros(3), np.array([True, True, False]), points)
    assert all((p == points).all() for p in asked) and np.isnan(found.residual[18:]).all()


def test_a_device_left_out_is_predicted_by_the_others(tmp_path):
    """Perfect timings of an H100: other devices alone come within 15 %, far nearer than the datasheet does."""
    from sim.silicon.users import calibrated

    grid = itertools.product(
        (1, 4, 16, 64, 128, 512, 2048, 4096), (1024, 4096, 14336, 28672), (1024, 2048, 4096, 14336)
    )
    lines = ["m,n,k,backend,dtype,ms"]
    for m, n, k in grid:
        busy = max(2 * m * n * k / (0.7 * 989e12), 2 * (n * k + m * n + m * k) / (0.9 * 3.35e12))
        lines.append(f"{m},{n},{k},vllm,bfloat16,{1e3 * (5e-6 + busy)}")
    (tmp_path / "p.csv").write_text("\n".join(lines), "utf-8")
    rows = calibrated([str(tmp_path / "p.csv")], "h100-sxm").folds
    (out,) = [row for row in rows if row.section.endswith("device left out")]
    assert out.n == 128 and out.median < 0.15 < 0.3 < out.textbook
    assert any(not row.section.endswith("left out") and row.median < 0.05 for row in rows)


def test_steps_of_this_machine_as_a_picture():
    """A session made from a known machine: the picture's predictions are its measured steps."""
    from test_calibrate import session

    from sim.calibration.cases import fitted
    from sim.calibration.fit import fit_session
    from sim.calibration.here_steps import series

    machine, _ = fit_session(session(), fitted())
    found = series(machine, session())
    assert set(found) == {"decode", "prefill"}
    for measured, predicted in found.values():
        assert np.median(np.abs(predicted / measured - 1)) < 0.05
