"""The pages of ``sweep --out`` and ``plan --out``: what was asked, the answer, pictures, every row as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from analysis.plots.planning import plan_front, plan_sensitivity, sweep_lines
from analysis.report.page import Html, Page, chart, joined, number, picture, table
from analysis.report.read import read_columns, read_json
from analysis.report.run_page import scenario_section

__all__ = ["plan_page", "sweep_page"]

RESULTS = ("ttft_p99_ms", "tpot_p99_ms", "output_tokens_per_s")  # drawn over what was swept
MOST_LINES = 12
SHOWN = ("rank", "candidate", "status", "size", "devices", "usd_per_hour", "why", "capacity_per_s", "ttft_p99_ms",
         "tpot_p99_ms", "e2el_mean_ms", "joules_per_output_token", "usd_per_million_output_tokens",
         "least_usd_per_hour")  # fmt: skip


def sweep_page(folder: Path, most_rows: int) -> Page:
    """Every point of a sweep, those that cannot run among them."""
    said, found = read_json(folder / "sweep.json"), read_columns(folder / "sweep.csv")
    asked, origin, resolved = scenario_section(folder)
    names = list(found)
    rows = _rows(found, names)
    status = found["status"].tolist()
    failed = len(status) - status.count("ok")
    keys = ", ".join(str(axis["path"]) for axis in said["axes"])
    warnings = [f"{failed} of {len(status)} points cannot run; column why says why."] * (failed > 0)
    answer = f"{len(status)} points ({said['design']}) over {keys}."
    curves = _curves(found, [str(axis["path"]) for axis in said["axes"]])
    sections = [*([("Over what was swept", curves)] if curves else []),
                ("Every point", table(names, rows, most_rows)), *resolved]  # fmt: skip
    return Page(f"Sweep: {folder.name}", answer, asked, warnings, sections, origin)


def _curves(found: dict[str, Any], axes: list[str]) -> Html:
    """The first axis of numbers along x, a line for each choice of the others; one chart for each of RESULTS."""
    status = found["status"].tolist()
    good = [i for i, said in enumerate(status) if said == "ok"]
    varied = [name for name in axes if name in found and len(set(found[name].tolist())) > 1]
    x = next((name for name in varied if found[name].dtype != object), None)
    if x is None or not good:
        return Html("")
    others = [name for name in varied if name != x]
    return joined(*(_chart(found, good, x, others, y) for y in RESULTS if y in found))


def _chart(found: dict[str, Any], good: list[int], x: str, others: list[str], y: str) -> Html:
    groups: dict[str, list[tuple[float, float]]] = {}
    for i in good:
        value = _float(found[y][i])
        label = ", ".join(f"{name} {found[name][i]}" for name in others) or y
        if value is not None:
            groups.setdefault(label, []).append((float(found[x][i]), value))
    if not groups:
        return Html("")
    lines: dict[str, tuple[list[float], list[float]]] = {}
    for label, pairs in list(groups.items())[:MOST_LINES]:
        xs, ys = zip(*sorted(pairs), strict=True)
        lines[label] = (list(xs), list(ys))
    shown = {label[:60]: line for label, line in lines.items()}
    return chart(lines, x, y, picture(sweep_lines(shown, x, y), f"{y} over {x}"))


def _float(cell: Any) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def plan_page(folder: Path, most_rows: int) -> Page:
    """The answer, the front, what would change it, and every candidate with what it failed on."""
    said, found = read_json(folder / "plan.json"), read_columns(folder / "ranked.csv")
    kept: list[dict[str, Any]] = said["kept"]
    names = [name for name in SHOWN if name in found]
    _, origin, resolved = scenario_section(folder)
    sections = [("Every candidate, from the best", table(names, _rows(found, names), most_rows)), *resolved]
    if kept:
        pictures = [("Dollars, latency and energy", picture(plan_front(kept), "A dot for each confirmed plan"))]
        if len(said["sensitivity"]) > 1:
            bars = picture(plan_sensitivity(said["sensitivity"]), "Change of dollars by a tenth more of something")
            pictures.append(("What a tenth more would change", bars))
        sections = [*pictures, *sections]
    slo = ", ".join(f"{name} {number(value)}" for name, value in said["slo"].items() if value is not None)
    asked = [f"requests per second: {number(said['rate_per_s'])}", f"slo: {slo}"]
    counts = [f"{count} {status}" for status, count in said["candidates"].items()]
    origin = origin or [str(said["version"]), f"seed {said['seed']}"]
    return Page(f"Plan: {folder.name}", str(said["answer"]), [*asked, f"candidates: {', '.join(counts)}"], [], sections,
                origin)  # fmt: skip


def _rows(found: dict[str, Any], names: list[str]) -> list[list[Any]]:
    columns = [found[name].tolist() for name in names]
    return [list(row) for row in zip(*columns, strict=True)]
