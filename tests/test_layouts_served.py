"""Layouts and pools named in a scenario: memory by hand, work that is the same however it is cut, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from engine_setup import Case, trace
from pool_stepper import pooled
from test_pools import SLOW, differences
from typer.testing import CliRunner

from sim import Scenario, simulate
from sim.analytic.cost import DoesNotFit, Layout
from sim.build import build_scenario
from sim.cli import app
from sim.layouts import compared
from sim.policies.autoregressive import Autoregressive
from sim.schedulers.chunked import Chunked
from sim.serving.dealt import DealtRounds
from sim.tune import tune

CHAT = {
    "model": "llama-3-70b",
    "hardware": "h200-sxm",
    "workload": {"rate": 2, "prompt": 700, "output": 40, "requests": 30},
}
MIXED = {**CHAT, "model": "mixtral-8x7b"}


def scenario(base: dict[str, Any] = CHAT, **more: Any) -> Scenario:
    return Scenario.parse({**base, **more})


def test_every_device_of_a_pipeline_keeps_its_layers_and_their_cache() -> None:
    """Llama-3-70B in bf16 over four H200: 20 layers and the head, 80 KiB a token; a data rank adds its own pool."""
    built = build_scenario(scenario(layout={"pipeline": 4}))
    weights = dict(built.budget.lines)["weights"]
    layer = (8192 * (8192 + 2 * 1024) + 8192 * 8192 + 3 * 8192 * 28672 + 2 * 8192) * 2
    assert weights == 20 * layer + (8192 * 128256 + 8192) * 2
    assert built.setup.kv.token_bytes == 20 * 2 * 8 * 128 * 2
    assert built.setup.kv.capacity_bytes == int(built.budget.kv_pool_bytes)
    assert isinstance(built.setup.rounds, DealtRounds) and built.setup.rounds.layers == (20,)
    ranks = build_scenario(scenario(MIXED, layout={"data": 2, "expert": 2}))
    assert ranks.setup.kv.capacity_bytes == 2 * int(ranks.budget.kv_pool_bytes)


def test_what_does_not_fit_says_what_a_device_would_hold() -> None:
    with pytest.raises(DoesNotFit, match=r"h100-sxm: weights 70\.6 GB .* = .* in 80 GB of memory"):
        build_scenario(scenario(hardware="h100-sxm", layout={"pipeline": 2}, kv={"memory_fraction": 0.85}))


@pytest.mark.parametrize(
    "layout", [{"pipeline": 2}, {"tensor": 2}, {"tensor": 2, "pipeline": 2}, {"data": 2, "expert": 2}]
)
def test_a_run_does_the_same_work_in_every_layout(layout: dict[str, Any]) -> None:
    """FLOPs of all devices of a run are those of one large one, but for routers; each request gains the same tokens."""
    base = scenario(MIXED, precision={"weights": "fp8"})
    runs = [simulate(one) for one in (base, base.with_settings([f"layout.{k}={v}" for k, v in layout.items()]))]
    totals = [run.accounts.counts["flops"].sum() * run.built.layout.devices for run in runs]
    assert totals[1] == pytest.approx(totals[0], rel=2e-4)
    for run in runs:
        assert run.metrics["requests"]["finished"] == 30
        spent = sum(run.accounts.seconds.values())
        assert np.allclose(spent, run.recorder.leaps.frame()["duration_ns"] * 1e-9)
    assert runs[1].metrics["cost"]["devices"] == Layout(**layout).devices


def test_an_engines_budget_is_that_of_each_of_its_steps() -> None:
    """A round of two stages and two ranks is four steps of 2,048 tokens; seats are those of each rank."""
    built = build_scenario(scenario(MIXED, engine="vllm-v1", layout={"pipeline": 2, "data": 2, "expert": 2}))
    assert (built.scheduler.token_budget, built.scheduler.max_sequences) == (4 * 2048, 2 * 256)  # type: ignore[attr-defined]
    assert isinstance(built.setup.rounds, DealtRounds) and built.setup.rounds.piece == 2048


def test_drafts_may_have_fewer_layers_than_stages() -> None:
    """A one-billion draft of 16 layers in 20 stages of its 80-layer target; heads on no layers at all."""
    deep = scenario(layout={"pipeline": 20}, policy={"name": "speculative", "draft": "llama-3.2-1b"})
    assert simulate(deep).metrics["requests"]["finished"] == 30
    heads = scenario(layout={"pipeline": 2, "tensor": 2}, policy="medusa")
    assert simulate(heads).metrics["requests"]["finished"] == 30


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"layout": {"pipeline": 81}}, r"layout\.pipeline: 81 stages for the 80 layers"),
        ({"layout": {"data": 2}}, r"layout\.data: 2: llama-3-70b has no experts to share; use replicas"),
        ({"layout": {"expert": 2}}, r"layout\.expert: 2 does not divide the 1 devices of a stage"),
        ({"pools": {"link_GBps": 50}, "replicas": 2}, r"replicas: 2: with pools, say pools\.prefill\.replicas"),
        ({"pools": {}}, r"pools\.link_GBps: missing"),
        ({"pools": {"link_GBps": 1, "decod": {}}}, r"pools\.decod: unknown key; .*did you mean 'decode'"),
        ({"pools": {"link_GBps": 1, "prefill": {"hardware": "nope"}}}, r"pools\.prefill: hardware: no device"),
        (
            {"pools": {"link_GBps": 1, "decode": {"layout": {"tensor": 3}}}, "layout": {"tensor": 2}},
            r"pools\.decode: layout\.tensor: 3 does not",
        ),
        ({"pools": {"link_GBps": 1, "overlap": "layer"}}, r"pools\.overlap: 'layer'"),
        ({"pools": {"link_GBps": 0}}, r"pools\.link_GBps: 0: must be greater"),
    ],
)
def test_what_makes_no_sense_is_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build_scenario(scenario(**more))


POOLS = {
    "link_GBps": 40,
    "link_latency_us": 20,
    "prefill": {"layout": {"tensor": 2}},
    "decode": {"layout": {"tensor": 4}},
}


def test_pools_move_whole_caches_and_pay_for_all_devices() -> None:
    """320 KiB a token over 40 GB/s; two devices read and four write, each pool with its own idle power."""
    run = simulate(scenario(pools=POOLS))
    moves = run.recorder.moves.frame()
    assert len(moves["bytes"]) == 30 and set(moves["bytes"].tolist()) == {700 * 80 * 2 * 8 * 128 * 2}
    assert set((moves["end_ns"] - moves["start_ns"]).tolist()) == {round((20e-6 + 700 * 327680 / 40e9) * 1e9)}
    assert run.metrics["cost"]["devices"] == 6
    leaps = run.recorder.leaps.frame()
    assert np.allclose(sum(run.accounts.seconds.values()), leaps["duration_ns"] * 1e-9)
    reading = leaps["replica"] == 0
    assert (leaps["seats"][reading] == 0).all() and (leaps["chunks"][~reading] == 0).all()
    idle_W = run.built.device.energy.idle_W  # type: ignore[union-attr]
    end_s = run.metrics["duration_s"]
    busy = [leaps["duration_ns"][leaps["replica"] == i].sum() * 1e-9 for i in (0, 1)]
    assert run.metrics["energy"]["idle_joules"] == pytest.approx(
        idle_W * (2 * (end_s - busy[0]) + 4 * (end_s - busy[1]))
    )


def test_moves_are_summed_up_and_saved(tmp_path: Path) -> None:
    """Bytes are the same however they leave; of 80 layers one is left after the prompt; the table has the rows."""
    whole, streamed = (simulate(scenario(pools={**POOLS, "overlap": how})) for how in ("none", "layers"))
    one, other = (run.metrics["moves"] for run in (whole, streamed))
    assert one["count"] == other["count"] == 30 and one["bytes"] == other["bytes"] == 30 * 700 * 327680
    assert one["left_ms"] == pytest.approx(one["mean_ms"] + one["wait_ms"])
    times = streamed.recorder.moves.frame()
    assert (times["end_ns"] - times["asked_ns"]).min() == round(20_000 + 700 * 327680 / 80 / 40)
    assert other["left_ms"] < one["left_ms"]
    rows = pq.read_table(streamed.save(str(tmp_path / "run")) + "/moves.parquet").to_pydict()
    assert sum(rows["bytes"]) == other["bytes"] and sorted(rows["request"]) == list(range(30))
    assert simulate(scenario(layout={"tensor": 4})).metrics["moves"] is None


def test_pools_of_different_devices_are_accounted_apart() -> None:
    """Prompts on two H100, tokens on an H200 pair: FLOPs come from both, utilisation is that of each device's peaks."""
    pools = {**POOLS, "prefill": {"replicas": 2, "layout": {"tensor": 4}, "hardware": "h100-sxm"}}
    run = simulate(scenario(pools=pools))
    alone = simulate(scenario(layout={"tensor": 4}))

    def flops(one: Any, devices: Any) -> float:
        return float((one.accounts.counts["flops"] * devices).sum())

    assert flops(run, 4) == pytest.approx(flops(alone, 4), rel=1e-6)
    assert 0 < run.metrics["utilisation"]["mfu"] < 1 and run.metrics["cost"]["devices"] == 12
    assert set(run.request_columns["replica"].tolist()) == {2}
    assert run.scenario.pools is not None and run.scenario.pools.prefill.hardware == "h100-sxm"
    again = simulate(Scenario.parse(json.loads(json.dumps(run.scenario.model_dump()))))
    assert again.recorder.requests.array().tolist() == run.recorder.requests.array().tolist()


