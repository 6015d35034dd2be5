"""The governed clock: its arithmetic by pencil, the A100 it was fitted to, and what a scenario may say of it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from analytic_models import DENSE, device
from engine_setup import TINY_CLOCK

import hardware_profiles
from sim import Scenario, simulate
from sim.analytic.cost import PassCost
from sim.analytic.hardware import Clock, Device
from sim.analytic.work import Work
from sim.build import build_scenario, load_engine
from sim.calibration.serving_a100 import (
    NEUTRAL,
    decodes,
    fit_times,
    kernel_profile,
    loads,
    predicted,
    prefills,
)
from sim.calibration.serving_loads import fit_power, outcome, service
from sim.serving.governor import Governor, Power

POWER = Power(None, TINY_CLOCK, idle_W=20.0, devices=2)  # type: ignore[arg-type]
SMALL = {
    "model": "llama-3.2-1b", "hardware": "a100-pcie-40gb", "engine": "vllm-v1",
    "workload": {"rate": 30, "prompt": 300, "output": 40, "requests": 60},
}  # fmt: skip


# --- by pencil


def test_the_clock_takes_the_root_of_what_the_cap_allows() -> None:
    """Cap 120 W, idle 20: 100 W are allowed. Two devices that drew 400 W each halve the clock of 100 MHz."""
    assert POWER.next_MHz(100, spent_nJ=2 * 400 * 20_000, elapsed_ns=20_000) == 50
    assert POWER.next_MHz(100, spent_nJ=2 * 100 * 20_000, elapsed_ns=20_000) == 100
    assert POWER.next_MHz(100, spent_nJ=2 * 93 * 20_000, elapsed_ns=20_000) == 100  # 103.7, rounded down to a step
    assert POWER.next_MHz(100, spent_nJ=2 * 90 * 20_000, elapsed_ns=20_000) == 105


def test_the_clock_stays_in_its_range() -> None:
    """Nothing drawn: the highest clock; far too much drawn: the lowest."""
    assert POWER.next_MHz(60, 0, 20_000) == POWER.next_MHz(60, 1, 10**9) == TINY_CLOCK.top_MHz
    assert POWER.next_MHz(60, 10**12, 20_000) == TINY_CLOCK.base_MHz


def test_below_the_voltage_floor_units_draw_by_the_clock_alone() -> None:
    """Floor at 80 of 100 MHz: at 90 the cube, 50 * 0.9^3 = 36.45 W; at 40 its 0.4 times 0.8^2 of 50 W, 12.8 W."""
    floored = replace(TINY_CLOCK, voltage_floor_MHz=80)
    assert [floored.busy_W_at(MHz) for MHz in (90, 40)] == pytest.approx([36.45, 12.8], rel=1e-12)


def test_running_units_draw_by_the_cube_of_the_clock() -> None:
    """At half of the rated clock an eighth of 50 W, on two devices, for 1,000 ns, beside 3 uJ: 12,500 + 3,000 nJ."""
    assert TINY_CLOCK.busy_W_at(50) == 6.25
    assert POWER.round_nJ(50, 3e-6, np.array([1000])).tolist() == [3000 + 12_500]
    assert POWER.round_nJ(50, np.array([1e-9, 2.4e-9]), np.array([0, 0])).tolist() == [1, 2]


def test_a_window_lasts_until_the_first_round_that_ends_beyond_it() -> None:
    """19,999 ns after the clock was set nothing happens; at 20,000 it is set, and a new window begins."""
    governor = Governor(POWER)
    governor.spent_nJ = 2 * 400 * 20_000
    governor.tick(19_999)
    assert (governor.MHz, governor.due_ns) == (100, 20_000)
    governor.tick(20_000)
    assert (governor.MHz, governor.since_ns, governor.spent_nJ, governor.due_ns) == (50, 20_000, 0, 40_000)


def test_compute_follows_the_clock_and_memory_does_not() -> None:
    """At half the clock a pass bound by arithmetic takes twice as long, one bound by memory as long as before."""
    chip = replace(device("a100-pcie-40gb"), clock=replace(TINY_CLOCK, base_MHz=50))
    full, half = PassCost(DENSE, chip), PassCost(DENSE, chip).at_clock(50)
    many = Work(4096, 0)
    assert half.device.peaks["bf16"] == full.device.peaks["bf16"] / 2
    assert half.device.memory_Bps == full.device.memory_Bps
    kernels = zip(full.bounds(many), half.bounds(many), strict=True)
    assert all(b.compute_s == 2 * a.compute_s and b.memory_s == a.memory_s for (_, a), (_, b) in kernels)
    assert half.seconds(many) == PassCost(DENSE, chip.at_clock(50)).seconds(many) > 1.5 * full.seconds(many)
    assert half.joules(many) == full.joules(many)
    with pytest.raises(ValueError, match="h100-sxm: its profile has no clock"):
        device("h100-sxm").at_clock(900)


# --- the scenario


def test_who_is_governed_unsaid() -> None:
    """A real engine on a card with clock data is; the ideal engine, and a card without data, are not; words decide."""
    def resolved(**changes: Any) -> str | None:
        return build_scenario(Scenario.parse({**SMALL, **changes})).scenario.clock

    assert resolved() == "governed" and resolved(clock="fixed") == "fixed"
    assert resolved(engine="ideal") == "fixed" and resolved(engine="ideal", clock="governed") == "governed"
    assert resolved(hardware="h100-sxm") == "fixed" and resolved(hardware="h100-sxm", clock="governed") == "governed"


def test_a_clock_without_joules_is_refused() -> None:
    with pytest.raises(ValueError, match=r"clock: governed: .* has no power data in its profile; allowed: fixed"):
        build_scenario(Scenario.parse({**SMALL, "hardware": "tpu-v5e", "engine": "ideal", "clock": "governed"}))
    with pytest.raises(ValueError, match="clock: 'slow'"):
        Scenario.parse({**SMALL, "clock": "slow"})


def test_a_run_tells_its_clock_and_its_joules_hold_the_cap() -> None:
    """Governed, a busy card draws about its cap; at the fixed clock the same work draws more and ends sooner."""
    work = {"concurrency": 64, "prompt": 500, "output": 60, "requests": 600}
    said = {**SMALL, "model": "llama-3.1-8b", "workload": work}
    governed, fixed = (simulate(Scenario.parse({**said, "clock": clock})) for clock in ("governed", "fixed"))
    assert governed.metrics["clock"]["lowest_MHz"] < 1100 and fixed.metrics["clock"] is None
    assert governed.metrics["duration_s"] > 1.1 * fixed.metrics["duration_s"]
    assert 0.9 * 243 < governed.metrics["energy"]["mean_W"] < 1.05 * 243 < fixed.metrics["energy"]["mean_W"]


def test_a_class_default_is_said_aloud() -> None:
    """A clock that nobody measured: a warning, wide intervals, and clocks in thousandths."""
    result = simulate(Scenario.parse({**SMALL, "hardware": "h100-sxm", "clock": "governed"}))
    assert any("its clock under load was not measured: class default" in text for text in result.metrics["warnings"])
    clock = Clock.of_class(700.0)
    assert (clock.rated_MHz, clock.cap_W) == (1000, 700.0)
    assert clock.interval[1] == ("busy_W", 0.0, 420.0)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"rated_MHz": 1201}, "whole steps above base"),
        ({"top_MHz": 1425}, "clock: 915, 1155, 1425, 1410 in steps of 15"),
        ({"cap_W": 50}, "clock.cap_W is 50, allowed: above power.idle_W"),
        ({"busy_W": 500}, "outside its own interval"),
        ({"window_s": 0}, "clock.window_s is 0"), ({"boost_MHz": 1410.0}, "clock.boost_MHz"),
        ({"turbo": 1}, "clock.turbo"),
        ({"voltage_floor_MHz": 1170, "interval": {}}, "voltage_floor_MHz is 1170, allowed: up to"),
    ],
)  # fmt: skip
def test_a_broken_clock_is_refused(change: dict[str, Any], said: str) -> None:
    profile = hardware_profiles.load("a100-pcie-40gb")
    with pytest.raises(ValueError, match=said):
        hardware_profiles.schema.check_device({**profile, "clock": {**profile["clock"], **change}}, "mine.yaml")


# --- the service it was fitted to


def rms(errors: Any) -> float:
    return float(np.sqrt(np.mean(np.square(errors))))


@cache
def fitted() -> dict[str, tuple[float, float, float]]:
    return fit_times([*prefills()[::2], *decodes()[::2]])


@pytest.mark.parametrize("half", [0, 1])
def test_isolated_runs_of_the_a100_service(half: int) -> None:
    """Fitted to every second point, the points left out: prefill 2 %, decode 3 % RMS, the worst 8 %."""
    points = prefills(), decodes()
    found = fitted() if half == 0 else fit_times([point for side in points for point in side[1::2]])
    values = {name: value for name, (value, _, _) in found.items()}
    held = [side[1 - half :: 2] for side in points]
    errors = [predicted(side, values) / [p.measured_s for p in side] - 1 for side in held]
    assert rms(errors[0]) < 0.02 and rms(errors[1]) < 0.03
    assert max(abs(e).max() for e in errors) < 0.08


def test_the_shipped_terms_are_those_of_the_fit() -> None:
    """Kernel profile and engine profile hold what the fit of the points in even places gives, to four digits."""
    own = hardware_profiles.kernel_files.read_kernels(_kernel_file())["libraries"]["vllm"]
    for group, formats in kernel_profile(fitted())["libraries"]["vllm"].items():
        for name, entries in formats.items():
            shipped = own[group][name]["any"]
            made = {key: entries["any"][key] for key in NEUTRAL}
            assert {key: shipped[key] for key in NEUTRAL} == pytest.approx(made, rel=2e-3)
    engine = load_engine("vllm-v1")
    assert engine.sequence_s * 1e6 == pytest.approx(fitted()["host_us_per_sequence"][0], rel=0.01)
    assert engine.request_s * 1e3 == pytest.approx(fitted()["request_ms"][0], rel=0.01)


def test_the_simulator_predicts_the_isolated_points_too() -> None:
    """What a run makes of its passes with the shipped profiles is the fit's own formula."""
    built = service("fixed")
    for point in (prefills()[3], prefills()[9], decodes()[12], decodes()[30]):
        device_s = sum(float(built.costs[0].seconds(work)) for work in point.works)
        host_s = len(point.works) * point.sequences * built.engine.sequence_s + point.requests * built.engine.request_s
        values = {name: value for name, (value, _, _) in fitted().items()}
        assert device_s + host_s == pytest.approx(predicted([point], values)[0], rel=2e-3)


