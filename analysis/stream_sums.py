"""What a summary is made of, added up block by block: ``sums`` add, of ``tops`` the highest counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis import usage
from analysis.classes import good_ones
from analysis.energy import energy_of
from analysis.energy_money import phase_seconds
from analysis.energy_uptime import uptime
from analysis.fleet import names_of
from analysis.frames import Columns, Run
from analysis.metrics import statuses, throughput, tokens_of
from analysis.moves import moves_section
from analysis.reuse import prefix_section
from analysis.switching import switch_section
from analysis.warnings import backlog_sums

__all__ = ["Window", "added", "of_block", "subsets", "tops_of"]

Key = tuple[str, Any]
MEANS = ("mean_ms", "wait_ms", "left_ms")


class Window:
    """What has to be known of the whole run: seconds, the first that counts, the last arrival, tokens a round."""

    def __init__(self, run: Run, end_ns: int, last_ns: int, tokens_per_round: float) -> None:
        self.end_s, self.last_ns, self.tokens_per_round = end_ns * 1e-9, last_ns, tokens_per_round
        self.start_s = min(run.scenario.warmup_s, self.end_s)


def added(a: Any, b: Any) -> Any:
    """Sums of nested sums; a word or nothing stays as it is, a key that one of them lacks counts as nothing."""
    if isinstance(a, Mapping):
        return {key: added(a[key], b[key]) if key in a and key in b else (a | b)[key] for key in a | b}
    if isinstance(a, list | tuple):
        return [added(x, y) for x, y in zip(a, b, strict=True)]
    return a if a is None or isinstance(a, str) else a + b


def of_block(run: Run, window: Window) -> dict[str, Any]:
    """Sums of a block (``analysis.stream_blocks.Block``)."""
    requests, end_s = run.request_columns, window.end_s
    finished = requests["status"] == "finished"
    lives, found = uptime(run, end_s), energy_of(run, end_s)
    pools = range(len(run.built.pools))
    return {
        "requests": statuses(run, requests),
        "tokens": list(tokens_of(requests, finished)),
        "throughput": throughput(requests, finished, window.start_s, end_s),
        "rows": {key: _row(run, requests, rows) for key, rows in subsets(run, requests, window)},
        "retries": int(requests["retries"].sum()),
        "backlog": backlog_sums(requests, window.last_ns) if window.last_ns else np.zeros(5),
        "failed": _failed(run, requests),
        "prefix": prefix_section(run),
        "switch": [[tier["tokens"] for tier in one["tiers"]] for one in switch_section(run) or []],
        "moves": _moves(moves_section(run)),
        "busy": lives.busy_s,
        "utilisation": usage.utilisation(run, end_s),
        "headroom": usage.headroom(run, end_s),
        "phases": usage.phase_sums(run),
        "kv": [usage.kv_sums(run, place, window.tokens_per_round) for place in pools],
        "clock": list(usage.clock_sums(run)[:2]),
        "energy": {name: getattr(found, name) for name in ("by_op", "running", "static", "ceiling_busy", "over_tdp_s")},
        "money": list(phase_seconds(run)),
        "rounds": int(run.round_columns["n_rounds"].sum()),
        "leaps": len(run.round_columns["n_rounds"]),
    }


def tops_of(run: Run) -> dict[str, float]:
    """What of a block may be the highest of the run; the lowest clock by its negative."""
    rounds, requests = run.round_columns, run.request_columns
    _, ns, lowest, highest = usage.clock_sums(run)
    return {
        "context": float(np.ma.filled(rounds["context"], 0).max(initial=0)),
        "batch": float(rounds["batch"].max(initial=0)),
        "prefill_tokens": float(rounds["prefill_tokens"].max(initial=0)),
        "prompt_tokens": float(requests["prompt_tokens"].max(initial=0)),
        "slow_MHz": -float(lowest) if ns else -np.inf,
        "fast_MHz": float(highest),
        **{f"kv_{i}": usage.kv_sums(run, i, 1.0)["peak"] for i in range(len(run.built.pools))},
    }


def subsets(run: Run, requests: Columns, window: Window) -> Iterator[tuple[Key, NDArray[np.bool_]]]:
    """Rows that get a line of their own in the summary: those in the window, by class and tenant; and by group."""
    counted = requests["arrival_ns"] >= window.start_s * 1e9
    yield ("window", ""), counted
    for name, slo in run.scenario.classes.items():
        yield ("class", name), counted & (requests["priority"] == slo.priority)
    tenants = np.ma.filled(requests["tenant"], -1)
    for number in np.unique(tenants[counted & (tenants >= 0)]).tolist():
        yield ("tenant", number), counted & (tenants == number)
    for name in names_of(run):
        yield ("group", name), requests["group"] == name


def _row(run: Run, requests: Columns, rows: NDArray[np.bool_]) -> dict[str, int]:
    mine = {name: column[rows] for name, column in requests.items()}
    good = good_ones(run, mine)
    counts = {status: int((mine["status"] == status).sum()) for status in ("finished", "rejected", "failed")}
    written = (mine["output_tokens"] * mine["samples"])[mine["status"] == "finished"]
    return {"requests": int(rows.sum()), **counts, "output_tokens": int(written.sum()),
            "met": 0 if good is None else int(good.sum())}  # fmt: skip


def _failed(run: Run, requests: Columns) -> list[int]:
    """Tried too often, and never sent."""
    if run.scenario.fleet is None:
        return [0, 0]
    failed = requests["status"] == "failed"
    spent = int((failed & (requests["retries"] > run.scenario.fleet.retries)).sum())
    return [spent, int(failed.sum()) - spent]


def _moves(section: dict[str, Any] | None) -> dict[str, Any] | None:
    """Means times their count, which add up."""
    if section is None:
        return None
    return section | {name: (section[name] or 0.0) * section["count"] for name in MEANS}
