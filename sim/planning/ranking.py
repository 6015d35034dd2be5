"""The rows of a plan in order, what each failed on, the Pareto front, and the answer in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

from sim.planning.candidates import Candidate
from sim.planning.screen import Screened
from sim.planning.search import Question
from sim.planning.sensitivity import MORE

__all__ = ["answer", "ranked", "row_of", "then"]

Row = dict[str, Any]
PARETO = ("usd_per_hour", "e2el_mean_ms", "joules_per_output_token")
ORDER = ("kept", "dear", "misses", "too dear", "ruled out")


def row_of(candidate: Candidate, paper: Screened, found: Row | None) -> Row:
    """A candidate's row: what paper says of it, then what the clock said (None: it was never asked)."""
    said = paper.row()
    base = {
        "candidate": candidate.label, "hardware": said["hardware"], "status": "", "units": None, "size": None,
        "devices": None, "usd_per_hour": None,
        "unit_settings": list(candidate.settings), "unit_devices": said["devices"],
        "unit_usd_per_hour": said["usd_per_hour"], "paper_capacity_per_s": said["capacity_per_s"],
        "paper_tpot_ms": said["tpot_ms"], "paper_ttft_ms": said["ttft_ms"],
        "least_usd_per_hour": said["least_usd_per_hour"], "term": said["term"], "missed": said["broken"] or None,
    }  # fmt: skip
    if paper.why:
        return {**base, "status": "ruled out", "why": paper.why}
    if found is None:
        return {**base, "status": "too dear", "why": f"costs at least ${paper.least_usd_per_hour:.4g}/h"}
    return {**base, **found}


def ranked(rows: list[Row]) -> list[Row]:
    """Kept plans by dollars, then latency; others by how near they came. Marks the Pareto front."""
    numbered = [{"number": i, **one} for i, one in enumerate(rows)]
    ranked = sorted(numbered, key=_key)
    kept = [one for one in ranked if one["status"] == "kept"]
    for place, one in enumerate(kept, 1):
        one["rank"], one["pareto"] = place, not any(_beats(other, one) for other in kept)
        if place > 1:
            one["why"] = _worse(one, kept[0])
    return ranked


def _worse(one: Row, best: Row) -> str:
    """Why a plan that keeps every promise is not the best."""
    if one["usd_per_hour"] > best["usd_per_hour"]:
        return f"costs {one['usd_per_hour'] / best['usd_per_hour'] - 1:.0%} more"
    slower = (one["e2el_mean_ms"] or 0.0) / (best["e2el_mean_ms"] or 1.0) - 1
    return f"costs the same and is {slower:.0%} slower"


def _key(one: Row) -> tuple[Any, ...]:
    place = ORDER.index(one["status"])
    by = {
        "kept": (one["usd_per_hour"], one.get("e2el_mean_ms") or inf),
        "misses": (inf if one.get("missed_by") is None else one.get("missed_by"), 0.0),
    }
    return (
        place,
        *by.get(one["status"], (one["least_usd_per_hour"] or inf, one["paper_tpot_ms"] or inf)),
        one["number"],
    )


def _beats(a: Row, b: Row) -> bool:
    """Whether a is no worse in dollars, latency and energy, and better in one; what is unknown does not count."""
    pairs = [(a[name], b[name]) for name in PARETO if a.get(name) is not None and b.get(name) is not None]
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)


def then(rows: Sequence[Row], bar: Row) -> str:
    """Which plan of other devices would be the cheapest if the best one's devices cost more; empty where it stays."""
    if not bar["change"].startswith("price"):
        return ""
    dearer = MORE * rows[0]["usd_per_hour"]
    others = [one for one in rows if one["status"] == "kept" and one["hardware"] != rows[0]["hardware"]]
    return next((one["candidate"] for one in others if one["usd_per_hour"] < dearer), "")


def answer(rows: Sequence[Row], question: Question) -> str:
    """The plan in one sentence, or what makes it impossible."""
    first, rate = rows[0], question.traffic.rate_per_s
    if first["status"] != "kept":
        return _impossible(rows, question)
    sure = f"at {question.plan.confidence:.0%} confidence from {first['seeds']} runs"
    said = (
        f"{first['candidate']}: {first['size']} x {first['unit_devices']} devices for "
        f"${first['usd_per_hour']:.4g}/h keep every promise at {rate:.4g} requests/s ({sure})"
    )
    if first["fewer"]:
        said += f"; {first['fewer']}"
    kept = [one for one in rows if one["status"] == "kept"]
    return f"{said}; next is {kept[1]['candidate']}, which {kept[1]['why']}." if len(kept) > 1 else f"{said}."


def _impossible(rows: Sequence[Row], question: Question) -> str:
    """Which promise no candidate keeps, and which seconds stand in its way."""
    slo, broken = question.scenario.slo, [one for one in rows if one["missed"] in ("tpot_ms", "ttft_ms", "e2el_ms")]
    near = [one for one in rows if one["status"] == "misses"]
    if near:
        return f"No candidate keeps every promise; the nearest is {near[0]['candidate']}: {near[0]['why']}."
    for name in ("tpot_ms", "ttft_ms", "e2el_ms"):
        mine = [one for one in broken if one["missed"] == name]
        if mine:
            figure = "paper_tpot_ms" if name == "tpot_ms" else "paper_ttft_ms"
            best = min(mine, key=lambda one: one[figure])
            limit = f"{name.removesuffix('_ms').upper()} <= {getattr(slo, name):g} ms"
            return f"No candidate can keep {limit}: with the quickest, {best['candidate']}, {best['term']}."
    return f"No candidate will do; of the first, {rows[0]['candidate']}: {rows[0]['why']}."
