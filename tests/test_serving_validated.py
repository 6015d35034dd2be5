"""``validate --serving``: users' results predicted row by row; what a run wrote itself comes back without error."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from analysis.bench import bench
from sim import Scenario, simulate
from sim.cli import app
from sim.silicon import yosyp
from sim.silicon.named import device_of, engine_of, precision_of
from sim.silicon.served import LAYOUTS, served
from sim.silicon.user_points import Service

DATA = Path("analysis/data/serving")
SERVICE = {"model": "qwen2.5-1.5b", "hardware": "l40s", "engine": "vllm-v1"}
LOADS = [{"concurrency": 4, "prompt": 300, "output": 40, "requests": 24},
         {"rate": 3, "arrivals": {"kind": "gamma", "burstiness": 1, "rescale": True}, "prompt": 200, "output": 30,
          "requests": 30}]  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Files that our own runs wrote, by load; detailed for the second."""
    folder = tmp_path_factory.mktemp("served")
    files = []
    for number, load in enumerate(LOADS):
        found = bench(simulate(Scenario.parse({**SERVICE, "workload": load})), detailed=number == 1)
        files.append(folder / f"r{number}.json")
        files[-1].write_text(json.dumps({**found, "backend": "openai-chat"}), "utf-8")
    return files


def invoke(*args):
    """The command's (exit code, output)."""
    done = CliRunner().invoke(app, list(map(str, args)))
    return done, " ".join(str(done.exception or "").split())


def test_own_results_come_back(results):
    """The same model, hardware, engine, seed and load: every predicted number is the measured one."""
    for file in results:
        found = served(str(file), Service(SERVICE))
        assert not found.unpredicted and len(found.tables) >= 9
        assert max(row.mean for row in found.tables) < 1e-9, file


def test_a_wrong_engine_shows(results):
    """The check can fail: without host time, TTFT is predicted far too low."""
    found = served(str(results[0]), Service({**SERVICE, "engine": "ideal"}))
    (ttft,) = [row for row in found.tables if row.quantity == "mean_ttft_ms"]
    assert ttft.bias < -0.2 and ttft.kind == "dense" and ttft.layout == "TP1"


def test_the_command_and_its_files(results, tmp_path):
    """Tables as text and as JSON, rows with predictions beside what was measured."""
    options = ("--device", "l40s", "--engine", "vllm-v1")
    done, _ = invoke("validate", "--serving", results[0], *options, "--out", tmp_path / "rows.csv")
    assert done.exit_code == 0 and "mean_tpot_ms" in done.output and "1 rows, 0 without" in done.output
    rows = pd.read_csv(tmp_path / "rows.csv")
    assert rows["predicted_mean_ttft_ms"][0] == pytest.approx(rows["mean_ttft_ms"][0])
    done, _ = invoke("validate", "--serving", results[0], *options, "--json")
    said = json.loads(done.output)
    assert said["rows"] == 1 and said["unpredicted"] == {} and said["tables"][0]["n"] == 1


@pytest.mark.parametrize(
    ("args", "line"),
    [(("--serving", "{}"), "hardware: missing: name it in the file, or add --device"),
     (("--serving", "nowhere.json"), "nowhere.json: no such file"),
     (("--serving", "{}", "--engine", "nope"), "no engine profile 'nope'"),
     (("--serving", "{}", "--device", "h1000"), "no device profile 'h1000'"),
     (("--serving", "{}", "--scenario", "nope"), "no scenario 'nope'"),
     (("--serving", "{}", "--out", "x.txt"), "--out: x.txt: a table's name ends in .csv or .parquet"),
     (("--serving", "{}", "--kernels", "x"), "one at a time"), (("--scenario", "x"), "add --serving FILE"),
     (("--serving", "{}", "--profile", "x"), "--profile: says something of kernel timings")],
)  # fmt: skip
def test_refusals(results, args, line):
    """One line naming the option or key."""
    done, said = invoke("validate", *(a.format(results[0]) for a in args))
    assert done.exit_code != 0 and line in said and "\n" not in str(done.exception)


