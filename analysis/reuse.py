"""What a prefix cache found: by request, by level, and in all."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.frames import Columns, Run

__all__ = ["cached_columns", "level_names", "prefix_section", "prefix_warnings"]

Ints = NDArray[np.int64]
NS = 1e-9  # seconds in a nanosecond


def level_names(run: Run) -> list[str]:
    """A replica's own memory, then the tiers below it; empty without a prefix cache. Of groups, the most."""
    found = [one.setup.prefix.tiers for one, _ in run.built.pools if one.setup.prefix is not None]
    return ["memory", *(tier.name for tier in max(found, key=len))] if found else []


def cached_columns(run: Run, rows: dict[str, Any]) -> Columns:
    """Prompt tokens found when a request was first admitted, shape [requests]; with tiers, those of each level too."""
    names, hits = level_names(run), _first(run, rows)
    by_level = [np.zeros(len(rows["id"]), dtype=np.int64) for _ in names]
    for level, column in enumerate(by_level):
        mine = hits["level"] == level
        np.add.at(column, np.searchsorted(rows["id"], hits["request"][mine]), hits["tokens"][mine])
    total: Ints = np.sum(by_level, axis=0) if names else np.zeros_like(rows["id"])
    each = {f"cached_in_{name}": column for name, column in zip(names, by_level, strict=True)} if len(names) > 1 else {}
    return {"cached_tokens": total, **each}


def _first(run: Run, rows: dict[str, Any]) -> dict[str, Ints]:
    """Hits of first admissions: what is found again after a preemption or a failure is no saving to the user."""
    hits = run.recorder.hits.frame()
    place = np.searchsorted(rows["id"], hits["request"]) if len(rows["id"]) else hits["request"]
    first = (hits["preemptions"] == 0) & (hits["asked_ns"] == rows["admitted_ns"][place])
    return {name: column[first] for name, column in hits.items()}


def prefix_section(run: Run) -> dict[str, Any] | None:
    """``prefix_cache`` of summary.json (docs/results.md); None without one."""
    names = level_names(run)
    if not names:
        return None
    table = run.recorder.requests.frame()
    order = np.argsort(table["id"], kind="stable")
    rows = {name: column[order] for name, column in table.items()}
    hits, asked = _first(run, rows), int(rows["prompt"][rows["admitted_ns"] >= 0].sum())
    levels = [_level(run, hits, number, asked) | {"name": name} for number, name in enumerate(names)]
    found = sum(level["hit_tokens"] for level in levels)
    every = int(run.recorder.hits.frame()["tokens"].sum())
    return {
        "prompt_tokens": asked,
        "hit_tokens": found,
        "hit_rate": found / asked if asked else 0.0,
        "found_again_tokens": every - found,
        "evicted_blocks": levels[-1]["evicted_blocks"],
        "levels": levels,
    }


def prefix_warnings(section: dict[str, Any] | None) -> list[str]:
    """What a reader of the section should know."""
    empty = section is not None and not any(one["evicted_blocks"] or one["kept_bytes"] for one in section["levels"])
    if not empty:
        return []
    return ["Nothing ever entered the prefix cache: no request says what a whole block of its prompt is made of."]


def _level(run: Run, hits: dict[str, Ints], number: int, asked: int) -> dict[str, Any]:
    mine, all_hits, kept = hits["level"] == number, run.recorder.hits.frame(), run.recorder.levels.frame()
    tokens = int(hits["tokens"][mine].sum())
    loads = all_hits["level"] == number
    here = kept["level"] == number
    return {
        "hit_tokens": tokens,
        "hit_rate": tokens / asked if asked else 0.0,
        "evicted_blocks": int(kept["evicted_blocks"][here].sum()),
        "kept_bytes": int(kept["kept_bytes"][here].sum()),
        "loads": int(loads.sum()) if number else 0,
        "load_s": float((all_hits["end_ns"] - all_hits["start_ns"])[loads].sum()) * NS,
        "queued_s": float((all_hits["start_ns"] - all_hits["asked_ns"])[loads].sum()) * NS,
    }
