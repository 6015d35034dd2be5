"""The pages of studies without a clock, and of comparisons: ``speedup --out``, ``tune --out``, ``compare --out``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from analysis.comparison_files import waterfall_figure
from analysis.plots import house_style, speedup_contours, speedup_curves, tuning
from analysis.report.page import Html, Page, chart, joined, number, picture, table
from analysis.report.read import read_columns, read_json
from analysis.report.run_page import scenario_section
from analysis.speedup_files import RESULTS, picture_axes
from analysis.waterfall import Step

__all__ = ["compare_page", "speedup_page", "tune_page"]

MOST_LINES = 12
Columns = Mapping[str, Any]


# -- speedup


def speedup_page(folder: Path, most_rows: int) -> Page:
    """The best point, curves and contours over the axes, every point as a table."""
    found = read_columns(folder / "speedup.csv")
    needed(
        "speedup.csv", found, ("batch", "context", "expected_tokens", "round_ms", "step_ms", "speedup", "fits", "best")
    )
    asked, origin, resolved = scenario_section(folder)
    inputs = [name for name in found if name not in RESULTS]
    over = [f"{name}: {_values(found[name])}" for name in inputs]
    sections = [("Curves", _curves(found)), ("Every point", _points(found, most_rows)), *resolved]
    title = f"Speedup over autoregressive decoding: {folder.name}"
    return Page(title, _best_speedup(found, inputs), [*asked, *over], _speedup_warnings(found), sections, origin)


def _best_speedup(found: Columns, inputs: list[str]) -> str:
    wanted = np.where(found["best"].astype(bool) | ~found["best"].any(), found["speedup"], -np.inf)
    best = int(wanted.argmax())
    at = ", ".join(f"{name} {number(_plain(found[name][best]))}" for name in inputs)
    gives = f"{found['expected_tokens'][best]:.3g} tokens a round of {found['round_ms'][best]:.4g} ms"
    least = f"{found['speedup'].min():.3g}"
    return (
        f"At best {found['speedup'][best]:.3g} times autoregressive decoding, at {at}: {gives}; at worst {least} times."
    )


def _speedup_warnings(found: Columns) -> list[str]:
    warnings = []
    outside = int((found["fits"] == 0).sum())
    if outside:
        warnings.append(f"{outside} of {len(found['fits'])} points do not fit into memory or the model's context.")
    losing = int((found["speedup"] < 1).sum())
    if losing:
        warnings.append(f"{losing} of {len(found['speedup'])} points are slower than autoregressive decoding.")
    loss = found.get("quality_loss_percent")
    if loss is not None and loss.dtype == np.float64 and np.isnan(loss).any():
        warnings.append(f"Of {int(np.isnan(loss).sum())} points nobody knows what they lose in quality.")
    return warnings


def _curves(found: Columns) -> Html:
    every = [name for name in found if name not in RESULTS and len(set(found[name].tolist())) > 1]
    axes = [name for name in every if found[name].dtype != object]
    if not axes:
        return joined()
    x, lines, panel = picture_axes(axes, every, found)
    still = picture(speedup_curves(found, x, lines, panel), f"Speedup over {x}")
    drawn = chart(_lines(found, x, [name for name in every if name != x]), x, "speedup", still)
    pair = [name for name in axes if len(set(found[name].tolist())) > 2][:2]
    contours = (
        picture(speedup_contours(found, pair[0], pair[1]), "Lines of equal speedup") if len(pair) == 2 else Html("")
    )
    return joined(drawn, contours)


def _lines(found: Columns, x: str, others: list[str]) -> dict[str, tuple[Any, Any]]:
    """Speedup over ``x``, a line for each choice of the others; so many at most."""
    groups: dict[str, list[int]] = {}
    for i in range(len(found[x])):
        label = ", ".join(f"{name} {_plain(found[name][i])}" for name in others) or "this policy"
        groups.setdefault(label, []).append(i)
    chosen = list(groups.items())[:MOST_LINES]
    rows = {label: sorted(group, key=lambda i: float(found[x][i])) for label, group in chosen}
    return {label: (found[x][group], found["speedup"][group]) for label, group in rows.items()}


def _points(found: Columns, most_rows: int) -> Html:
    names = list(found)
    rows = [[_plain(found[name][i]) for name in names] for i in range(len(found["speedup"]))]
    return table(names, rows, most_rows, mark=names.index("best"))


# -- tune


def tune_page(folder: Path, most_rows: int) -> Page:
    """The recommended choice, all choices by time per token and capacity, and why the others are refused."""
    found = read_columns(folder / "tune.csv")
    needed("tune.csv", found, ("choice", "tpot_ms", "capacity_per_s", "why"))
    asked, origin, resolved = scenario_section(folder)
    why = [str(word) if isinstance(word, str) else "" for word in found["why"]]
    rows = [SimpleNamespace(choice=str(found["choice"][i]), tpot_ms=float(found["tpot_ms"][i]), why=why[i],
                            capacity_per_s=float(found["capacity_per_s"][i])) for i in range(len(why))]  # fmt: skip
    kept = [one for one in rows if not one.why]
    names = list(found)
    cells = [[_plain(found[name][i]) for name in names] for i in range(len(rows))]
    sections = [
        ("Time per token against capacity", picture(tuning(rows), "A dot for each choice")),
        ("Every choice, from the best", table(names, cells, most_rows)),
        *resolved,
    ]
    warnings = [f"{len(rows) - len(kept)} of {len(rows)} choices are refused; the table says why."] * (
        len(kept) < len(rows)
    )
    return Page(f"Tuning: {folder.name}", _best_choice(kept), asked, warnings, sections, origin)


def _best_choice(kept: list[SimpleNamespace]) -> str:
    if not kept:
        return "No choice keeps everything that was asked for."
    best, settles = (
        kept[0],
        f"{kept[0].tpot_ms:.4g} ms a token at this load, at most {kept[0].capacity_per_s:.4g} requests/s",
    )
    after = f"; next: {kept[1].choice}, {kept[1].tpot_ms:.4g} ms" if len(kept) > 1 else ""
    return f"Recommended: {best.choice}, {settles}{after}."


# -- compare


def compare_page(folder: Path, most_rows: int) -> Page:
    """The sentence, what the difference is made of, every metric with its interval."""
    found = read_json(folder / "compare.json")
    labels = (str(found["labels"][0]), str(found["labels"][1]))
    steps = [Step(str(s["cause"]), float(s["a_ms"]), float(s["b_ms"])) for s in found["waterfall"]]
    rows = [
        [d["metric"], d["a"], d["b"], d["difference"], d["low"], d["high"], _certain(d)] for d in found["differences"]
    ]
    share = f"{found['confidence']:.0%}"
    head = ["metric", "A", "B", "B - A", f"{share} low", f"{share} high", "certain"]
    parts = [[s.cause, s.a_ms, s.b_ms, s.difference_ms] for s in steps]
    with house_style():
        drawn = waterfall_figure(steps, labels)
    waterfall = picture(drawn, "From A's mean latency to B's, a bar for each cause")
    sections = [
        (
            "What the difference is made of",
            joined(waterfall, table(["cause", "A (ms)", "B (ms)", "B - A (ms)"], parts, most_rows)),
        ),
        ("Every metric", table(head, rows, most_rows)),
    ]
    asked = [
        f"A: {labels[0]}",
        f"B: {labels[1]}",
        f"{found['requests']} paired requests, intervals from {found['method']}",
    ]
    return Page(
        "A comparison under the same luck", str(found["sentence"]), asked, list(map(str, found["notes"])), sections
    )


def _certain(one: Mapping[str, Any]) -> object:
    low, high = one["low"], one["high"]
    return None if low is None or high is None else "yes" if low > 0 or high < 0 else "no"


# -- what they share


def needed(file: str, found: Columns, names: tuple[str, ...]) -> None:
    """Raise ValueError naming the column where a table lacks one, or has words where numbers belong."""
    words = ("choice", "why")
    for name in names:
        if name not in found:
            raise ValueError(f"{file}: has no column {name}")
        if name not in words and found[name].dtype == object:
            raise ValueError(f"{file}: column {name} holds words where numbers belong")


def _values(column: Any) -> str:
    values = list(dict.fromkeys(column.tolist()))
    shown = ", ".join(number(v) for v in values[:8])
    return shown + (f" ... ({len(values)} values)" if len(values) > 8 else "")


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