def test_rows_nobody_can_predict_are_kept_and_counted(tmp_path):
    """Unknown models, devices, engines and lengths beyond the context: a reason each, the others predicted."""
    text = (
        "model,hardware,engine,concurrency,prompt_tokens,output_tokens,requests,mean_ttft_ms,mean_tpot_ms\n"
        "qwen2.5-1.5b,l40s,vllm-v1,2,128,16,8,30,5\nno-model,l40s,vllm-v1,2,128,16,8,30,5\n"
        "qwen2.5-1.5b,no-gpu,vllm-v1,2,128,16,8,30,5\nqwen2.5-1.5b,l40s,no-engine,2,128,16,8,30,5\n"
        "qwen2.5-1.5b,l40s,vllm-v1,2,99999999,16,8,30,5\n"
    )
    (tmp_path / "t.csv").write_text(text, "utf-8")
    found = served(str(tmp_path / "t.csv"), Service({}))
    assert len(found.frame) == 5 and sum(found.unpredicted.values()) == 4
    assert found.frame["predicted_mean_ttft_ms"].notna().tolist() == [True, False, False, False, False]
    assert any("no such device" in reason for reason in found.unpredicted)


@pytest.mark.parametrize(
    ("layout", "file", "rms", "worst"),
    [(yosyp.PREFILLS, "ground_truth_yosyp_a100_prefill_batch1.csv", 0.02, 0.08),
     (yosyp.DECODES, "ground_truth_yosyp_a100_decode_steps.csv", 0.03, 0.08)],
)  # fmt: skip
def test_the_measured_a100_service(layout, file, rms, worst):
    """Prompts alone within 2 % RMS, decode steps within 3 %, none off by more than 8 %, through the simulator."""
    found = served(str(DATA / file), Service({}))
    measured, predicted, _ = layout.pairs()[0]
    errors = (found.frame[predicted] / found.frame[measured] - 1).to_numpy(float)
    assert np.sqrt((errors**2).mean()) <= rms and np.abs(errors).max() <= worst


@pytest.mark.slow
def test_sustained_loads():
    """Mean clock and power of the same card within 4 % at the median, as the issue asks."""
    found = served(str(DATA / "a100_pcie_clock_under_load.csv"), Service({}))
    medians = {row.quantity: row.median for row in found.tables}
    assert medians["mean clock"] <= 0.04 and medians["mean power"] <= 0.04 and medians["duration"] <= 0.04


def test_latencies_of_loads_are_judged_where_a_file_has_them(tmp_path):
    """Columns of TTFT, TPOT and E2EL beside clock and power, in either spelling, get predictions and tables."""
    frame = pd.read_csv(DATA / "a100_pcie_clock_under_load.csv").head(1).drop(columns="duration_s")
    frame["arrivals"] = "Poisson open-loop, 10 s hold"
    frame = frame.assign(mean_tpot_ms=20.0, ttft_p50_ms=60.0, e2e_mean_ms=2000.0)
    frame.to_csv(tmp_path / "loads.csv", index=False)
    found = served(str(tmp_path / "loads.csv"), Service({}))
    assert {row.quantity for row in found.tables} >= {"mean clock", "mean_tpot_ms", "ttft_p50_ms", "e2e_mean_ms"}
    assert all(row.n == 1 and row.median < 0.5 for row in found.tables)


def test_every_layout_is_told_apart():
    """No layout's columns are among another's, and each names what it compares."""
    for one in LAYOUTS:
        assert [other.name for other in LAYOUTS if other.matches(set(one.columns))] == [one.name]
        assert all(measured and predicted.startswith("predicted_") for measured, predicted, _ in one.pairs())


def test_hostile_tables_of_a_known_layout(tmp_path):
    """Cells that are words, empty or absurd leave a reason, never a crash."""
    frame = pd.read_csv(DATA / "ground_truth_yosyp_a100_decode_steps.csv").head(4).astype(object)
    frame.loc[0, "batch"], frame.loc[1, "gpu"], frame.loc[2, "tp"] = "many", "abacus", 7
    frame.to_csv(tmp_path / "odd.csv", index=False)
    found = served(str(tmp_path / "odd.csv"), Service({}))
    assert (found.frame["reason"] != "").tolist() == [True, True, True, False]
    (tmp_path / "cut.csv").write_bytes(b'a,b\n"1,2\n')
    with pytest.raises(ValueError, match=r"cut\.csv"):
        served(str(tmp_path / "cut.csv"), Service({}))


def test_names_of_the_trade():
    """Spellings of measured data, as profiles are called here."""
    assert device_of("A100-PCIE-40GB (250 W cap active ~95% of samples)") == "a100-pcie-40gb"
    assert device_of("NVIDIA H100 80GB HBM3") == "h100-sxm" and device_of("h200_sxm") == "h200-sxm"
    assert engine_of("vLLM 0.20.1 (V1, async scheduling)") == "vllm-v1" and engine_of("trtllm") == "tensorrt-llm"
    assert precision_of("float16") == {"weights": "fp16", "activations": "fp16", "kv": "fp16"}
    assert precision_of("fp8")["weights"] == "fp8"