def test_pools_of_engines_that_plan_ahead_are_exact_too() -> None:
    """An admission and a landing beside rounds that are already planned."""
    for gap_ns in (500, 20_000, 90_000):
        case = Case(Autoregressive(), Chunked(16, 5), trace(16, gap_ns, 5, samples=2), plan_ahead=1)
        assert differences(pooled(case, (2, 2), SLOW, capacity_bytes=1500)) == []


def test_tune_refuses_pools() -> None:
    with pytest.raises(ValueError, match="pools: tune costs replicas"):
        tune(scenario(pools=POOLS))


def test_layouts_are_compared_and_refusals_say_why() -> None:
    """Llama-3-70B on four H100: whatever is legal and fits, fastest decoding first; on one, its arithmetic."""
    cuts = compared(scenario(hardware="h100-sxm"), 4, batch=8)
    good = [cut for cut in cuts if not cut.why]
    assert [cut.layout for cut in good] == ["tensor 4", "tensor 2, pipeline 2", "pipeline 4"]
    assert [cut.decode_ms for cut in good] == sorted(cut.decode_ms for cut in good)
    assert len(cuts) == 14 and all("no experts" in cut.why for cut in cuts if cut.why)
    one = compared(scenario(hardware="h100-sxm"), 1)
    assert len(one) == 1 and one[0].why.startswith("h100-sxm: weights 141 GB")


def test_the_command_lists_layouts() -> None:
    told = CliRunner().invoke(app, ["explain", "chat_h100", "--layouts", "2"])
    assert told.exit_code == 0 and "tensor 2" in told.output and "use replicas" in told.output
    rows = json.loads(CliRunner().invoke(app, ["explain", "chat_h100", "--layouts", "2", "--json"]).output)
    assert {row["layout"] for row in rows} >= {"tensor 2", "pipeline 2"}
    both = CliRunner().invoke(app, ["explain", "chat_h100", "--layouts", "2", "--finetune"])
    assert both.exit_code != 0
