"""Faults, spot, restarts and autoscaling from a scenario to its result: keys, errors, warnings, money, the plot."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from analysis.fleet import life_columns
from analysis.plots.fleet import replicas_over_time, replicas_over_time_table
from sim import Scenario, simulate
from sim.build import build_scenario
from sim.serving.autoscale import Scaling
from sim.serving.faults import RandomOutages, StatedOutages
from sim.serving.outages import Outage
from sim.serving.restarts import Restart

MODEL = {"model": "llama-3.1-8b", "hardware": "l40s"}
GROUPS = [{"name": "steady", "replicas": 1}, {"name": "spot", "replicas": 2, "usd_per_hour": 3.6}]


def scenario(requests: int = 40, **fleet: Any) -> Scenario:
    """A small one: short requests on two groups of L40S."""
    return Scenario.parse(
        {
            **MODEL, "router": "least_outstanding",
            "fleet": {"groups": GROUPS, **fleet},
            "workload": {"rate": 10, "prompt": 200, "output": 20, "requests": requests},
        }
    )  # fmt: skip


def test_keys_become_events() -> None:
    """Hours, seconds and names arrive as nanoseconds and numbers of groups; luck by the number of the entry."""
    built = build_scenario(
        scenario(
            faults=[{"mtbf_h": 2, "repair_s": 5, "repair": "exponential"}, {"at_s": 3, "group": "steady", "slot": 0}],
            spot=[{"group": "spot", "rate_per_h": 4, "notice_s": 1, "back_s": None, "start_s": 2}],
            restarts=[{"at_s": [1, 9], "at_once": 2}],
            autoscale=[{"group": "spot", "max": 4, "target": 3, "every_s": 0.5}],
        )
    )
    s = 10**9
    assert built.events.all == (
        RandomOutages(7200e9, Outage(0, 5 * s, 0), None, True, 0),
        StatedOutages((3 * s,), Outage(0, 0, 0), 0, 0),
        RandomOutages(900e9, Outage(s, None, 2 * s), 1, False, 2),
        Restart(s, Outage(None, 0, 0), None, 2),
        Restart(9 * s, Outage(None, 0, 0), None, 2),
        Scaling(1, 1, 4, "outstanding", 3.0, s // 2, 0, 300 * s, 0.1, 60 * s, 99.0),
    )


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"faults": [{"repair_s": 5}]}, r"fleet\.faults\[0\]: needs mtbf_h or at_s"),
    ({"faults": [{"mtbf_h": 2, "at_s": 3}]}, "one of the two"),
    ({"faults": [{"mtbf_h": 2, "group": "stedy"}]}, r"fleet\.faults\[0\]\.group: 'stedy'.*did you mean"),
    ({"faults": [{"mtbf_h": 2, "slot": 0}]}, r"slot: 0: only with at_s"),
    ({"faults": [{"at_s": 2, "slot": 1, "group": "steady"}]}, "slot: 1: must be below 1"),
    ({"faults": [{"at_s": 2, "repair": "exponential"}]}, "only with mtbf_h"),
    ({"faults": [{"mtbf_h": 0}]}, "mtbf_h"),
    ({"faults": [{"at_s": []}]}, "at_s"),
    ({"faults": [{"at_s": True}]}, "at_s"),
    ({"spot": [{"rate_per_h": 1}]}, "group"),
    ({"spot": [{"group": "spot"}]}, r"fleet\.spot\[0\]: needs rate_per_h or at_s"),
    ({"restarts": [{"at_once": 1}]}, "at_s"),
    ({"restarts": [{"at_s": 1, "at_once": 0}]}, "at_once"),
    ({"autoscale": [{"group": "spot", "target": 3}]}, "max"),
    ({"autoscale": [{"group": "spot", "target": 3, "max": 1}]}, "must enclose the 2 replicas"),
    ({"autoscale": [{"group": "spot", "target": 3, "max": 4, "metric": "load"}]}, "metric"),
    ({"autoscale": [{"group": "spot", "target": 3, "max": 4, "min": 0, "metric": "kv"}]}, "min: 0"),
    ({"autoscale": [{"group": "spot", "target": 3, "max": 4, "metric": "kv"}]}, "target: 3"),
    ({"autoscale": [{"group": "spot", "target": 3, "max": 4}] * 2}, "another autoscaler"),
]


@pytest.mark.parametrize(("keys", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_makes_no_sense_is_said(keys: dict[str, Any], message: str) -> None:
    """One line that names the key, before the clock starts."""
    with pytest.raises(ValueError, match=message) as error:
        build_scenario(scenario(**keys))
    assert "\n" not in str(error.value)


def test_the_scenario_as_resolved_says_the_same() -> None:
    """Written out with every default and read again, it has the same events."""
    built = build_scenario(Scenario.load("spot_autoscale"))
    again = build_scenario(Scenario.parse(built.scenario.model_dump(exclude_none=False)))
    assert again.events == built.events and len(built.events.all) == 4


def test_failures_are_warned_of() -> None:
    """Everything fails at 1 s for good: whoever was there has no retry left, who comes later is never served."""
    result = simulate(scenario(faults=[{"at_s": 1, "repair_s": None}], retries=0))
    warned = [line for line in result.metrics["warnings"] if "failed" in line]
    status, retries = result.request_columns["status"], result.request_columns["retries"]
    spent = int(((status == "failed") & (retries == 1)).sum())
    held = int((status == "failed").sum()) - spent
    never = f"{held} requests failed: no replica that could serve them ever came."
    assert spent and held
    assert warned == [f"{spent} requests failed after 0 retries. {never}"]


def test_money_counts_the_time_that_is_paid() -> None:
    """A spot replica at 3.6 dollars an hour costs a tenth of a cent a second, from its start to its end."""
    spot = [{"group": "spot", "at_s": 1, "notice_s": 0, "back_s": 1, "start_s": 0.5}]
    result = simulate(scenario(spot=spot).with_settings(["cost.usd_per_device_hour=0"]))
    lives = life_columns(result)
    there_s = ((lives["down_ns"] - lives["up_ns"])[lives["group"] == "spot"] * 1e-9).sum()
    assert result.metrics["cost"]["usd"] == pytest.approx(there_s * 1e-3)
    assert there_s < 2 * (result.metrics["cost"]["makespan_s"] - 0.9)


def test_conversations_survive_with_their_prefix_caches() -> None:
    """Sessions, a prefix cache with a tier, faults, reclaims, restarts, scaling: all end, leaping as stepping."""
    events = {
        "groups": [{"name": "a", "replicas": 2}, {"name": "b"}], "retries": 50,
        "faults": [{"mtbf_h": 0.01, "repair_s": 5, "repair": "exponential", "start_s": 1}],
        "spot": [{"group": "b", "rate_per_h": 60, "notice_s": 3, "back_s": 4}], "restarts": [{"at_s": 10}],
        "autoscale": [{"group": "a", "max": 5, "target": 4, "every_s": 1, "start_s": 2, "down_after_s": 5}],
    }  # fmt: skip
    sessions = {"rate": 2, "sessions": {"turns": 5, "think_time_s": 2}, "prompt": 600, "output": 60, "requests": 100}
    cache = {"prefix_cache": {"tiers": [{"name": "host", "GB": 20, "GBps": 20}]}}
    said = {"router": "prefix_affinity", "kv": cache, "fleet": events, "workload": sessions}
    leaping, stepping = (simulate(Scenario.parse({**MODEL, **said}), stepping=each) for each in (False, True))
    assert leaping.metrics["requests"]["finished"] == 100 and leaping.metrics["fleet"]["retries"] > 0
    assert (leaping.request_columns["finish_ns"] == stepping.request_columns["finish_ns"]).all()


def test_the_plot_shows_lives() -> None:
    """Two groups by hand: one of two fails at 3 and is back at 5; one is there throughout."""
    lives = {
        "group": np.array(["a", "a", "a", "b"]), "up_ns": np.array([0, 0, 5, 0]) * 10**9,
        "down_ns": np.array([3, 8, 8, 8]) * 10**9, "end": np.array(["failed", "end", "end", "end"]),
    }  # fmt: skip
    table = replicas_over_time_table(lives)
    rows = list(zip(*(table[name].tolist() for name in ("group", "second", "replicas", "failed")), strict=True))
    assert rows == [("a", 0, 2, 0), ("a", 3, 1, 1), ("a", 5, 2, 0), ("a", 8, 2, 0), ("b", 0, 1, 0), ("b", 8, 1, 0)]
    axes = replicas_over_time(table)
    drawn = {line.get_label(): np.asarray(line.get_xydata()).tolist() for line in axes.lines}
    assert drawn == {"a": [[0, 2], [3, 1], [5, 2], [8, 2]], "b": [[0, 1], [8, 1]], "a failure": [[3, 1]]}
