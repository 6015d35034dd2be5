"""Joules of a run: by op and level they add up to the leaps, by cause to the total; counts by hand; both modes."""

import numpy as np
import pytest
import yaml
from output_runs import RUNS, run, scenario

import hardware_profiles
from analysis.energy import energy_of
from analysis.energy_by_op import LEVELS
from analysis.energy_uptime import up_seconds, uptime
from sim import simulate
from sim.account import pool_places
from sim.serving.record import Table

ALONE = {"rate": 1, "arrivals": "constant", "prompt": 200, "output": 5, "requests": 1}
ADAPTIVE = {"model": "llama-3.1-8b", "policy": {"name": "adaptive", "draft": "llama-3.2-1b"}}


@pytest.mark.parametrize("name", RUNS)
def test_joules_by_op_and_level_are_those_of_the_leaps(name: str) -> None:
    """Two sums of the same rounds, over ops and over leaps, equal to 1e-12; so are their parts."""
    result = run(name)
    found = energy_of(result, result.metrics["duration_s"])
    leaps = found.dynamic + found.running + found.static
    assert leaps == pytest.approx(float(result.accounts.floor.sum()), rel=1e-12)
    section = result.metrics["energy"]
    assert sum(section["by_level"].values()) == pytest.approx(found.dynamic, rel=1e-12)
    assert sum(sum(op.values()) for op in section["by_op"].values()) == pytest.approx(found.dynamic, rel=1e-12)
    assert sum(section["floor"].values()) == pytest.approx(section["floor_joules"], rel=1e-12)
    assert set(section["by_level"]) <= set(LEVELS)


@pytest.mark.parametrize("name", RUNS)
def test_the_floor_is_below_the_ceiling(name: str) -> None:
    """The class default puts peak FLOPs, peak bandwidth and idle power at the TDP, so no leap draws more."""
    result = run(name)
    assert (result.accounts.floor <= result.accounts.ceiling * 1.01).all()
    assert result.metrics["energy"]["floor_joules"] <= result.metrics["energy"]["ceiling_joules"]


def test_one_request_by_hand() -> None:
    """200 prompt and 4 decode tokens of llama-3.2-1b: FLOPs at 0.404 pJ, a head of 128256 x 2048 read 5 times."""
    by_op = simulate(scenario(workload=ALONE)).metrics["energy"]["by_op"]
    flops = 16 * 2 * 204 * 2048 * 8192 * 2
    assert by_op["mlp.up"]["flops"] == pytest.approx(flops * 0.404e-12, rel=1e-12)
    assert by_op["logits"]["memory"] == pytest.approx(5 * 128256 * 2048 * 2 * 48e-12, rel=1e-3)
    assert by_op["logits"]["flops"] == pytest.approx(5 * 2 * 128256 * 2048 * 0.404e-12, rel=1e-12)


def test_links_cost_joules_too() -> None:
    """Two devices: all-reduces at 80 pJ a byte, on both of them; one device has none."""
    result = run("two devices")
    links = float(result.accounts.counts["link_bytes"].sum())
    assert result.metrics["energy"]["by_level"]["link"] == pytest.approx(2 * links * 80e-12, rel=1e-12)
    assert "link" not in run("plain").metrics["energy"]["by_level"]


def test_drafts_are_apart() -> None:
    """What drafting takes can be read off: every op of the draft has a name of its own."""
    by_op = run("speculative").metrics["energy"]["by_op"]
    assert by_op["draft mlp.up"]["memory"] > 0 and by_op["mlp.up"]["memory"] > by_op["draft mlp.up"]["memory"]


def test_static_and_idle_power_fill_the_time() -> None:
    """Two replicas from start to end at 140 W idle: busy and idle seconds are all of it."""
    result = run("two replicas")
    section, duration_s = result.metrics["energy"], result.metrics["duration_s"]
    assert section["floor"]["static"] + section["floor"]["idle"] == pytest.approx(2 * 140 * duration_s, rel=1e-12)
    busy_s = uptime(result, duration_s).busy_s.sum()
    assert section["floor"]["static"] == pytest.approx(140 * busy_s, rel=1e-12)


def test_tdp_mode_is_the_ceiling() -> None:
    """700 W while rounds run and 140 W between; requests share it; the floor is still told."""
    plain, result = run("plain"), simulate(scenario(energy={"mode": "tdp"}))
    section, duration_s = result.metrics["energy"], result.metrics["duration_s"]
    busy_s = result.metrics["utilisation"]["busy"] * duration_s
    assert section["joules"] == pytest.approx(700 * busy_s + 140 * (duration_s - busy_s), rel=1e-9)
    assert float(result.request_columns["joules"].sum()) == pytest.approx(section["busy_joules"], rel=1e-9)
    assert section["floor_joules"] == plain.metrics["energy"]["joules"]
    assert section["joules"] == plain.metrics["energy"]["ceiling_joules"]


