"""A power cap: the clock gives way until the devices draw what it allows, and says no to what cannot be kept."""

import pytest
from output_runs import scenario

from sim import simulate
from sim.analytic.hardware import Clock
from sim.build import build_scenario

LONG = {"rate": "inf", "prompt": 512, "output": 300, "requests": 1600}


def capped(cap_W: float | None, hardware: str = "h100-sxm", **more):
    """Many answers at once, many windows long, under a cap."""
    energy = {} if cap_W is None else {"power_cap_W": cap_W}
    return simulate(scenario(model="llama-3.1-8b", hardware=hardware, workload=LONG, energy=energy, **more))


@pytest.mark.slow
@pytest.mark.parametrize(("hardware", "cap_W"), [("h100-sxm", 350.0), ("a100-pcie-40gb", 180.0)])
def test_a_cap_is_kept_and_costs_time(hardware: str, cap_W: float) -> None:
    """Class default and measured clock alike: mean power within 6 % above the cap, and the work takes longer."""
    free, held = capped(None, hardware), capped(cap_W, hardware)
    assert free.metrics["energy"]["mean_W"] > 1.1 * cap_W
    assert held.metrics["energy"]["mean_W"] < 1.06 * cap_W
    assert held.metrics["duration_s"] > 1.1 * free.metrics["duration_s"]
    assert held.scenario.clock == "governed"


def test_leaping_under_a_cap_is_stepping() -> None:
    """Whole MHz and whole nanojoules: the same requests and the same joules."""
    said = {"model": "llama-3.1-8b", "energy": {"power_cap_W": 250.0}, "workload": {**LONG, "requests": 30}}
    leaping, stepping = (simulate(scenario(**said), stepping=stepping) for stepping in (False, True))
    assert leaping.request_columns["finish_ns"].tolist() == stepping.request_columns["finish_ns"].tolist()
    counted = [int(one.recorder.leaps.frame()["nJ"].sum()) for one in (leaping, stepping)]
    assert counted[0] == counted[1] > 0


def test_a_measured_clock_stays_what_it_is_but_for_its_range() -> None:
    """The A100-PCIe's running watts and steps, its cap as said, and clocks below the lowest that a full cap needs."""
    device = build_scenario(scenario(hardware="a100-pcie-40gb", energy={"power_cap_W": 150.0})).device
    clock = device.clock
    assert (clock.cap_W, clock.busy_W, clock.step_MHz, clock.rated_MHz) == (150.0, 135.7, 15, 1155)
    assert clock.base_MHz == 180 and (clock.rated_MHz - clock.base_MHz) % clock.step_MHz == 0


def test_the_class_default_has_an_interval() -> None:
    """Nobody measured an H100's clock: a guess, and it says so."""
    result = simulate(scenario(energy={"power_cap_W": 300.0}, workload={"rate": 1, "prompt": 9, "output": 3,
                                                                        "requests": 2}))  # fmt: skip
    assert any("its clock under load was not measured" in warning for warning in result.metrics["warnings"])
    assert dict((key, (low, high)) for key, low, high in Clock.of_class(700).interval)["busy_W"] == (0.0, 420.0)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"energy": {"power_cap_W": 140.0}}, "above its idle power .140 W., up to its TDP .700 W."),
        ({"energy": {"power_cap_W": 701.0}}, "energy.power_cap_W: 701: h100-sxm allows caps above"),
        ({"energy": {"power_cap_W": 300.0}, "clock": "fixed"}, "a fixed clock keeps no cap; leave out clock: fixed"),
        ({"energy": {"power_cap_W": -1.0}}, "energy.power_cap_W: -1.0: must be greater than 0"),
        ({"energy": {"rounds": "all"}}, "energy.rounds: 'all': must be 'mean' or 'each'"),
        ({"energy": {"pue": 0.5}}, "energy.pue: 0.5: must be greater than or equal to 1"),
        ({"energy": {"grid": 1.0}}, "energy.grid: unknown key; allowed here: mode, rounds, power_cap_W"),
        ({"cost": {"usd_per_hour": 1.0}}, "cost.usd_per_hour: unknown key; allowed here: usd_per_device_hour"),
        ({"cost": {"usd_per_kWh": True}}, "true and false are allowed only where a key is a switch"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(said, message: str) -> None:
    """Key, value and what is allowed."""
    with pytest.raises(ValueError, match=message) as error:
        build_scenario(scenario(**said))
    assert "\n" not in str(error.value)
