"""Two runs as one: the requests that finished in both, by id, and the columns that comparisons are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.frames import Run
from analysis.promise import kept
from analysis.waterfall import parts_ms

__all__ = ["LATENCIES", "RATES", "Pair", "functional", "metrics_of", "pair_up"]

Floats = NDArray[np.float64]
LATENCIES = ("TTFT", "TPOT", "ITL", "E2EL")
STATISTICS = ("mean", "p50", "p99")
RATES = {  # numerator and denominator by completed request, times this
    "requests/s": ("one", "between_s", 1.0),
    "output tokens/s": ("tokens", "between_s", 1.0),
    "goodput (requests/s)": ("good", "between_s", 1.0),
    "joules per output token": ("joules", "tokens", 1.0),
    "dollars per million output tokens": ("between_usd", "tokens", 1e6),
}


@dataclass(frozen=True)
class Pair:
    """Columns of both runs, side 0 and 1. ``ids``: of the requests that finished in both, which ``latencies`` (by name,
    in ms) and ``parts`` (seconds by cause, see waterfall.py, in ms) follow. ``done``: by order of completion, each of
    shape [completed]. ``left_out``: requests of either run that are no pair; ``alike``: pairs ask for the same work.
    """

    ids: NDArray[np.int64]
    latencies: tuple[Mapping[str, Floats], Mapping[str, Floats]]
    parts: tuple[Mapping[str, Floats], Mapping[str, Floats]]
    done: tuple[Mapping[str, Floats], Mapping[str, Floats]]
    whole: tuple[Mapping[str, float | None], Mapping[str, float | None]]
    left_out: int
    alike: bool
    notes: tuple[str, ...] = ()


def pair_up(a: Run, b: Run) -> Pair:
    """Pair the requests of two runs. Raises ValueError where none finished in both."""
    tables = [run.request_columns for run in (a, b)]
    rows = [_counted(run) for run in (a, b)]
    ids, at_a, at_b = np.intersect1d(
        tables[0]["id"][rows[0]], tables[1]["id"][rows[1]], assume_unique=True, return_indices=True
    )
    if not len(ids):
        raise ValueError("compare: no request finished in both runs")
    places = [rows[0][at_a], rows[1][at_b]]
    chosen = [{name: c[at] for name, c in table.items()} for table, at in zip(tables, places, strict=True)]
    alike = all(np.array_equal(chosen[0][n], chosen[1][n]) for n in ("prompt_tokens", "output_tokens", "samples"))
    return Pair(
        ids=ids,
        latencies=(_latencies(chosen[0]), _latencies(chosen[1])),
        parts=(parts_ms(a, places[0]), parts_ms(b, places[1])),
        done=(_completions(a), _completions(b)),
        whole=(_whole(a), _whole(b)),
        left_out=max(len(t["id"]) for t in tables) - len(ids),
        alike=alike,
        notes=tuple(f"{name}: {note}" for name, run in (("A", a), ("B", b)) for note in run.notes),
    )


def metrics_of(pair: Pair, side: int) -> dict[str, float | None]:
    """Every metric of one run by name: latencies of the paired requests, the rest of the whole run."""
    names = [f"{name} {statistic} (ms)" for name in LATENCIES for statistic in STATISTICS]
    table: dict[str, float | None] = {name: _latency(pair, side, name, None) for name in names}
    return {**table, **pair.whole[side]}


def functional(pair: Pair, side: int, name: str, rows: NDArray[np.int64] | None) -> float | None:
    """A metric of the sample ``rows`` (None: all), or None for what a sample of requests does not say."""
    if name not in RATES:
        return None if name.startswith("ITL p") else _latency(pair, side, name, rows)
    above, below, factor = RATES[name]
    columns = pair.done[side]
    if above not in columns or below not in columns:
        return None
    chosen = [columns[key] if rows is None else columns[key][rows % len(columns[key])] for key in (above, below)]
    total = float(chosen[1].sum())
    return factor * float(chosen[0].sum()) / total if total else 0.0


def _latency(pair: Pair, side: int, name: str, rows: NDArray[np.int64] | None) -> float | None:
    latency, statistic, _ = name.split()
    columns = pair.latencies[side]
    if latency == "ITL":
        if statistic != "mean":
            return pair.whole[side].get(name)
        spoken, gaps = (columns[key] if rows is None else columns[key][rows] for key in ("spoken", "gaps"))
        return float(spoken.sum() / gaps.sum()) if gaps.any() else None
    values = columns[latency] if rows is None else columns[latency][rows]
    values = values[~np.isnan(values)] if latency == "TPOT" else values
    if not len(values):
        return None
    return float(values.mean() if statistic == "mean" else np.percentile(values, float(statistic[1:])))


def _counted(run: Run) -> NDArray[np.int64]:
    """Rows of requests that finished, those before the end of the warm-up left out."""
    table = run.request_columns
    counted = (table["status"] == "finished") & (table["arrival_ns"] >= run.scenario.warmup_s * 1e9)
    return np.flatnonzero(counted)


def _latencies(rows: Mapping[str, Any]) -> dict[str, Floats]:
    """In ms; TPOT is NaN for one token. ``spoken`` ms from first to last token and ``gaps`` between make the mean ITL."""
    plain = {name: np.ma.filled(np.ma.asarray(rows[name], np.float64), np.nan) for name in _NEEDED}
    drafted = plain["drafted_tokens"].any()
    gaps = plain["rounds"] / plain["samples"] if drafted else plain["output_tokens"] - 1
    return {
        "TTFT": plain["ttft_ms"],
        "TPOT": plain["tpot_ms"],
        "E2EL": plain["e2el_ms"],
        "spoken": plain["e2el_ms"] - plain["ttft_ms"],
        "gaps": gaps,
    }


_NEEDED = ("ttft_ms", "tpot_ms", "e2el_ms", "output_tokens", "rounds", "samples", "drafted_tokens")


def _completions(run: Run) -> dict[str, Floats]:
    """By order of completion: the time since the one before (the first: since the clock began), its tokens and bill."""
    table = run.request_columns
    rows = np.flatnonzero(table["status"] == "finished")
    rows = rows[np.argsort(np.ma.getdata(table["finish_ns"])[rows], kind="stable")]
    finish_s = np.ma.getdata(table["finish_ns"])[rows] * 1e-9
    between_s = np.diff(finish_s, prepend=0.0)
    out = {"one": np.ones(len(rows)), "between_s": between_s}
    out["tokens"] = (table["output_tokens"] * table["samples"])[rows].astype(np.float64)
    if run.metrics["goodput"] is not None:
        out["good"] = kept(table, run.scenario.slo)[rows].astype(np.float64)
    if run.metrics["energy"]["joules"] is not None:
        out["joules"] = np.ma.filled(table["joules"][rows], np.nan)
    cost = run.metrics["cost"]
    if cost["usd"] is not None:
        out["between_usd"] = between_s * (cost["usd_per_device_hour"] * cost["devices"] / 3600)
    return out


def _whole(run: Run) -> dict[str, float | None]:
    """What summary.json says of the run as a whole, under the names used here."""
    found = run.metrics
    itl = found["latency"]["itl_ms"]
    return {
        **{f"ITL {statistic} (ms)": itl[statistic] for statistic in ("p50", "p99")},
        "requests/s": found["throughput"]["requests_per_s"],
        "output tokens/s": found["throughput"]["output_tokens_per_s"],
        "goodput (requests/s)": (found["goodput"] or {}).get("requests_per_s"),
        "joules per output token": found["energy"]["joules_per_output_token"],
        "dollars per million output tokens": found["cost"]["usd_per_million_output_tokens"],
    }