@pytest.mark.slow
def test_clock_and_power_under_sixteen_loads() -> None:
    """Mean clock and mean power within 4 % of the measured ones over the loads, those left out of the fit included."""
    built, measured = service(), loads()
    found = [outcome(built, load) for load in measured]
    clock = np.array([o.mean_MHz / load.mean_MHz - 1 for o, load in zip(found, measured, strict=True)])
    power = np.array([o.mean_W / load.mean_W - 1 for o, load in zip(found, measured, strict=True)])
    for errors in (clock, power):
        assert abs(errors).mean() < 0.025 and abs(errors[1::2]).mean() < 0.025 and abs(errors).max() < 0.065
    durations = [o.duration_s / load.duration_s - 1 for o, load in zip(found, measured, strict=True)]
    assert np.abs(durations).max() < 0.04


def test_three_of_the_loads() -> None:
    """Light, near the knee and far beyond it: the clock within 6.5 %, power and the time to the end within 5 %."""
    built = service()
    for load in (loads()[0], loads()[8], loads()[-1]):
        found = outcome(built, load)
        assert found.mean_MHz == pytest.approx(load.mean_MHz, rel=0.065)
        assert found.mean_W == pytest.approx(load.mean_W, rel=0.05)
        assert found.duration_s == pytest.approx(load.duration_s, rel=0.05)


