"""AIPerf's ``profile_export.jsonl``: one record a request; one file is one measured point.

Definitions: aiperf/metrics/types. Its ITL, ``(E2E - TTFT) / (OSL - 1)`` of a request, is vLLM's TPOT; the gaps that
vLLM pools as ITL are ``inter_chunk_latency``. The file does not say how requests were sent: where in the middle half of
the run the requests under way stay at their peak (9 of 10 on average) it was a closed loop of that many; else arrivals
are replayed as they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workloads.errors import shown
from workloads.results.point import MOST_TOKENS, Lengths, Point, known, number

__all__ = ["matches", "point"]

TO_MS = {"ns": 1e-6, "us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3, "sec": 1e3, "seconds": 1e3}
METRICS = {"ttft": "time_to_first_token", "tpot": "inter_token_latency", "e2el": "request_latency"}
PERCENTILES = {"median": 50, "p90": 90, "p99": 99}
BUSY = 0.9
Floats = NDArray[np.float64]


def matches(found: Any) -> bool:
    """Whether one JSON object is such a record."""
    return isinstance(found, Mapping) and "metadata" in found and ("metrics" in found or "error" in found)


def point(records: Sequence[Mapping[str, Any]], file: str) -> Point:
    """The measured point of all records. Raises ValueError naming place, key and value."""
    counted = [(f"{file} line {line}", record) for line, record in enumerate(records, 1) if not _is_warmup(record)]
    good = [pair for pair in counted if not pair[1].get("error")]
    if not good:
        raise ValueError(f"{file}: error: all {len(counted)} requests failed: must hold one that was answered")
    sides = ("input_sequence_length", "output_sequence_length")
    lengths = np.array([[_value(r, where, key, "tokens") for key in sides] for where, r in good])
    times = np.array([[_stamp(r, where, key) for key in ("request_start_ns", "request_end_ns")] for where, r in good])
    order = np.argsort(times[:, 0], kind="stable")
    times, lengths = times[order] - times[:, 0].min(), lengths[order]
    measured, notes = known(_measured(good, times, lengths), file)
    users = _users(times)
    failed = len(counted) - len(good)
    notes += (f"{file}: {failed} of {len(counted)} requests failed and are left out",) if failed else ()
    rate = None if users else len(good) / max(float(times[-1, 0]) * 1e-9, 1e-9)
    prompt, output = (Lengths(float(c.mean()), float(c.std())) for c in lengths.T)
    rows = tuple((max(1, int(a)), max(1, int(b))) for a, b in lengths)
    starts = () if users else tuple((times[:, 0] * 1e-9).tolist())
    return Point(file, "aiperf", rate, users, len(good), prompt, output, measured, {}, 1.0, rows, starts, notes)


def _measured(
    good: Sequence[tuple[str, Mapping[str, Any]]], times: NDArray[np.int64], lengths: Floats
) -> dict[str, float]:
    found: dict[str, float] = {}
    for ours, theirs in METRICS.items():
        each = [_value(r, where, theirs, "ms") for where, r in good if theirs in r["metrics"]]
        found |= _statistics(ours, np.array(each)) if each else {}
    gaps = [_gaps(r, where) for where, r in good]
    found |= _statistics("itl", pooled) if len(pooled := np.concatenate(gaps)) else {}
    span_s = float(times[:, 1].max()) * 1e-9
    return {**found, "request_throughput": len(good) / span_s, "output_throughput": float(lengths[:, 1].sum()) / span_s}


def _statistics(name: str, values: Floats) -> dict[str, float]:
    found = {f"{stat}_{name}_ms": float(np.percentile(values, p)) for stat, p in PERCENTILES.items()}
    return {f"mean_{name}_ms": float(values.mean()), **found}


def _users(times: NDArray[np.int64]) -> int | None:
    """The users of a closed loop, None where arrivals did not wait for answers."""
    stamps = np.concatenate([times[:, 0], times[:, 1]])
    steps = np.repeat([1, -1], len(times))
    order = np.lexsort((steps, stamps))
    under_way, at = np.cumsum(steps[order]), stamps[order]
    peak, span = int(under_way.max()), at[-1]
    middle = (at[:-1] >= 0.25 * span) & (at[1:] <= 0.75 * span)
    weight = np.diff(at) * middle
    closed = weight.sum() > 0 and float((under_way[:-1] * weight).sum() / weight.sum()) >= BUSY * peak
    return peak if closed and len(times) > peak else None


def _gaps(record: Mapping[str, Any], where: str) -> Floats:
    found = record["metrics"].get("inter_chunk_latency")
    values = found.get("value") if isinstance(found, Mapping) else None
    if not isinstance(values, list) or not all(isinstance(v, int | float) for v in values):
        return np.zeros(0)
    return np.array(values, dtype=float) * _scale(found, where, "inter_chunk_latency")


def _is_warmup(record: Mapping[str, Any]) -> bool:
    metadata = record.get("metadata")
    return isinstance(metadata, Mapping) and metadata.get("benchmark_phase") == "warmup"


def _value(record: Mapping[str, Any], where: str, key: str, unit: str) -> float:
    """A number of the record's metrics, in milliseconds or tokens."""
    metrics = record.get("metrics")
    found = metrics.get(key) if isinstance(metrics, Mapping) else None
    if not isinstance(found, Mapping):
        raise ValueError(f"{where}: metrics.{key}: {shown(found)}: must be a mapping of value and unit")
    value = number({key: found.get("value")}, key, f"{where}: metrics", MOST_TOKENS if unit == "tokens" else 1e12)
    return value if unit == "tokens" else value * _scale(found, where, key)


def _scale(found: Mapping[str, Any], where: str, key: str) -> float:
    unit = str(found.get("unit", "ms")).lower()
    if unit not in TO_MS:
        raise ValueError(f"{where}: metrics.{key}.unit: {shown(unit)}: must be one of {', '.join(TO_MS)}")
    return TO_MS[unit]


def _stamp(record: Mapping[str, Any], where: str, key: str) -> int:
    metadata = record.get("metadata")
    value = metadata.get(key) if isinstance(metadata, Mapping) else None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise ValueError(f"{where}: metadata.{key}: {shown(value)}: must be whole nanoseconds")
    return value
