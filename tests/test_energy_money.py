"""Dollars: rent by the hour, shared out by device time, and what a plan is ranked by."""

import pytest
from output_runs import RUNS, TRAFFIC, run, scenario

from analysis.energy_money import cost_of
from sim import simulate
from sim.serving.record import Table


@pytest.mark.parametrize("name", RUNS)
def test_prices_times_tokens_are_the_bill(name: str) -> None:
    """Input and output at their split prices pay for everything, idle time included."""
    found = run(name).metrics
    split, requests = found["cost"]["split"], run(name).request_columns
    done = requests["status"] == "finished"
    tokens = requests["prompt_tokens"][done].sum(), (requests["output_tokens"] * requests["samples"])[done].sum()
    prices = split["usd_per_million_input_tokens"], split["usd_per_million_output_tokens"]
    paid = sum(count * price / 1e6 for count, price in zip(tokens, prices, strict=True))
    assert paid == pytest.approx(found["cost"]["usd"], rel=1e-12)
    assert split["usd_input"] + split["usd_output"] == pytest.approx(found["cost"]["usd"], rel=1e-12)


def test_what_only_reads_pays_for_reading() -> None:
    """One token an answer: the prefill emits it, so the whole bill is the prompts'."""
    split = run("one token").metrics["cost"]["split"]
    assert split["prefill_share"] == 1 and split["usd_output"] == 0


def test_each_pool_pays_for_its_own() -> None:
    """Prompts on one A100 and answers on one H100: idle time of either belongs to what it is there for."""
    pools = {"link_GBps": 50.0, "prefill": {"hardware": "a100-sxm-80gb"}, "decode": {}}
    found = simulate(scenario(pools=pools, workload={**TRAFFIC, "requests": 30})).metrics
    hours = found["duration_s"] / 3600
    assert found["cost"]["split"]["usd_input"] == pytest.approx(3.4309 * hours)
    assert found["cost"]["split"]["usd_output"] == pytest.approx(6.88 * hours)
    assert found["cost"]["usd_per_hour"] == pytest.approx(3.4309 + 6.88)
    assert found["cost"]["price"] == "AWS p4de per GPU, 2026-11-09; AWS p5 per GPU, 2026-11-09"


def test_a_price_of_ones_own_and_electricity() -> None:
    """Two dollars an hour for each of two devices, and ten cents for each kilowatt-hour at the meter."""
    said = {"usd_per_device_hour": 2.0, "usd_per_kWh": 0.1}
    found = simulate(scenario(replicas=2, cost=said)).metrics
    rent = 2 * 2.0 * found["duration_s"] / 3600
    assert found["cost"]["usd_electricity"] == pytest.approx(0.1 * found["energy"]["kWh"])
    assert found["cost"]["usd"] == pytest.approx(rent + 0.1 * found["energy"]["kWh"])
    assert found["cost"]["price"] == "cost.usd_per_device_hour" and found["cost"]["devices"] == 2


def test_who_is_down_costs_nothing(monkeypatch) -> None:
    """A second replica that was up half of the time: three quarters of the rent, and of the idle watts."""
    result = simulate(scenario(replicas=2))
    end_s = result.metrics["duration_s"]
    lives = Table(["replica", "group", "up_ns", "down_ns"])
    lives.append((0, 0, 0, -1))
    lives.append((1, 0, 0, round(end_s / 2 * 1e9)))
    monkeypatch.setattr(result.recorder, "lives", lives)
    from analysis.metrics import metrics

    again = metrics(result)
    assert again["cost"]["usd"] == pytest.approx(0.75 * result.metrics["cost"]["usd"], rel=1e-6)
    both = [m["energy"]["floor"]["static"] + m["energy"]["floor"]["idle"] for m in (again, result.metrics)]
    assert both[0] <= both[1] and again["energy"]["floor"]["idle"] < result.metrics["energy"]["floor"]["idle"]


def test_the_report_of_a_plan() -> None:
    """The same numbers as in summary.json, a million or one token at a time."""
    result = run("plain")
    found, tokens = cost_of(result), 150 * 40
    energy, cost = result.metrics["energy"], result.metrics["cost"]
    assert found.dollars_per_hour == pytest.approx(6.88)
    assert found.dollars_per_1M_output == cost["usd"] / tokens * 1e6
    assert found.joules_per_output_token == found.floor_joules_per_output_token == energy["joules"] / tokens
    assert found.ceiling_joules_per_output_token == energy["ceiling_joules"] / tokens
    assert found.gCO2 == energy["gCO2"] and found.gCO2_per_1M_output == pytest.approx(energy["gCO2"] / tokens * 1e6)


def test_no_price_no_bill() -> None:
    """A device that nobody rents out: nulls, in the report as in the summary."""
    result = simulate(scenario(hardware="gb200", workload={**TRAFFIC, "requests": 5}))
    found = cost_of(result)
    assert found.dollars is found.dollars_per_hour is found.dollars_per_1M_output is found.split_per_1M_input is None
    assert found.joules_per_output_token is not None
