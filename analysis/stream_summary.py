"""``summary.json`` of a run that was streamed to disk, from sums over its blocks and percentiles of its columns.

Sections, keys and definitions are those of ``analysis.metrics``; a test holds every number to the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from analysis import usage
from analysis.energy import Energy, at_idle_power, host_joules, over_tdp, section_of
from analysis.energy_money import money_section
from analysis.energy_uptime import Uptime, uptime
from analysis.facts import Facts
from analysis.fleet import names_of
from analysis.frames import Columns, Run
from analysis.latency import describe_weighted
from analysis.metrics import acceptance_of
from analysis.order import Order
from analysis.promise import LIMITED, judge_with
from analysis.reuse import prefix_warnings
from analysis.stream_sums import MEANS, Key, Window
from analysis.switching import switch_section
from analysis.warnings import backlog_of, failed_of, rejected_of, warnings_with

__all__ = ["Orders", "summary"]

WINDOW = ("window", "")


class Orders:
    """Order statistics of each latency of each subset of requests."""

    def __init__(self, run: Run) -> None:
        promised = [run.scenario.slo, *run.scenario.classes.values()]
        self.asked = tuple(sorted({50.0, 90.0, 99.0, *(float(slo.percentile) for slo in promised)}))
        self.of: dict[tuple[Key, str], Order] = {}

    def add(self, key: Key, columns: Columns) -> None:
        """One block of a subset, the known values of its columns."""
        for name, values in columns.items():
            if (key, name) not in self.of:
                self.of[key, name] = Order(self.asked)
            self.of[key, name].add(values)

    def turn(self) -> None:
        """The file has been read once more."""
        for order in self.of.values():
            order.turn()

    def get(self, key: Key, name: str) -> Order:
        """That of a subset and a column; of nothing where nobody was in it."""
        return self.of.get((key, name), Order(self.asked))

    def ends(self, key: Key) -> dict[str, dict[str, float | None]]:
        """p50 and p99 of each latency."""
        tables = {name: self.get(key, name).statistics() for name in LIMITED}
        return {name: {p: table[p] for p in ("p50", "p99")} for name, table in tables.items()}


def summary(
    run: Any, window: Window, facts: Facts, sums: dict[str, Any], tops: dict[str, float], orders: Orders
) -> dict[str, Any]:
    """``run``: the longest of its requests and rounds stand for all of them, and no leap is in its tables."""
    lives = _lives(run, window, sums)
    prompt, output = sums["tokens"]
    energy = section_of(_energy(run, lives, sums["energy"]), run, window.end_s, output)
    prefix, seconds = _prefix(sums["prefix"]), window.end_s - window.start_s
    dropped = {reason: int(n) for reason, n in sorted(run.dropped.items())}
    return {
        "complete": run.complete,
        "requests": sums["requests"] | {"dropped_rows": dropped},
        "duration_s": window.end_s,
        "window_s": [window.start_s, window.end_s],
        "latency": _latency(run, orders),
        "queue_ms": orders.get(WINDOW, "queue_ms").statistics(),
        "throughput": sums["throughput"],
        "slo": judge_with(lambda name: orders.get(WINDOW, name).percentile(run.scenario.slo.percentile),
                          run.scenario.slo),
        "goodput": _goodput(run, sums["rows"].get(WINDOW), seconds),
        "classes": _classes(run, sums, orders, seconds),
        "tenants": _tenants(run, sums, orders, seconds),
        "fleet": _fleet(run, lives, sums, orders),
        "switch": _switch(run, sums["switch"]),
        "utilisation": sums["utilisation"],
        "phases": usage.phases_of(sums["phases"], _busy_s(sums)),
        "headroom": sums["headroom"],
        "acceptance": acceptance_of({"rounds": np.array([facts.rounds]), "drafted_tokens": np.array([facts.drafted]),
                                     "accepted_tokens": np.array([facts.accepted])}),
        "kv": _kv(run, sums["kv"], tops),
        "prefix_cache": prefix,
        "moves": _moves(sums["moves"]),
        "energy": energy,
        "clock": usage.clock_of((*sums["clock"], int(-tops["slow_MHz"]), int(tops["fast_MHz"])))
        if sums["clock"][1] else None,
        "cost": money_section(run, window.end_s, prompt, output, energy["kWh"], spent=(*sums["money"],),
                              offline=facts.arrived > 1 and not facts.last_ns),
        "warnings": _warnings(run, facts, sums) + over_tdp(run, energy, _busy_s(sums)) + prefix_warnings(prefix),
    }  # fmt: skip


def _busy_s(sums: dict[str, Any]) -> float:
    return float(sum(one["duration_ns"] for one in sums["phases"])) * 1e-9


def _lives(run: Any, window: Window, sums: dict[str, Any]) -> Uptime:
    """Up and busy seconds of every replica."""
    whole = uptime(run, window.end_s)
    return Uptime(whole.pools, whole.pool, whole.up_s, np.asarray(sums["busy"]))


def _energy(run: Any, lives: Uptime, sums: dict[str, Any]) -> Energy:
    idle, host = at_idle_power(run, lives, lives.idle_s), host_joules(run, lives)
    return Energy(mode=run.scenario.energy.mode, idle=idle, host=host, **sums)


def _latency(run: Any, orders: Orders) -> dict[str, Any]:
    gaps, weights = run.recorder.gaps.weighted()
    table = {name: orders.get(WINDOW, name).statistics() for name in LIMITED}
    itl = describe_weighted(gaps * 1e-6, weights)
    return {"ttft_ms": table["ttft_ms"], "tpot_ms": table["tpot_ms"], "itl_ms": itl, "e2el_ms": table["e2el_ms"]}


def _promised(run: Any) -> bool:
    promises = [run.scenario.slo, *run.scenario.classes.values()]
    return any(getattr(slo, name) is not None for slo in promises for name in LIMITED)


def _goodput(run: Any, row: dict[str, int] | None, seconds: float) -> dict[str, float] | None:
    if row is None or not row["requests"] or not _promised(run):
        return None
    return {"requests_per_s": row["met"] / seconds if seconds else 0.0, "attainment": row["met"] / row["requests"]}


NOBODY = dict.fromkeys(("requests", "finished", "rejected", "failed", "output_tokens", "met"), 0)


def _row(run: Any, sums: dict[str, Any], orders: Orders, key: Key, seconds: float) -> dict[str, Any]:
    counts = sums["rows"].get(key, NOBODY)
    met = counts["met"] if _promised(run) else None
    return {
        **{name: counts[name] for name in ("requests", "finished", "rejected", "failed", "output_tokens")},
        **orders.ends(key),
        "goodput": None if met is None or not seconds else met / seconds,
        "attainment": None if met is None or not counts["requests"] else met / counts["requests"],
    }


def _classes(run: Any, sums: dict[str, Any], orders: Orders, seconds: float) -> dict[str, Any]:

    def judged(name: str, slo: Any) -> list[dict[str, Any]]:
        return judge_with(lambda metric: orders.get(("class", name), metric).percentile(slo.percentile), slo)

    return {
        name: {
            "priority": slo.priority,
            "slo": judged(name, slo),
            **_row(run, sums, orders, ("class", name), seconds),
        }
        for name, slo in run.scenario.classes.items()
    }


def _tenants(run: Any, sums: dict[str, Any], orders: Orders, seconds: float) -> dict[str, Any]:
    names = {part.number: name for name, part in run.scenario.tenants.items()}
    found = sorted({*(number for kind, number in sums["rows"] if kind == "tenant"), *names})
    return {names.get(n, str(n)): {"number": n} | _row(run, sums, orders, ("tenant", n), seconds) for n in found}


def _fleet(run: Any, lives: Uptime, sums: dict[str, Any], orders: Orders) -> dict[str, Any] | None:
    names = names_of(run)
    if not names:
        return None
    up_s, busy_s = lives.by_pool(lives.up_s), lives.by_pool(lives.busy_s)
    groups = []
    for place, name in enumerate(names):
        counts = sums["rows"].get(("group", name), NOBODY)
        groups.append({
            "name": name,
            "replicas": int((lives.pool == place).sum()),
            "replica_hours": float(up_s[place]) / 3600,
            "busy": float(busy_s[place] / up_s[place]) if up_s[place] else 0.0,
            **{key: counts[key] for key in ("requests", "finished", "output_tokens")},
            **orders.ends(("group", name)),
        })  # fmt: skip
    recorder = run.recorder
    return {"groups": groups, "retries": sums["retries"], "held_s": recorder.held_ns * 1e-9,
            "lost_tokens": recorder.lost_tokens}  # fmt: skip


def _kv(run: Any, sums: list[dict[str, float]], tops: dict[str, float]) -> dict[str, float]:
    """Of the last pool, or of the group of a fleet that was fullest."""
    pools = run.built.pools
    peaks = [tops[f"kv_{i}"] / max(one.setup.kv.capacity_bytes, 1) for i, (one, _) in enumerate(pools)]
    place = len(pools) - 1 if run.scenario.fleet is None else int(np.argmax(peaks))
    return usage.kv_of(run, place, sums[place] | {"peak": tops[f"kv_{place}"]})


def _prefix(section: dict[str, Any] | None) -> dict[str, Any] | None:
    """Rates from what has been added up."""
    if section is None:
        return None
    asked = section["prompt_tokens"]
    for one in (section, *section["levels"]):
        one["hit_rate"] = one["hit_tokens"] / asked if asked else 0.0
    return section


def _moves(section: dict[str, Any] | None) -> dict[str, Any] | None:
    if section is None:
        return None
    count = section["count"]
    return section | {name: section[name] / count if count else None for name in MEANS}


def _switch(run: Any, tokens: list[list[int]]) -> list[dict[str, Any]] | None:
    """Shares and what they lose, from tokens that have been added up."""
    found = switch_section(run)
    for one, counts in zip(found or [], tokens, strict=False):
        for tier, count in zip(one["tiers"], counts, strict=True):
            tier.update(tokens=count, share=count / sum(counts) if sum(counts) else 0.0)
        used = [(tier["share"], tier["loss_percent"]) for tier in one["tiers"] if tier["share"]]
        one["loss_percent"] = None if any(p is None for _, p in used) else float(sum(s * p for s, p in used))
    return found


def _warnings(run: Any, facts: Facts, sums: dict[str, Any]) -> list[str]:
    counts = sums["requests"]
    never = counts["rejected_for"].get("never", 0)
    said = (
        backlog_of(sums["backlog"]) if facts.last_ns > facts.first_ns else None,
        rejected_of(never, counts["rejected"] - never),
        failed_of(run, *sums["failed"]) if sum(sums["failed"]) else None,
    )
    return warnings_with(run, *said)
