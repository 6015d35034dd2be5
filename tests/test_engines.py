"""Engine profiles: what each shipped one is, and what its terms do to a round."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from analytic_models import DENSE, device

import hardware_profiles
from sim import Scenario, simulate
from sim.analytic.cost import PassCost
from sim.analytic.hardware import Engine
from sim.analytic.tables import Table
from sim.analytic.work import Work
from sim.build import build_scenario, load_engine
from sim.policies.autoregressive import Autoregressive
from sim.serving.rounds import Rounds

SMALL: dict[str, Any] = {
    "model": "llama-3.2-1b", "hardware": "l4", "workload": {"rate": 4, "prompt": 200, "output": 20, "requests": 30},
}  # fmt: skip
WINDOWS = ((None,),)


def rounds(engine: Engine, buckets: tuple[int, ...] = ()) -> Rounds:
    """One model on an L4."""
    cost = PassCost(DENSE, device("l4"))
    return Rounds(Autoregressive(), (cost.padded(buckets) if buckets else cost,), engine, WINDOWS, (len(DENSE.layers),))


@pytest.mark.parametrize("name", hardware_profiles.engine_names())
def test_every_engine_runs(name: str) -> None:
    """A scenario takes it; where nothing is measured, the profile has wide intervals and the run says so."""
    result = simulate(Scenario.parse({**SMALL, "engine": name}))
    assert result.metrics["requests"]["finished"] == 30
    said = any(f"engine {name}: nothing in its profile is measured" in text for text in result.metrics["warnings"])
    profile = hardware_profiles.engine(name)
    assert said == (profile["provenance"] == "none")
    assert not said or profile["interval"]


def test_defaults_are_the_engines() -> None:
    """vLLM V1: chunked prefill, 2,048 tokens, 256 sequences; TGI reads prompts first."""
    built = build_scenario(Scenario.parse({**SMALL, "engine": "vllm-v1"}))
    scheduler = built.setup.scheduler
    assert (scheduler.name, scheduler.token_budget, scheduler.max_sequences) == ("chunked", 2048, 256)  # type: ignore[attr-defined]
    assert build_scenario(Scenario.parse({**SMALL, "engine": "tgi"})).setup.scheduler.name == "continuous"  # type: ignore[attr-defined]


def test_a_pass_takes_as_long_as_the_next_bucket() -> None:
    """Buckets of 1, 4 and 8 tokens: 2 tokens take as long as 4, 9 are beyond all graphs; joules are those of 2."""
    plain, padded = PassCost(DENSE, device("l4")), PassCost(DENSE, device("l4")).padded((1, 4, 8))
    found = {n: padded._tokens.seconds(n) for n in range(12)}
    assert [n for n in range(12) if found[n] != plain._tokens.seconds(n)] == [2, 3, 5, 6, 7]
    assert found[2] == found[3] == plain._tokens.seconds(4) and found[5] == found[7] == plain._tokens.seconds(8)
    assert padded.joules(Work(5, 5)) == plain.joules(Work(5, 5))
    assert padded.counts(Work(5, 5)) == plain.counts(Work(5, 5))


def test_buckets_hold_in_every_block_of_a_table() -> None:
    """A bucket larger than the block in which a count lies is looked up all the same; 0 stays 0."""
    table = Table(lambda n: (np.asarray(n) * 1.0, np.asarray(n) * 2.0), (10, 3000))
    assert table.seconds(np.array([0, 1, 10, 11, 1023, 1024, 2999, 3000, 3001])).tolist() == [
        0, 10, 10, 3000, 3000, 3000, 3000, 3000, 3001,
    ]  # fmt: skip
    assert table.joules(11) == 22


@pytest.mark.parametrize("buckets", [(), (2, 8, 16)])
@pytest.mark.parametrize("overlap", ["sum", "max"])
@pytest.mark.parametrize("host", [{"step_s": 1e-6}, {"sequence_s": 2e-5}, {"layer_s": 3e-5}, {"step_s": 1e-2}])
def test_a_leap_costs_what_its_rounds_cost(host: dict[str, float], overlap: str, buckets: tuple[int, ...]) -> None:
    """One product for all rounds, a single round, and passes one by one: the same nanoseconds."""
    engine = Engine("test", overlap=overlap, **host)  # type: ignore[arg-type]
    costs = rounds(engine, buckets)
    seats = np.array([7, 7, 6, 3, 1])
    totals = np.stack([seats, seats * 40 + np.arange(5)])
    together = costs.decode_ns(7, totals)
    for i, n in enumerate(seats.tolist()):
        assert costs.ns(n, totals[1:, i].tolist(), None, n) == together[i : i + 1]
        assert costs.ns(n, totals[1:, i : i + 1], None, n) == together[i : i + 1]


def test_host_time_adds_to_the_device_or_runs_beside_it() -> None:
    """3 ms of host and d ms of device: their sum, or the longer of the two."""
    totals = np.array([[400]])
    device_s = float(rounds(Engine("none")).seconds(np.array([8]), totals, None, 8)[0])
    for host_s in (3e-3, device_s / 2):
        both, beside = (
            float(rounds(Engine("x", step_s=host_s, overlap=kind)).seconds(np.array([8]), totals, None, 8)[0])
            for kind in ("sum", "max")
        )
        assert both == pytest.approx(device_s + host_s, rel=1e-12) and beside == max(device_s, host_s)


def test_time_before_the_first_token_is_in_ttft_alone(tmp_path: Path) -> None:
    """Requests far apart: 25 ms more until the first token, and the same time per token after it."""
    said = {**SMALL, "workload": {"rate": 0.2, "prompt": 200, "output": 20, "requests": 5}}
    profile = {**hardware_profiles.engine("ideal"), "name": "slow-door", "request_ms": 25.0}
    (tmp_path / "slow.yaml").write_text(yaml.safe_dump(profile))
    bare, late = (simulate(Scenario.parse({**said, "engine": e})) for e in ("ideal", str(tmp_path / "slow.yaml")))
    first, then = bare.requests, late.requests
    assert np.allclose(then["ttft_ms"], first["ttft_ms"] + 25.0, atol=1e-6)
    assert np.allclose(then["tpot_ms"], first["tpot_ms"], atol=1e-9)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"overlap": "both"}, "overlap is 'both', allowed: one of max, sum"),
        ({"batch_buckets": [1, 4, 4]}, "batch_buckets must ascend"),
        ({"batch_buckets": [0, 4]}, r"batch_buckets\[0\] is 0"),
        ({"plan_ahead": 9}, "plan_ahead is 9"), ({"plan_ahead": 0.5}, "plan_ahead is 0.5"),
        ({"request_ms": -1}, "request_ms is -1"), ({"host_us": 3}, "host_us"),
    ],
)  # fmt: skip
def test_a_broken_engine_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    """One line, naming the file and the key."""
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**hardware_profiles.engine("vllm-v1"), **change}))
    with pytest.raises(ValueError, match=said):
        load_engine(str(file))


def test_an_engine_in_si_units() -> None:
    """Milliseconds and microseconds become seconds; buckets keep their order."""
    engine = load_engine("vllm-v1")
    assert [engine.request_s, engine.cached_token_s] == pytest.approx([0.0178, 6.2e-6])
    assert engine.batch_buckets[:4] == (1, 2, 4, 8) and engine.batch_buckets[-1] == 512 and engine.plan_ahead == 1
    assert replace(engine, measured=True) == engine and not load_engine("sglang").measured
