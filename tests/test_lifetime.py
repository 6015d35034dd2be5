"""A model's lifetime: closed forms, published trainings, and the command."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from output_runs import run
from typer.testing import CliRunner

from analysis.plots.lifetime import lifetime_figure, lifetime_table
from sim.build import load_device, load_shape
from sim.cli import app
from sim.commands.lifetime import lifetime_of
from sim.lifetime import MEASURES, Footprint, Lifetime, Training, active_parameters, training_flops

AMOUNT = st.floats(1e-3, 1e9)
GPT3 = Training(3.14e23, 125e12, 24.6 / 125, 330.0, None, 1.1, 429.0)


def test_gpt3_as_published() -> None:
    """Patterson et al. 2021, table 4: 10,000 V100 at 24.6 TFLOP/s and 330 W for 14.8 days, 1,287 MWh, 552 t CO2."""
    assert GPT3.device_hours / 10_000 / 24 == pytest.approx(14.8, rel=5e-3)
    assert GPT3.footprint.kWh == pytest.approx(1_287_000, rel=5e-3)
    assert GPT3.footprint.gCO2 == pytest.approx(552e6, rel=5e-3)
    assert GPT3.footprint.usd is None


def test_llama_405b_as_published() -> None:
    """3.8e25 FLOPs of 15.6T tokens; at the middle of the printed 38 to 43 %, 16 % below the card's 30.84M H100 hours,
    which count more than the training run.
    """
    shape = load_shape("llama-3.1-405b", "model")
    flops = training_flops(shape, 15.6e12)
    assert flops == pytest.approx(3.8e25, rel=0.01)
    hours = Training(flops, load_device("h100-sxm").peak_flops("bf16").flops, 0.405, 700, 2, 1, 0).device_hours
    assert hours == pytest.approx(30.84e6, rel=0.17) and hours < 30.84e6


@pytest.mark.parametrize(
    ("name", "active"), [("llama-3.1-8b", 8.03e9), ("deepseek-v3", 37.5e9), ("qwen3-30b-a3b", 3.35e9)]
)
def test_a_token_meets_the_active_parameters(name: str, active: float) -> None:
    """All of a dense model; of experts as the vendors print them (37B of 671B, 3.3B of 30.5B)."""
    assert active_parameters(load_shape(name, "model")) == pytest.approx(active, rel=0.02)


@given(once=AMOUNT, day=AMOUNT, share=st.floats(0.0, 0.99))
def test_the_day_of_a_share_is_the_share_of_the_day(once: float, day: float, share: float) -> None:
    """s/(1-s) T/d and d t/(T + d t) undo each other."""
    found = Lifetime(Footprint(once, None, once), Footprint(day, None, day))
    days = found.passes_after_days(share)
    assert days is not None and found.share_after(days) == pytest.approx(share, abs=1e-12)
    assert found.passes_after_days(share, "usd") is None


@given(once=AMOUNT, day=AMOUNT)
def test_eighty_percent_takes_four_times_as_long_as_half(once: float, day: float) -> None:
    """Passed after T/d, 80 % after 4 T/d; twice the requests, half the days."""
    found = Lifetime(Footprint(once, None, None), Footprint(day, None, None))
    assert found.passes_after_days(0.5) == pytest.approx(once / day)
    assert found.passes_after_days(0.8) == pytest.approx(4 * once / day)
    assert found.with_requests(2).passes_after_days(0.5) == pytest.approx(once / day / 2)


def test_nonsense_is_refused() -> None:
    """Shares that are never reached, efficiencies that nobody has."""
    found = Lifetime(Footprint(1, 1, 1), Footprint(0, 1, None))
    assert found.passes_after_days(0.5) is found.passes_after_days(0.5, "gCO2") is None
    with pytest.raises(ValueError, match="below 1"):
        found.passes_after_days(1.0)
    with pytest.raises(ValueError, match="mfu: 1.5: must be a share"):
        Training(1e20, 1e15, 1.5, 1, 1, 1, 1)
    with pytest.raises(ValueError, match="training FLOPs: nan"):
        Training(math.nan, 1e15, 0.5, 1, 1, 1, 1)


def test_a_day_of_inference_is_that_of_the_run() -> None:
    """A thousand requests a day take a thousand times a request's share of the run; unsaid, as many as it finished."""
    result = run("plain")
    found, requests = lifetime_of(result, GPT3, 1000.0)
    assert requests == 1000 and found.daily.kWh == pytest.approx(result.metrics["energy"]["kWh"] / 150 * 1000)
    assert found.daily.usd == pytest.approx(result.metrics["cost"]["usd"] / 150 * 1000)
    found, requests = lifetime_of(result, GPT3)
    assert requests == pytest.approx(150 / result.metrics["duration_s"] * 86_400)
    assert found.daily.usd == pytest.approx(6.88 * 24)


def test_the_plot_shows_both() -> None:
    """The table by hand, and the two days in the figure."""
    table = lifetime_table(100.0, 2.0, 10.0, 3)
    assert table["inference_kWh"].tolist() == [0.0, 10.0, 20.0] and table["training_kWh"].tolist() == [100.0] * 3
    axes = lifetime_figure(Lifetime(Footprint(1e6, None, None), Footprint(1e3, None, None)))
    assert [text.get_text() for text in axes.texts] == ["50% inference\nday 1,000", "80% inference\nday 4,000"]
    assert axes.get_ylabel() == "energy spent (GWh)"
    with pytest.raises(ValueError, match="nothing to draw"):
        lifetime_figure(Lifetime(Footprint(None, 1, None), Footprint(1, 1, 1)))


COMMAND = ["lifetime", "chat_h100", "--set", "workload.requests=10"]


def test_the_command_answers_in_json(tmp_path) -> None:
    """6 N D, what it takes, and the days by energy, dollars and carbon."""
    out = tmp_path / "life.svg"
    said = CliRunner().invoke(app, [*COMMAND, "--tokens", "1e12", "--json", "--out", str(out)])
    found = json.loads(said.stdout)
    assert found["training"]["flops"] == pytest.approx(6 * 8030261248 * 1e12) and out.stat().st_size > 1000
    assert set(found["days_until_inference_is"]["80%"]) == set(MEASURES)
    half, most = (found["days_until_inference_is"][share]["usd"] for share in ("50%", "80%"))
    assert most == pytest.approx(4 * half)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--tokens: say how many tokens"),
        (["--tokens", "1", "--flops", "1"], "one of the two"),
        (["--tokens", "-1"], "--tokens: -1: must be above 0"),
        (["--flops", "nan"], "--flops: nan: must be above 0"),
        (["--tokens", "1e12", "--mfu", "0"], "mfu: 0: must be a share"),
        (["--tokens", "1e12", "--requests-per-day", "0"], "--requests-per-day: 0: must be above 0"),
        (["--tokens", "1e12", "--out", "x.gif"], "--out: x.gif: a picture ends in .png, .svg, .pdf"),
        (["--tokens", "1e12", "--hardware", "h1000"], "no device profile 'h1000'"),
    ],
)
def test_the_command_refuses_in_one_line(options: list[str], message: str) -> None:
    """Options that are missing, contradict each other, or mean nothing."""
    said = CliRunner().invoke(app, [*COMMAND, *options])
    assert isinstance(said.exception, ValueError) and message in str(said.exception)
    assert "\n" not in str(said.exception)
