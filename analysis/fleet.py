"""Of a fleet: which group a replica is of, what each group did, and the lives of its replicas."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.energy_uptime import uptime
from analysis.frames import Columns, Run, known
from analysis.latency import describe
from sim.account import pool_places

__all__ = ["fleet_section", "group_of", "life_columns", "names_of", "tokens_a_round"]

LIFE_ENDS = ("end", "drained", "failed")  # by the recorder's number
LATENCIES = ("ttft_ms", "tpot_ms", "e2el_ms")


def names_of(run: Run) -> list[str]:
    """Names of the groups, in their order; none where there is no fleet."""
    fleet = run.scenario.fleet
    return [] if fleet is None else [part.name for part in fleet.groups]


def group_of(run: Run, replica: NDArray[np.int64]) -> NDArray[np.str_]:
    """Name of the group of each of some replicas; empty for -1, and where there is no fleet."""
    names = names_of(run)
    if not names:
        return np.full(len(replica), "")
    places = np.append(pool_places(run.built.pools, run.recorder), -1)
    found: NDArray[np.str_] = np.array([*names, ""])[places[replica]]
    return found


def tokens_a_round(run: Run) -> Any:
    """Target tokens that a decoding sequence runs in a round: one number, or one for each leap of unlike replicas."""
    each = np.array([one.policy.tokens_per_round for one, _ in run.built.pools])
    if len(set(each.tolist())) == 1:
        return int(each[0])
    return each[pool_places(run.built.pools, run.recorder)[run.recorder.leaps.frame()["replica"]]]


def life_columns(run: Run) -> Columns:
    """Columns of ``lives.parquet``, one row a time that a replica was there, from when it was paid for."""
    rows = run.recorder.lives.frame()
    return {
        "replica": np.ascontiguousarray(rows["replica"]),
        "group": np.array(names_of(run))[rows["group"]],
        "slot": np.ascontiguousarray(rows["slot"]),
        "up_ns": np.ascontiguousarray(rows["up_ns"]),
        "down_ns": np.ascontiguousarray(rows["down_ns"]),
        "end": np.array(LIFE_ENDS)[rows["end"]],
    }


def fleet_section(run: Run, duration_s: float) -> dict[str, Any] | None:
    """The ``fleet`` section of ``summary.json`` (docs/fleet.md); None where the scenario has no fleet."""
    names, requests = names_of(run), run.request_columns
    if not names:
        return None
    up = uptime(run, duration_s)
    up_s, busy_s = (_padded(up.by_pool(seconds), len(names)) for seconds in (up.up_s, up.busy_s))
    groups = [
        {
            "name": name,
            "replicas": int((up.pool == place).sum()),
            "replica_hours": up_s[place] / 3600,
            "busy": busy_s[place] / up_s[place] if up_s[place] else 0.0,
            **_group(requests, requests["group"] == name),
        }
        for place, name in enumerate(names)
    ]
    recorder = run.recorder
    return {
        "groups": groups,
        "retries": int(requests["retries"].sum()),
        "held_s": recorder.held_ns * 1e-9,
        "lost_tokens": recorder.lost_tokens,
    }


def _group(requests: Columns, rows: NDArray[np.bool_]) -> dict[str, Any]:
    """Of the requests that ended in a group: how many, their tokens, and percentiles of what they waited for."""
    finished = rows & (requests["status"] == "finished")
    found = {name: describe(known(requests, name, rows)) for name in LATENCIES}
    return {
        "requests": int(rows.sum()),
        "finished": int(finished.sum()),
        "output_tokens": int((requests["output_tokens"] * requests["samples"])[finished].sum()),
        **{name: {key: table[key] for key in ("p50", "p99")} for name, table in found.items()},
    }


def _padded(values: NDArray[np.float64], count: int) -> list[float]:
    """Of groups that never had a replica, nothing."""
    return [*map(float, values), *[0.0] * (count - len(values))]
