"""`tune`: where a replica settles, held to the clock; what is refused and why; which choices a scenario offers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.axes import parse_axes
from sim.choices import GAMMAS, choices_of
from sim.cli import main
from sim.load import load_of
from sim.run import simulate
from sim.scenario import Scenario
from sim.speedup import curve
from sim.tune import Limits, tune

DRAFTED = {"name": "speculative", "draft": "llama-3.2-1b", "gamma": 4, "acceptance": 0.7}
STEADY = {"arrivals": "poisson", "requests": 3000, "rate": 12, "prompt": 300, "output": 120}


def asked(policy: Any = DRAFTED, workload: Any = None, **more: Any) -> Scenario:
    base = {"model": "llama-3.1-8b", "hardware": "h100-sxm"}
    return Scenario.model_validate({**base, "policy": policy, "workload": {**STEADY, **(workload or {})}, **more})


def test_the_load_is_what_the_traffic_asks_of_one_replica() -> None:
    """Rate over replicas, means of tokens, context with half of the output; a closed loop counts users."""
    load = load_of(asked(replicas=3))
    assert load.rate_per_s == pytest.approx(4.0, rel=0.06) and load.users is None
    assert (load.prompt, load.output, load.context) == (300, 120, 360)
    loop = load_of(asked(workload={"concurrency": 9, "rate": None, "arrivals": None}, replicas=3))
    assert loop.rate_per_s is None and loop.users == 3.0


@pytest.mark.parametrize("rate", [2, 12, 30])
@pytest.mark.parametrize("policy", ["autoregressive", DRAFTED])
def test_it_settles_where_the_clock_does(policy: Any, rate: float) -> None:
    """Mean TPOT of a run within 6 % of the mean field, from an idle replica to a busy one."""
    scenario = asked(policy, {"rate": rate})
    found = tune(scenario, parse_axes(["seed=0"]))
    ours = found.candidates[0].tpot_ms
    measured = simulate(scenario).metrics["latency"]["tpot_ms"]["mean"]
    assert ours == pytest.approx(measured, rel=0.06)


def test_a_closed_loop_settles_at_its_users() -> None:
    scenario = asked("autoregressive", {"concurrency": 16, "rate": None, "arrivals": None, "requests": 600})
    [one] = {c.batch for c in tune(scenario, parse_axes(["seed=0"])).candidates}
    assert one == 16.0


def test_more_load_than_it_carries_is_no_choice() -> None:
    """Nothing is recommended, and the table says why; the largest load it names is one that a run carries."""
    found = tune(asked("autoregressive", {"rate": 5000}), parse_axes(["seed=0,1"]))
    assert found.best is None and {c.why for c in found.candidates} == {"more load than it carries"}
    most = found.candidates[0].capacity_per_s
    inside = tune(asked("autoregressive", {"rate": 0.8 * most}), parse_axes(["seed=0"]))
    assert inside.best is not None


def test_the_best_gamma_at_one_sequence_is_that_of_the_curve() -> None:
    """Without a load to speak of the two commands agree."""
    scenario = asked(workload={"rate": 0.001, "requests": 50})
    gammas = parse_axes(["policy.gamma=1:12"])
    found = curve(scenario, [*gammas, *parse_axes(["context=360"])])
    best = tune(scenario, gammas).best
    assert best is not None and f"policy.gamma={found.row(found.best)['policy.gamma']}" in (*best.settings, best.choice)


def test_margins_say_by_how_much() -> None:
    """Over the next choice, and over the scenario as written."""
    found = tune(asked(), parse_axes(["policy.gamma=1:8"]))
    first, second = found.candidates[:2]
    written = next(c for c in found.candidates if c.choice == "as written")
    assert found.margin == pytest.approx(second.tpot_ms / first.tpot_ms - 1)
    assert found.over_written == pytest.approx(written.tpot_ms / first.tpot_ms - 1)
    assert first.tpot_ms <= second.tpot_ms


def test_capacity_may_prefer_what_latency_does_not() -> None:
    """The most requests within the promise: never above what a larger promise would allow."""
    tight, wide = (tune(asked(slo={"tpot_ms": ms}), objective="capacity") for ms in (8, 80))
    assert tight.best and wide.best and tight.best.capacity_per_s < wide.best.capacity_per_s
    least = tune(asked()).best
    assert least is not None and least.tpot_ms <= wide.best.tpot_ms


@pytest.mark.parametrize(
    ("more", "limits", "why"),
    [
        ({"slo": {"tpot_ms": 0.1}}, None, "TPOT > 0.1 ms"),
        ({"slo": {"ttft_ms": 0.1}}, None, "prefill > 0.1 ms"),
        ({}, Limits(memory_GB=1.0), "memory > 1.0 GB"),
        ({}, Limits(capacity_per_s=1e6), "capacity < 1000000.0/s"),
    ],
)
def test_a_promise_that_is_not_kept_is_named(more: Any, limits: Any, why: str) -> None:
    found = tune(asked(**more), parse_axes(["policy.gamma=3,5"]), limits=limits)
    assert found.best is None and {c.why for c in found.candidates} == {why}
    assert np.isnan(found.margin) and np.isnan(found.over_written)


def test_fewer_bits_win_only_where_quality_opens() -> None:
    """Lossless recommends no format; any recommends one that is faster."""
    strict, loose = tune(asked()), tune(asked(quality="any"))
    assert strict.best and "quantization" not in strict.best.choice
    assert any(c.why == "quality: unknown" for c in strict.candidates)
    assert loose.best and "quantization" in loose.best.choice and loose.best.tpot_ms < strict.best.tpot_ms


def test_what_a_scenario_offers() -> None:
    """Gammas of its own policy, plain decoding, formats; slices only of a model that says it is nested."""
    labels = {c.label for c in choices_of(asked())}
    assert "autoregressive" in labels and "quantization awq" in labels and "as written" not in labels
    assert {f"speculative gamma {g}" for g in GAMMAS if g != 4} <= labels and "speculative gamma 4" not in labels
    assert not any("matformer" in label for label in labels)
    nested = choices_of(asked("autoregressive", variants=[{"matformer": {"size": "L"}}]))
    assert {"matformer S", "matformer M", "matformer XL"} <= {c.label for c in nested}
    assert "matformer L" not in {c.label for c in nested}


def test_trees_are_offered_in_sizes_and_the_best_one_shrinks_with_the_load() -> None:
    """Medusa heads: as many nodes as memory hides for one sequence, fewer where a batch fills the pass."""

    def nodes(rate: float) -> int:
        found = tune(asked("medusa", {"rate": rate, "requests": 2000}, model="llama-2-7b"))
        label = next(c.choice for c in found.candidates if not c.why and "nodes" in c.choice)
        return int(label.split()[2])

    assert nodes(60) < nodes(0.1)


def test_hundreds_of_mixes_under_a_memory_limit() -> None:
    """Mix'n'Match: more than 100 models, those above the limit refused, one below it recommended."""
    scenario = asked("autoregressive", quality="any", model="llama-3.1-8b", variants=[{"quantization": {"kv": 8}}])
    found = tune(scenario, mixes=120, limits=Limits(memory_GB=12.0))
    mixed = [c for c in found.candidates if "matformer" in c.choice]
    assert len(mixed) > 100 and {c.memory_GB > 12.0 for c in mixed} == {True, False}
    assert found.best is not None and found.best.memory_GB <= 12.0


def test_a_choice_that_cannot_be_built_says_why_and_the_rest_goes_on() -> None:
    found = tune(asked("autoregressive"), parse_axes(["model=llama-3.1-8b,llama-3.1-405b"]))
    refused = [c for c in found.candidates if c.why]
    assert len(found.candidates) == 3 and any("leaves no KV cache" in c.why for c in refused)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Table and sentence, JSON, files; a wrong objective in one line with exit status 2."""
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(asked(workload={"requests": 60}).to_yaml())

    def command(*options: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["decodesim", "tune", "s.yaml", *options])
        with pytest.raises(SystemExit) as end:
            main()
        return (int(end.value.code or 0), *capsys.readouterr())

    status, text, _ = command("--over", "policy.gamma=2,4", "--check", "1", "--out", "t")
    assert status == 0 and "best by tpot: " in text and "run: " in text
    assert "wrote scenario.yaml, tune.csv, tune.png into t" in text
    assert Path("t/tune.csv").read_text().startswith("choice,settings,batch,tpot_ms,capacity_per_s")
    assert json.loads(command("--json")[1])["best"]["tpot_ms"] > 0
    status, _, error = command("--objective", "fun")
    assert status == 2 and "--objective: 'fun': must be one of tpot, capacity" in error


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Limits(memory_GB=-3.0), r"^--memory-GB: -3\.0: must be a positive number$"),
        (lambda: Limits(capacity_per_s=0.0), r"^--min-capacity: 0\.0: must be a positive number$"),
        (lambda: tune(asked(), mixes=-3), r"^--mixes: -3: must be 0 or at least 2"),
        (lambda: tune(asked(), check=-1), r"^--check: -1: must be a whole number of at least 0$"),
        (
            lambda: Scenario.parse({**asked().model_dump(), "quality": -1}, "s.yaml"),
            r"^s\.yaml: quality: -1: must be lossless, any, or a loss in percent of at least 0$",
        ),
    ],
)
def test_numbers_that_mean_nothing_are_refused(make: Any, said: str) -> None:
    """One line with the option, its value and what is allowed."""
    with pytest.raises(ValueError, match=said):
        make()
