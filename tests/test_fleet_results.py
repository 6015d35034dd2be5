"""A fleet from a scenario's YAML to its files: groups, tenants, classes, refusals, staleness, accounts that add up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from sim import Scenario, simulate
from sim.build import build_scenario
from sim.run import Result

TRAFFIC = {"rate": 40, "prompt": 300, "output": 20, "requests": 60}
DRAFTED = {"name": "speculative", "draft": "llama-3.2-1b", "gamma": 4, "acceptance": 0.8}
GROUPS = [
    {"name": "plain", "replicas": 2},
    {"name": "drafted", "replicas": 1, "hardware": "a100-sxm-80gb", "policy": DRAFTED, "usd_per_hour": 3.0},
]


def scenario(**more: Any) -> Scenario:
    """Two unlike groups under a short trace."""
    base = {"model": "llama-3.1-8b", "hardware": "h100-sxm", "fleet": {"groups": GROUPS}, "workload": TRAFFIC}
    return Scenario.parse({**base, **more})


@pytest.fixture(scope="module")
def result() -> Result:
    """A run of both groups."""
    return simulate(scenario())


def test_every_request_has_its_group(result: Result) -> None:
    """Round robin over three replicas: two thirds in the first group; the tables and the summary agree."""
    groups = result.request_columns["group"].tolist()
    assert groups.count("plain") == 40 and groups.count("drafted") == 20
    told = {g["name"]: (g["replicas"], g["requests"]) for g in result.metrics["fleet"]["groups"]}
    assert told == {"plain": (2, 40), "drafted": (1, 20)}
    assert result.request_columns["drafted_tokens"][np.array(groups) == "plain"].sum() == 0


def test_accounts_are_those_of_each_group_alone(result: Result) -> None:
    """Joules and counts of a group's leaps are what the group's own costs say of them, padding left out."""
    from sim.account import account

    leaps, chunks = result.recorder.leaps.frame(), result.recorder.chunks.frame()
    mine, theirs = leaps["replica"] == 2, chunks["replica"] == 2
    rounds = result.built.groups[1].setup.rounds
    alone = account(rounds, {k: c[mine] for k, c in leaps.items()}, {k: c[theirs] for k, c in chunks.items()})
    assert np.allclose(alone.joules, result.accounts.joules[mine], rtol=1e-12)
    assert np.allclose(alone.counts["flops"], result.accounts.counts["flops"][mine], rtol=1e-12)
    first = leaps["replica"] < 2
    assert not any(leaps[f"sum_{i}"][first].any() for i in range(result.built.groups[0].policy.channels(
        result.built.groups[0].setup.windows), result.recorder.channels))  # fmt: skip


def test_joules_of_requests_add_up(result: Result) -> None:
    """All requests together took what all leaps took, though sequences of the groups run 1 and 5 tokens a round."""
    assert float(result.request_columns["joules"].sum()) == pytest.approx(float(result.accounts.joules.sum()), rel=1e-9)


def test_files_of_a_fleet(result: Result, tmp_path: Path) -> None:
    """lives.parquet has a row a replica; the trace names groups; the scenario as written runs again the same."""
    folder = Path(result.save(str(tmp_path / "r")))
    lives = pq.read_table(folder / "lives.parquet").to_pylist()
    assert [(row["replica"], row["group"], row["end"]) for row in lives] == [
        (0, "plain", "end"), (1, "plain", "end"), (2, "drafted", "end"),
    ]  # fmt: skip
    assert '"replica 2 drafted"' in (folder / "trace.json").read_text()
    again = simulate(Scenario.load(folder / "scenario.yaml"))
    assert again.request_columns["finish_ns"].tolist() == result.request_columns["finish_ns"].tolist()
    assert json.loads((folder / "summary.json").read_text())["fleet"]["retries"] == 0


def test_tenants_and_classes() -> None:
    """Tenant 1 sends faster than one request a second with a burst of 3 allows: the rest is refused and told apart;
    each class is judged by its own objectives.
    """
    workload = {**TRAFFIC, "tenant": {0: 1, 1: 1}, "priority": {0: 1, 1: 1}}
    classes = {"fast": {"priority": 1, "ttft_ms": 1e-3}, "slow": {"priority": 0, "e2el_ms": 1e6}}
    tenants = {"a": {"number": 0}, "b": {"number": 1, "rate_per_s": 1, "burst": 3}}
    found = simulate(scenario(workload=workload, classes=classes, tenants=tenants)).metrics
    assert found["requests"]["rejected_for"] == {"rate": found["tenants"]["b"]["rejected"]}
    assert 3 <= found["tenants"]["b"]["finished"] <= 5 and found["tenants"]["a"]["rejected"] == 0
    fast, slow = found["classes"]["fast"], found["classes"]["slow"]
    assert fast["attainment"] == 0 and slow["attainment"] == slow["finished"] / slow["requests"]
    assert found["goodput"]["attainment"] == slow["finished"] / 60
    assert any("refused at the gateway" in warning for warning in found["warnings"])


def test_a_trace_brings_its_tenants(tmp_path: Path) -> None:
    """The column `tenant` of a CSV; below zero is refused by line."""
    rows = "arrival_s,prompt_tokens,output_tokens,tenant\n0.0,50,4,7\n0.1,50,4,0\n"
    (tmp_path / "t.csv").write_text(rows)
    found = simulate(scenario(workload={"trace": str(tmp_path / "t.csv")}))
    assert found.request_columns["tenant"].tolist() == [7, 0] and set(found.metrics["tenants"]) == {"0", "7"}
    (tmp_path / "t.csv").write_text(rows.replace(",0\n", ",-2\n"))
    damaged = simulate(scenario(workload={"trace": str(tmp_path / "t.csv")}))
    assert any("line 3: tenant: -2" in note for note in damaged.notes)


def test_held_time_is_counted() -> None:
    """Two users of a central queue with one slot on one replica: the second of two requests waits for the first."""
    one = scenario(
        fleet={"groups": [{"name": "only"}]}, router={"name": "central_queue", "slots": 1},
        workload={"rate": "inf", "prompt": 64, "output": 8, "requests": 2},
    )  # fmt: skip
    result = simulate(one)
    first = int(result.request_columns["finish_ns"][0])
    assert result.metrics["fleet"]["held_s"] == pytest.approx(first * 1e-9)
    assert result.request_columns["queue_ms"].tolist() == [0.0, first * 1e-6]


@pytest.mark.parametrize(
    "more, says",
    [
        ({"router": {"name": "least_kv", "stale_s": -1}}, "router.stale_s: -1: must be 0, or seconds"),
        ({"router": {"name": "central_queue", "stale_s": 1}}, "router.stale_s: 1: to central_queue replicas come"),
        ({"router": {"name": "by_size", "groups": ["plain", "draftd"], "steps": [9]}}, "did you mean 'drafted'"),
        ({"router": {"name": "by_size", "groups": ["plain", "drafted"], "steps": []}}, "router.steps: []: must be 1"),
        ({"router": "least_outstandin"}, "did you mean 'least_outstanding'"),
        ({"tenants": {"a": {"number": 1}, "b": {"number": 1}}}, "tenants.b.number: 1: a has that number already"),
        ({"classes": {"a": {"priority": 1}, "b": {"priority": 1}}}, "classes.b.priority: 1: a has that priority"),
        ({"admission": {"max_outstandin": 1}}, "did you mean 'max_outstanding'"),
        ({"workload": {**TRAFFIC, "tenant": -1}}, "tenant: -1: numbers of tenants must be at least 0"),
        ({"replicas": 2}, "fleet: says how many replicas there are"),
        ({"fleet": {"groups": [{"name": "a", "hardware": "h100-sxn"}]}}, "fleet.groups.a: hardware"),
    ],
)
def test_bad_keys(more: dict[str, Any], says: str) -> None:
    """One line that names the key, the value and what is allowed."""
    with pytest.raises(ValueError) as error:
        simulate(scenario(**more))
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_central_queue_is_not_for_pools() -> None:
    """Decode replicas cannot be waited for."""
    pools = {"link_GBps": 50, "prefill": {"replicas": 1}, "decode": {"replicas": 1}}
    with pytest.raises(ValueError, match="router: central_queue: not with pools"):
        build_scenario(scenario(fleet=None, pools=pools, router="central_queue"))


@pytest.mark.parametrize("router", ["least_outstanding", {"name": "power_of_two", "stale_s": 0.01}])
def test_pools_take_routers_that_look(router: Any) -> None:
    """Both pools are routed by what is seen of them."""
    pools = {"link_GBps": 50, "prefill": {"replicas": 2}, "decode": {"replicas": 2}}
    result = simulate(scenario(fleet=None, pools=pools, router=router))
    assert result.metrics["requests"]["finished"] == 60
    assert {0, 1, 2, 3} == set(np.unique(result.recorder.leaps.frame()["replica"]).tolist())