@pytest.mark.slow
def test_the_shipped_energies_are_those_of_the_fit() -> None:
    """Busy power and the energy of a FLOP from the loads in even places."""
    built = service()
    clock, energy = built.device.clock, built.device.energy
    assert clock is not None and energy is not None
    busy_W, flop_pJ, floor_MHz = fit_power(built, loads()[::2], clock.cap_W)
    assert busy_W == pytest.approx(clock.busy_W, rel=0.03)
    assert flop_pJ == pytest.approx(energy.joules_per_flop("fp16") * 1e12, rel=0.03)
    assert floor_MHz == clock.voltage_floor_MHz


def _kernel_file() -> Any:
    from importlib.resources import files

    return files("hardware_profiles") / "kernels" / "a100-pcie-40gb.yaml"


def test_the_device_reads_its_clock() -> None:
    """Units: seconds become nanoseconds; a profile without the block has no clock."""
    clock = Device.from_profile(hardware_profiles.load("a100-pcie-40gb")).clock
    assert clock is not None and (clock.window_ns, clock.boost_MHz, clock.step_MHz) == (10**9, 1410, 15)
    assert dict((key, (low, high)) for key, low, high in clock.interval)["cap_W"] == (238.0, 250.0)
    assert Device.from_profile(hardware_profiles.load("h100")).clock is None
