"""Calibration through torch: the tensors compute what the witness does, profiles load, what is missing is one line."""

import json
import math
import sys
import warnings

import numpy as np
import pytest
from typer.testing import CliRunner

import hardware_profiles
from sim import calibrate
from sim.analytic.hardware import Device, Engine
from sim.calibration import torch_device
from sim.calibration.cases import fitted, judged
from sim.calibration.session import Session
from sim.calibration.timing import Stopwatch
from sim.cli import app, main
from sim.validation.stand_in import dense, stand_in

pytestmark = pytest.mark.parity  # needs what only .ci/run installs

SMALL = ("fit-96", "fit-192", "test-256")


def refused(monkeypatch, capsys, *arguments):
    """Exit status and what stderr says of a calibration that must not start."""
    monkeypatch.setattr(sys, "argv", ["decodesim", "calibrate", "--here", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code, capsys.readouterr().err


def test_the_tensors_compute_what_the_witness_does():
    """A prompt of 9 and two single tokens after it, grouped heads: logits agree to float32's rounding."""
    torch = pytest.importorskip("torch")
    model = stand_in(dense(48, 3, 6, 2, 80, 90))
    decoder = torch_device.Decoder(model, "cpu")
    tokens = np.random.default_rng(3).integers(0, 90, (2, 11))
    ours, theirs = decoder.new_cache(2), model.new_cache(2)
    for now in (slice(0, 9), slice(9, 10), slice(10, 11)):
        wanted = model.forward(list(tokens[:, now]), theirs)
        got = decoder.forward(torch.from_numpy(tokens[:, now].copy()), ours, now.start)
        assert np.abs(wanted).max() > 0.5 and got.numpy() == pytest.approx(wanted, abs=1e-4)


def test_a_step_gives_the_likeliest_token():
    """Ids in from the host, ids out to the host; the next step goes on from them, as the witness's greedy choice."""
    pytest.importorskip("torch")
    model = stand_in(dense(32, 2, 2, 2, 40, 70))
    decoder, prompts = torch_device.Decoder(model, "cpu"), np.arange(12).reshape(2, 6)
    ours, theirs = decoder.new_cache(2), model.new_cache(2)
    first = decoder.step(prompts, ours, 0)
    assert (first[:, 0] == model.forward(list(prompts), theirs).argmax(-1)).all()
    assert (decoder.step(first, ours, 6)[:, 0] == model.forward(list(first), theirs).argmax(-1)).all()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Profiles written by the command, from the steps of the smallest models; its JSON beside."""
    pytest.importorskip("torch")
    path = tmp_path_factory.mktemp("here") / "lab.yaml"
    with pytest.MonkeyPatch.context() as patch:
        for name, cases in (("fitted", fitted()), ("judged", judged())):
            few = [case for case in cases if case.model in SMALL]
            patch.setattr(torch_device, name, lambda few=few: few)
        command = ["calibrate", "--here", "--device", "torch-cpu", "--repeats", "1", "--out", str(path), "--json"]
        done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.exception
    return path, json.loads(done.output)


def test_both_profiles_load_and_say_what_was_measured(saved):
    """The files pass the suite's own checks, hold intervals, and name torch, not NumPy."""
    path, _ = saved
    device, engine = hardware_profiles.load(path), hardware_profiles.engine(path.with_name("lab-engine.yaml"))
    assert device["kind"] == "cpu" and 1 < device["memory"]["bandwidth_GBps"] < 1e4
    assert engine["name"] == "torch-on-lab" and set(engine["interval"]) >= {"host_us_per_layer"}
    for said in (device["efficiency"]["provenance"], engine["provenance"]):
        assert "--device torch-cpu: torch 2" in said and "fitted to 18 steps" in said and "NumPy" not in said
    assert Device.from_profile(device).memory_Bps > 0 and Engine.from_profile(engine)


def test_steps_that_were_not_fitted_are_predicted(saved):
    """Decode, prefill, and the tail of both: finite errors of times that were really measured."""
    rows = saved[1]["judged"]
    assert [row["comparison"] for row in rows] == ["seconds"] * 3
    assert all(math.isfinite(row["error"]) and row["simulated"] > 0 and row["measured"] > 0 for row in rows)


@pytest.mark.slow
def test_predictions_hold_on_this_machine():
    """All stand-ins, two repeats: the medians within 50 % whatever else the machine is doing (docs: 15 %)."""
    pytest.importorskip("torch")
    from sim.validation.seconds import rows, steps

    decode, prefill, _ = rows(steps(calibrate.on_torch("torch-cpu", "lab", 2026, repeats=2).session))
    assert decode.error < 0.5 and prefill.error < 0.5


def test_a_gpu_that_is_not_there_is_one_line(monkeypatch, capsys, tmp_path):
    """Exit status 2, one line on stderr that names what is missing, no warning of the driver's, nothing written."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: warnings.warn("old driver", stacklevel=1))
    monkeypatch.setattr(warnings, "showwarning", lambda *_, **__: pytest.fail("a warning was shown"))
    code, said = refused(monkeypatch, capsys, "--device", "cuda", "--out", str(tmp_path / "a.yaml"))
    assert code == 2 and said.count("\n") == 1 and not list(tmp_path.iterdir())
    assert "--device cuda: " in said and ("no GPU is visible" in said or "has no CUDA" in said)


@pytest.mark.parametrize("device", ["cuda", "torch-cpu"])
def test_torch_that_is_not_there_is_one_line(monkeypatch, capsys, tmp_path, device):
    """Likewise, and how to install it."""
    monkeypatch.setitem(sys.modules, "torch", None)
    code, said = refused(monkeypatch, capsys, "--device", device, "--out", str(tmp_path / "a.yaml"))
    assert code == 2 and said.count("\n") == 1 and not list(tmp_path.iterdir())
    assert f"--device {device}: torch is not installed; pip install 'decodesim[torch]'" in said


def test_an_unknown_device_is_one_line(monkeypatch, capsys, tmp_path):
    """What is allowed, and what was probably meant."""
    code, said = refused(monkeypatch, capsys, "--device", "cudda", "--out", str(tmp_path / "a.yaml"))
    assert code == 2 and "'cudda'; allowed: cpu, cuda, torch-cpu; did you mean 'cuda'?" in said


def test_what_torch_raises_is_one_line(monkeypatch):
    """A failure on the device is a ValueError with torch's first line; the number of threads is put back."""
    torch = pytest.importorskip("torch")

    def fails(*_):
        raise RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(torch_device, "_session", fails)
    before = torch.get_num_threads()
    with pytest.raises(ValueError, match=r"^calibration: measuring with --device torch-cpu failed: .*out of memory$"):
        torch_device.measured("torch-cpu", before + 1, 1)
    assert torch.get_num_threads() == before


def test_the_clock_waits_for_the_device(monkeypatch):
    """What was launched is done before either reading of the clock, so that it is timed and nothing else is."""
    log = []
    monkeypatch.setattr(Stopwatch, "now", lambda self: log.append("read") or 1.0)
    torch_device.Waiting(budget_s=0.0, wait=lambda: log.append("wait")).best(lambda: log.append("launch"))
    assert log == ["wait", "read", "launch", "wait", "read"] * 4


def test_a_gpu_is_described_as_one(monkeypatch):
    """Its own name and memory, kind gpu; the host's are not written. (Seconds are made up: no GPU is needed.)"""
    torch = pytest.importorskip("torch")
    from test_calibrate import session

    chip = type("Chip", (), {"name": "Chip 1", "total_memory": 80 * 10**9})
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: chip)
    monkeypatch.setattr(calibrate, "measured", lambda *_: Session.of(session().plain()))
    found = calibrate.on_torch("cuda", "chip", 2026)
    device = found.device
    assert (device["vendor"], device["kind"], device["memory"]["capacity_GB"]) == ("Chip 1", "gpu", 80)
