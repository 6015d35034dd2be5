"""Fitted terms of a device under a kernel library, from its timings: half of the shapes fit, the other half judge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.analytic.hardware import Device, Terms
from sim.calibration.fit_formulas import FORMULAS, OVERLAP, QUANTISE, Parameter, Rows, seconds
from sim.calibration.fit_robust import Bounds, fit, intervals
from sim.calibration.kernel_rows import columns, is_held, layouts, shapes
from sim.calibration.kernel_tables import FEWEST, KernelTable

__all__ = [
    "NEUTRAL",
    "TILES",
    "Entry",
    "Errors",
    "best_fit",
    "entry_terms",
    "errors",
    "fit_entry",
    "fit_layouts",
    "fit_table",
    "parameters",
    "plain_entry",
    "tables_of",
]

Frame = Any
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Entry = dict[str, Any]  # keys of a profile's terms, as fitted
NEUTRAL = {"compute": 1.0, "memory": 1.0, "floor_us": 0.0, "overlap_p": inf, "quantise": 0.0, "depth_us": 0.0}
QUANTISED = ("fp8", "fp8_block", "nvfp4", "int8")
TILES = (32, 64, 128, 256)
STARTS: Mapping[str, tuple[Mapping[str, float], ...]] = {  # the search may stop at a hill; the best end counts
    "gemm": ({}, {"overlap_p": 1.3, "compute": 0.8, "hot_share": 0.2}),
    "decode_attention": (
        {"compute": 0.05, "tile_tokens": 64.0, "split_us": 1.0, "split_tokens": 512.0, "sequence_ns": 0.25},
        {"compute": 0.3, "overlap_p": 1.3, "sequence_ns": 2.5, "walk_ns": 0.1, "split_tokens": 2000.0},
        {"compute": 0.1, "overlap_p": 4.0, "sequence_ns": 1.0, "walk_ns": 0.3, "hot_share": 0.7, "hot_cost": 0.2},
    ),
    "prefill_attention": ({}, {"walk_ns": 1.0, "hot_share": 0.3}, {"compute": 0.3, "hot_share": 0.8, "memory": 0.3}),
}


@dataclass(frozen=True)
class Errors:
    """Relative errors of predictions: median, 90th percentile and mean of signed ones, over n rows; shares, not %."""

    median: float
    p90: float
    bias: float
    n: int


def errors(predicted: Floats, measured: Floats) -> Errors:
    """Errors of ``predicted`` against ``measured``; NaN where there is nothing to judge."""
    if not len(measured):
        return Errors(float("nan"), float("nan"), float("nan"), 0)
    ratio = predicted / measured - 1
    size = np.abs(ratio)
    return Errors(float(np.median(size)), float(np.quantile(size, 0.9)), float(np.median(ratio)), len(measured))


def parameters(kind: str, number_format: str) -> tuple[Parameter, ...]:
    """What is fitted for a kind of kernel in a format: inputs are quantised only on the way to narrow products."""
    quantised = kind == "gemm" and number_format in QUANTISED
    return (*FORMULAS[kind], QUANTISE) if quantised else FORMULAS[kind]


def entry_terms(entry: Mapping[str, Any]) -> Terms:
    """Terms of a profile entry."""
    return Terms.from_profile({**NEUTRAL, **entry}, "fitted")


def tables_of(kind: str, frame: Frame) -> Iterator[tuple[tuple[str, str, str, str], Any]]:
    """(library, version, format, kernel) and row numbers of each table that is fitted by itself."""
    names = frame["dtype"]
    if kind == "decode_attention":
        names = frame["kv_dtype"]
    elif kind == "prefill_attention":
        names = frame["dtype"] + "-" + frame["kv_dtype"]
    keys = [frame["library"], frame["version"], names, frame["kernel"]]
    for key, index in frame.groupby(keys).indices.items():
        yield tuple(map(str, key)), index  # type: ignore[misc]


def fit_table(table: KernelTable, index: Any, device: Device, everything: bool = False) -> dict[str, Entry]:
    """Entries by head layout (``any`` alone for products) of the rows ``index``; half of the shapes are held out.

    ``everything``: fit on all rows, for a user's own profile. Each entry says its held-out error.
    """
    frame = table.frame.iloc[index]
    held = np.zeros(len(frame), dtype=bool) if everything else is_held(table.kind, frame)
    rows = columns(table.kind, frame, device)
    return fit_layouts(table.kind, frame, rows, held)


def fit_layouts(kind: str, frame: Frame, rows: Rows, held: Mask) -> dict[str, Entry]:
    """Entries by head layout, and ``any`` over all of them."""
    number_format, groups, measured = str(frame["dtype"].iloc[0]), shapes(kind, frame), frame["seconds"].to_numpy(float)
    found = {"any": fit_entry(kind, number_format, rows, measured, groups, held)}
    names = np.array(layouts(kind, frame)) if kind != "gemm" else np.array(["any"])
    for name in sorted(set(names.tolist()) - {"any"}):
        chosen = names == name
        if (chosen & ~held).sum() >= 3 * FEWEST:
            part = {column: values[chosen] for column, values in rows.items()}
            found[name] = fit_entry(kind, number_format, part, measured[chosen], groups[chosen], held[chosen])
    return found


def fit_entry(
    kind: str, number_format: str, rows: Rows, measured: Floats, groups: NDArray[np.int64], held: Mask
) -> Entry:
    """The best entry over starts and tiles, its intervals, and its error on the held rows (all, if none are held)."""
    seen = {column: values[~held] for column, values in rows.items()}
    wanted, log_seconds = parameters(kind, number_format), np.log(measured[~held])
    tiles = TILES if kind == "gemm" else (1,)
    _, tile, found = best_fit(kind, wanted, tiles, seen, log_seconds)
    low, high = intervals(_predictor(kind, wanted, tile, seen), log_seconds, _bounds(wanted, {}), found, groups[~held])
    entry: Entry = plain_entry(kind, wanted, tile, found)
    entry["interval"] = {
        p.key: [min(_value(p, a), entry[p.key]), max(_value(p, b), entry[p.key])]
        for p, a, b in zip(wanted, low, high, strict=True)
    }
    judged = held if held.any() else ~held
    error = errors(seconds(kind, entry_terms(entry), {c: v[judged] for c, v in rows.items()}), measured[judged])
    entry["fit"] = {
        "rows": int((~held).sum()),
        "judged": error.n if held.any() else 0,
        "median_percent": round(100 * error.median, 2),
        "p90_percent": round(100 * error.p90, 2),
    }
    return entry


def best_fit(
    kind: str, wanted: tuple[Parameter, ...], tiles: tuple[int, ...], rows: Rows, log_seconds: Floats
) -> tuple[float, int, Floats]:
    """(misfit, tile, parameters) of the best of all starts and tiles."""
    tries = (_fitted(kind, wanted, tile, start, rows, log_seconds) for tile in tiles for start in STARTS[kind])
    return min(tries, key=_misfit)


def _fitted(
    kind: str, wanted: tuple[Parameter, ...], tile: int, start: Mapping[str, float], rows: Rows, log_seconds: Floats
) -> tuple[float, int, Floats]:
    found = fit(_predictor(kind, wanted, tile, rows), log_seconds, _bounds(wanted, start))
    return found.misfit, tile, found.parameters


def _misfit(found: tuple[float, int, Floats]) -> float:
    return found[0]


def _predictor(kind: str, wanted: tuple[Parameter, ...], tile: int, rows: Rows) -> Any:
    fixed = {"tile_rows": tile, "overlap_p": 1.0 if kind == "prefill_attention" else float("inf")}

    def predict(at: Floats) -> Floats:
        values = {p.field: _value(p, x) * p.unit for p, x in zip(wanted, at.tolist(), strict=True)}
        return seconds(kind, Terms(**{**fixed, **values}), rows)  # type: ignore[arg-type]

    return predict


def plain_entry(kind: str, wanted: tuple[Parameter, ...], tile: int, at: Floats) -> Entry:
    """A profile entry of parameters as the search has them."""
    values: Entry = {p.key: _value(p, x) for p, x in zip(wanted, at.tolist(), strict=True)}
    values.setdefault("quantise", 0.0)
    values.setdefault("depth_us", 0.0)
    values.setdefault("overlap_p", 1.0)
    return values | ({"tile_rows": tile} if kind == "gemm" else {})


def _bounds(wanted: tuple[Parameter, ...], start: Mapping[str, float]) -> Bounds:
    start_at, low, high = (
        np.array([_place(p, value) for p, value in zip(wanted, values, strict=True)])
        for values in ([start.get(p.key, p.start) for p in wanted], [p.low for p in wanted], [p.high for p in wanted])
    )
    return Bounds(start_at, low, high)


def _place(parameter: Parameter, value: float) -> float:
    """Where the search has a value: its logarithm; of the overlap, that of its excess over 1."""
    return float(np.log(value - 1.0 if parameter.key == OVERLAP.key else value))


def _value(parameter: Parameter, at: float) -> float:
    value = float(np.exp(at)) + (1.0 if parameter.key == OVERLAP.key else 0.0)
    return float(f"{min(max(value, parameter.low), parameter.high):.6g}")
