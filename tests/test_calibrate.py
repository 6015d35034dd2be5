"""Calibration: what follows from times is right on machines that are known, and the files it writes can be used."""

import json
import subprocess
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import hardware_profiles
from sim import calibrate
from sim.analytic.cost import PassCost
from sim.analytic.hardware import Device
from sim.analytic.work import Work
from sim.calibration import fit, probes
from sim.calibration.cases import Case, fitted
from sim.calibration.session import Session, run
from sim.calibration.timing import Stopwatch
from sim.cli import app
from sim.scenario import Scenario
from sim.validation.stand_in import dense
from sim.variants import build
from sim.variants.packed_products import PackedProducts

KNOWN = {"matmul": 1e-11, "elementwise": 1e-9, "decode_attention": 5e-11, "prefill_attention": 4e-11, "memory": 1e-10,
         "onchip": 4e-11, "pack": 5e-10, "step": 1e-4, "layer": 1.2e-4, "sequence": 4e-5}  # fmt: skip


def times(scale=1.0):
    """Probe times of a machine of 100 GFLOP/s, 20 GB/s, 70 GB/s up to some 20 MB."""
    streams = {f"stream.{mb}": scale * mb * 1e6 / (7e10 if mb <= 16 else 2e10) for mb in probes.STREAM_MB}
    rates = {f"rate.{m}.{k}.{n}": scale * (2e-11 * m * k * n + 5e-10 * k * n) for m, k, n in probes.RATES}
    return streams | rates


def session(scales=(1.0, 1.1)):
    """Two repeats of that machine, the second a little slower."""
    cost = [KNOWN[name] for name in fit.FEATURES]
    took = {c: float(fit.features(c.shape, c, fit._held(c.shape) <= 22e6) @ cost) for c in fitted()}
    return Session([times(s) for s in scales], [(c, [t * s for s in scales]) for c, t in took.items()])


def test_a_known_machine_is_found():
    """Rates and host times come back: those that decide within 10 %, in the right unit."""
    machine = fit.fit(times(), {case: seconds[0] for case, seconds in session().steps})
    assert machine.peak_flops * machine.matmul == pytest.approx(1e11, rel=0.1)
    assert machine.memory_Bps * machine.memory_share == pytest.approx(1e10, rel=0.1)
    assert machine.pack_s == pytest.approx(5e-10, rel=0.1)
    assert machine.layer_s == pytest.approx(1.2e-4, rel=0.1) and machine.sequence_s == pytest.approx(4e-5, rel=0.2)
    assert 16e6 < machine.onchip_bytes < 32e6


def test_ranges_hold_the_value_and_every_repeat():
    """The value is that of the best repeat; the slower one widens the range."""
    machine, ranges = fit.fit_session(session(), fitted())
    assert all(ranges[name][0] <= value <= ranges[name][1] for name, value in asdict(machine).items())
    assert ranges["layer_s"][1] == pytest.approx(1.1 * machine.layer_s, rel=1e-6)


@given(
    st.lists(st.floats(0.1, 10), min_size=3, max_size=3), st.integers(0, 10**6), st.sets(st.integers(0, 2), max_size=2)
)
def test_nonnegative_least_squares(answer, seed, zero):
    """Exact times give the answer back, zeros included; contradictory ones never a negative number."""
    rows = np.random.default_rng(seed).uniform(0.1, 1, (30, 3)) * [1e3, 1, 1e-3]
    wanted = np.array([0.0 if i in zero else x for i, x in enumerate(answer)])
    found = fit.nonnegative(rows, rows @ wanted)
    assert rows @ found == pytest.approx(rows @ wanted, rel=0.02)
    assert (fit.nonnegative(rows, np.random.default_rng(seed).uniform(1, 2, 30)) >= 0).all()


def test_features_are_the_simulators_counts_by_hand():
    """d 8, one layer, 2 heads of 4, one KV head, FFN 10, vocabulary 16: one token after 5, counted with a pencil."""
    shape = dense(8, 1, 2, 1, 10, 16)
    got = dict(zip(fit.FEATURES, fit.features(shape, Case("fit-96", "decode", 1, 24), False), strict=True))
    case = Case("fit-96", "decode", 1, 24)
    work = Work.decode(1, 25)
    weights = 8 * 16 + 8 * 8 + 2 * 8 * 10 + 10 * 8  # qkv, out, up, down
    norms, logits = 3 * 8, 8 * 16
    assert got["matmul"] == 2 * (weights + logits) and got["step"] == got["layer"] == got["sequence"] == 1
    assert got["decode_attention"] == 25 * (2 * 2 * 2 * 4 + 5 * 2) and got["prefill_attention"] == 0
    assert got["memory"] == 4 * (weights + norms + logits + 8 + 24 * 8 + 8)  # embedding row, cached KV, new KV
    assert got["pack"] == 0 and work == case.work
    assert fit.features(shape, case, True)[fit.FEATURES.index("onchip")] == 4 * (weights + logits)


def test_packing_is_charged_where_rows_are_many():
    """One row: none. Few multiply-adds: none. Else the weights once, whatever the number of rows."""
    shape = dense(64, 1, 4, 2, 128, 256)
    inputs = {}
    for rows in (1, 4, 40):
        done = PassCost(shape, Device.from_profile(hardware_profiles.load("epyc")), variants=[PackedProducts(30_000)])
        inputs[rows] = {op.name: float(op.inputs) for op in done.ops(Work.decode(rows, 9)) if op.inner}
    assert not any(inputs[1].values())
    assert inputs[4]["attn.out"] == 0 and inputs[4]["mlp.up"] == 64 * 256
    assert inputs[40] == {"attn.qkv": 64 * 128, "attn.out": 64 * 64, "mlp.up": 64 * 256, "mlp.down": 128 * 64,
                          "logits": 64 * 256}  # fmt: skip