def test_hosts_data_centre_and_grid() -> None:
    """50 W of host for each of two devices; PUE and intensity multiply all of it."""
    said = {"host_W": 50.0, "pue": 1.5, "grid_gCO2_per_kWh": 100.0}
    result = simulate(scenario(replicas=2, energy=said))
    section, duration_s = result.metrics["energy"], result.metrics["duration_s"]
    assert section["host_joules"] == pytest.approx(2 * 50 * duration_s)
    assert section["joules"] == pytest.approx(run("two replicas").metrics["energy"]["joules"] + 100 * duration_s)
    assert section["kWh"] == pytest.approx(section["joules"] * 1.5 / 3.6e6)
    assert section["gCO2"] == pytest.approx(section["kWh"] * 100)


def test_each_round_counted_is_exact() -> None:
    """Ragged drafts: leaping and stepping count the same nanojoules; the mean round is over 1 % off, by op too."""
    each = {**ADAPTIVE, "energy": {"rounds": "each"}, "workload": {**ALONE, "rate": 10, "output": 60, "requests": 30}}
    leaping, stepping = (simulate(scenario(**each), stepping=stepping) for stepping in (False, True))
    counted = [int(one.recorder.leaps.frame()["nJ"].sum()) for one in (leaping, stepping)]
    assert counted[0] == counted[1] > 0
    dynamic = leaping.metrics["energy"]["floor"]["dynamic"]
    assert dynamic == pytest.approx(counted[0] * 1e-9, rel=1e-12)
    assert dynamic == pytest.approx(stepping.metrics["energy"]["floor"]["dynamic"], rel=1e-12)
    mean = simulate(scenario(**each | {"energy": {}})).metrics["energy"]["floor"]["dynamic"]
    assert abs(mean / dynamic - 1) > 0.01
    joules = [np.asarray(one.request_columns["joules"]) for one in (leaping, stepping)]
    np.testing.assert_allclose(*joules, rtol=1e-9)


def test_more_than_the_tdp_is_said() -> None:
    """An A100-PCIe at its full-power sibling's rates draws over 250 W by coefficients; a governed one does not."""
    burst = {"rate": "inf", "prompt": 1024, "output": 2, "requests": 60}
    for clock, warns in (("fixed", True), ("governed", False)):
        result = simulate(scenario(hardware="a100-pcie-40gb", clock=clock, workload=burst))
        assert any("more than the TDP" in warning for warning in result.metrics["warnings"]) == warns
    assert result.metrics["energy"]["floor"]["running"] > 0


def test_unknown_power_is_null(tmp_path) -> None:
    """A device without power data: no joules, no carbon, and the bill is there all the same."""
    profile = hardware_profiles.load("h100-sxm")
    profile |= {"name": "mine", "aliases": [], "power": {"tdp_W": None, "idle_W": None}}
    profile["energy"]["pJ_per_FLOP"] = dict.fromkeys(profile["energy"]["pJ_per_FLOP"])
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(profile))
    found = simulate(scenario(hardware=str(tmp_path / "mine.yaml"), energy={"rounds": "each"}, workload=ALONE)).metrics
    assert found["energy"]["joules"] is found["energy"]["gCO2"] is found["energy"]["floor_joules"] is None
    assert found["cost"]["usd"] > 0


def test_up_seconds_of_lives() -> None:
    """By hand: up from 1 to 3 s and from 8 s on, never, all the time; what is behind the end does not count."""
    lives = {
        "replica": [0, 0, 1, 3],
        "up_ns": [10**9, 8 * 10**9, 10**10, 0],
        "down_ns": [3 * 10**9, -1, -1, 99 * 10**9],
    }
    assert up_seconds(lives, 4, 10.0).tolist() == [4.0, 0.0, 10.0, 10.0]
    assert up_seconds(None, 2, 3.0).tolist() == [3.0, 3.0]


def test_lives_say_whose_replica_it_was() -> None:
    """Replicas 0 and 2 of the first group, 1 of the second; without lives, in the order of the pools."""

    class Recorder:
        lives = Table(["replica", "group", "up_ns", "down_ns"])

    assert pool_places([("a", 2), ("b", 1)], Recorder()).tolist() == [0, 0, 1]
    for row in ((0, 0, 0, 5), (1, 1, 0, 9), (2, 0, 6, 9)):
        Recorder.lives.append(row)
    assert pool_places([("a", 1), ("b", 1)], Recorder()).tolist() == [0, 1, 0]
