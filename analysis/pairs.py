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

__all__ = ["Pair", "metrics_of", "pair_up", "sampled"]

Floats = NDArray[np.float64]
Table = dict[str, float | None]
LATENCIES = {"TTFT": "ttft_ms", "TPOT": "tpot_ms", "E2EL": "e2el_ms"}
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
    """Columns of both runs, side 0 and 1.

    ``ids``: of the requests that finished in both, which ``latencies`` (by name, in ms, TPOT NaN for one token),
    ``spoken`` (ms from first to last token, gaps between tokens) and ``parts`` (ms by cause, see waterfall.py) follow.
    ``done``: by order of completion, each of shape [completed]. ``whole``: metrics of a run as a whole. ``left_out``:
    requests of either run that are no pair; ``alike``: pairs ask for the same work.
    """

    ids: NDArray[np.int64]
    latencies: tuple[Mapping[str, Floats], Mapping[str, Floats]]
    spoken: tuple[tuple[Floats, Floats], tuple[Floats, Floats]]
    parts: tuple[Mapping[str, Floats], Mapping[str, Floats]]
    done: tuple[Mapping[str, Floats], Mapping[str, Floats]]
    whole: tuple[Table, Table]
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
        spoken=(_spoken(chosen[0]), _spoken(chosen[1])),
        parts=(parts_ms(a, places[0]), parts_ms(b, places[1])),
        done=(_completions(a), _completions(b)),
        whole=(_whole(a), _whole(b)),
        left_out=max(len(t["id"]) for t in tables) - len(ids),
        alike=alike,
        notes=tuple(f"{name}: {note}" for name, run in (("A", a), ("B", b)) for note in run.notes),
    )


def metrics_of(pair: Pair, side: int) -> Table:
    """Every metric of one run by name: latencies of the paired requests, the rest of the whole run."""
    return {**sampled(pair, side), **pair.whole[side]}


def sampled(pair: Pair, side: int, rows: NDArray[np.int64] | None = None) -> Table:
    """The metrics that a sample of requests tells (``rows`` of ``pair.ids``; None: all), None where undefined.

    Rates take the same places in the order of completion.
    """
    found: Table = {}
    for latency, values in pair.latencies[side].items():
        chosen = values if rows is None else values[rows]
        chosen = chosen[~np.isnan(chosen)] if latency == "TPOT" else chosen
        if latency == "E2EL":
            found |= _itl(pair, side, rows)
        found |= _statistics(latency, chosen)
    columns = pair.done[side]
    for name, (above, below, factor) in RATES.items():
        if above in columns and below in columns:
            n = len(columns[below])
            places = slice(None) if rows is None else rows * n // len(pair.ids)
            total = float(columns[below][places].sum())
            found[name] = factor * float(columns[above][places].sum()) / total if total else None
    return found


def _itl(pair: Pair, side: int, rows: NDArray[np.int64] | None) -> Table:
    """The mean gap; a sample of requests does not say which percentile a gap has, so those are the whole run's."""
    spoken_ms, gaps = (values if rows is None else values[rows] for values in pair.spoken[side])
    mean = float(spoken_ms.sum() / gaps.sum()) if gaps.any() else None
    whole = {} if rows is not None else {n: v for n, v in pair.whole[side].items() if n.startswith("ITL")}
    return {"ITL mean (ms)": mean, **whole}


def _statistics(latency: str, values: Floats) -> Table:
    names = [f"{latency} {statistic} (ms)" for statistic in STATISTICS]
    if not len(values):
        return dict.fromkeys(names)
    return dict(zip(names, map(float, (values.mean(), *np.percentile(values, (50, 99)))), strict=True))


def _counted(run: Run) -> NDArray[np.int64]:
    """Rows of requests that finished, those before the end of the warm-up left out."""
    table = run.request_columns
    counted = (table["status"] == "finished") & (table["arrival_ns"] >= run.scenario.warmup_s * 1e9)
    return np.flatnonzero(counted)


def _latencies(rows: Mapping[str, Any]) -> dict[str, Floats]:
    return {name: np.ma.filled(np.ma.asarray(rows[key], np.float64), np.nan) for name, key in LATENCIES.items()}


def _spoken(rows: Mapping[str, Any]) -> tuple[Floats, Floats]:
    """Milliseconds from the first token to the last, and the gaps in them: a decode round gives one to each sample."""
    return np.ma.getdata(rows["e2el_ms"] - rows["ttft_ms"]), rows["rounds"] / rows["samples"]


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
        out["between_usd"] = between_s * (cost["usd_per_hour"] / 3600)
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