def test_packing_costs_the_quantise_term():
    """Seconds of a pass grow by quantise * weights / bandwidth, tables and ops alike; options are checked."""
    profile = hardware_profiles.load("epyc")
    profile["efficiency"]["matmul"]["any"]["quantise"] = 10.0
    device, shape, work = Device.from_profile(profile), dense(64, 1, 4, 2, 128, 256), Work.decode(40, 9)
    plain = PassCost(shape, Device.from_profile(hardware_profiles.load("epyc")), variants=[PackedProducts(0)])
    packed = PassCost(shape, device, variants=build([{"packed_products": {"small": 0}}]))
    weights = 64 * 128 + 64 * 64 + 64 * 256 + 128 * 64 + 64 * 256
    extra = 10.0 * weights / device.memory_Bps
    assert packed.seconds(work) - plain.seconds(work) == pytest.approx(extra, rel=1e-6)
    assert packed.seconds(work) == pytest.approx(sum(packed.causes(work).values()), rel=1e-9)
    for wrong in (-1, 1.5, True):
        with pytest.raises(ValueError, match=r"^variants\.packed_products\.small: "):
            PackedProducts(wrong)


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Profiles of the known machine, written by the command; nothing is measured."""
    monkeypatch.setattr(calibrate, "timed", lambda threads, repeats, what: session() if what == "fit" else bare())
    done = CliRunner().invoke(app, ["calibrate", "--here", "--out", str(tmp_path / "lab.yaml")])
    assert done.exit_code == 0, done.output
    return tmp_path / "lab.yaml", done.output


def bare():
    """Probes without steps."""
    return Session([times()], [])


def test_profiles_load_and_a_scenario_runs_on_them(saved):
    """The device and engine files pass the suite's checks, hold intervals, and serve a scenario."""
    from sim.run import simulate

    path, output = saved
    device, engine = hardware_profiles.load(path), hardware_profiles.engine(path.with_name("lab-engine.yaml"))
    assert device["memory"]["bandwidth_GBps"] == pytest.approx(20.0) and device["kind"] == "cpu"
    assert engine["host_us_per_layer"] == pytest.approx(120, rel=0.1)
    low, high = engine["interval"]["host_us_per_layer"]
    assert low < high and "GB/s" in output and str(path) in output.replace("\n", "")
    scenario = Scenario.parse({
        "model": "smollm2-135m", "hardware": str(path), "engine": str(path.with_name("lab-engine.yaml")),
        "precision": {"weights": "fp32", "activations": "fp32", "kv": "fp32"}, "variants": ["packed_products"],
        "workload": {"arrivals": "constant", "rate": 1, "requests": 2, "prompt": 16, "output": 4},
    })  # fmt: skip
    assert simulate(scenario).metrics["requests"]["finished"] == 2


def test_an_earlier_profile_is_not_lost(saved):
    """Without --overwrite the file stays as it is; --here and a name are asked for."""
    path, _ = saved
    before = path.read_bytes()
    for arguments, said in (
        (["--here", "--out", str(path)], "exists; add --overwrite"),
        (["--out", str(path)], "add --here"),
        (["--here", "--out", "x.txt"], "ends in .yaml"),
    ):
        done = CliRunner().invoke(app, ["calibrate", *arguments])
        assert done.exit_code != 0 and said in str(done.exception)
    assert path.read_bytes() == before


def test_a_child_that_dies_is_one_line(monkeypatch):
    """Whatever kills the measuring process ends in a ValueError that says so."""
    def dies(*args, **options):
        raise subprocess.CalledProcessError(1, "x", stderr="Traceback\nMemoryError: no room")

    monkeypatch.setattr(subprocess, "run", dies)
    with pytest.raises(ValueError, match="measuring with 1 threads failed: MemoryError: no room"):
        calibrate.timed(1, 1, "probes")


def test_nonsense_times_are_refused():
    """A probe that took no time at all is no measurement."""
    broken = session()
    broken.probes[0]["stream.128"] = 0.0
    with pytest.raises(ValueError, match="calibration: .*measure"):
        fit.fit_session(broken, fitted())


def test_a_session_survives_json():
    """What the measuring process prints is what it measured."""
    one = session()
    assert Session.of(json.loads(json.dumps(one.plain()))) == one


def test_the_best_of_several_calls():
    """The first call warms up and is not counted, nor is what prepares a call; at least three are."""
    clock = iter([0, 9, 10, 12, 20, 21, 30, 35, 40, 44])
    watch, log = Stopwatch(budget_s=0.0), []
    object.__setattr__(watch, "now", lambda: float(next(clock)))
    assert watch.best(lambda: log.append("call"), lambda: log.append("prepare")) == 1.0
    assert log == ["prepare", "call"] * 4


def test_every_case_is_timed_in_every_repeat():
    """Probes and cases take turns, each once a repeat."""
    case = Case("fit-96", "decode", 1, 24)
    found = run({"a": lambda watch: 1.0}, [case, replace(case, phase="prefill")], 2, Stopwatch(budget_s=0.0))
    assert found.probes == [{"a": 1.0}] * 2
    assert [len(seconds) for _, seconds in found.steps] == [2, 2] and all(t > 0 for _, s in found.steps for t in s)
