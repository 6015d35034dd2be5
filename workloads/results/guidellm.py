"""GuideLLM's JSON: a list of benchmarks, each with distributions over its successful requests.

Definitions: schemas/request_stats.py. Its ``inter_token_latency_ms`` is vLLM's TPOT; its ``time_per_output_token_ms``
includes the first token and is not read; ``request_latency`` is in seconds, all other latencies in milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from workloads.errors import shown
from workloads.results.point import MOST, MOST_TOKENS, Lengths, Point, known, number

__all__ = ["matches", "points"]

METRICS = {"time_to_first_token_ms": ("ttft", 1.0), "inter_token_latency_ms": ("tpot", 1.0),
           "request_latency": ("e2el", 1e3)}  # fmt: skip
RATES = {"requests_per_second": "request_throughput", "output_tokens_per_second": "output_throughput"}
STATISTICS = ("mean", "median")
PERCENTILES = ("p90", "p95", "p99")
STRATEGIES = ("synchronous", "concurrent", "throughput", "constant", "poisson", "async")


def matches(found: Any) -> bool:
    """Whether one JSON object is such a report."""
    return isinstance(found, Mapping) and isinstance(found.get("benchmarks"), list)


def points(found: Mapping[str, Any], file: str) -> Iterator[Point]:
    """The benchmarks as measured points. Raises ValueError naming place, key and value."""
    said = _said(found)
    for place, one in enumerate(found["benchmarks"]):
        where = f"{file} benchmarks[{place}]"
        if not isinstance(one, Mapping) or not isinstance(one.get("metrics"), Mapping):
            raise ValueError(f"{where}: metrics: {shown(one)}: must be a mapping of distributions")
        yield _point(one, where, {**said, **_said(one)})


def _point(one: Mapping[str, Any], where: str, said: Mapping[str, str]) -> Point:
    metrics = one["metrics"]
    named = {f"{stat}_{ours}_ms": value * scale for key, (ours, scale) in METRICS.items()
             for stat, value in _statistics(metrics, key).items()}  # fmt: skip
    named |= {ours: s["mean"] for key, ours in RATES.items() if "mean" in (s := _statistics(metrics, key))}
    measured, notes = known(named, where)
    prompt, output = (_lengths(metrics, f"{side}_token_count", where) for side in ("prompt", "output"))
    rate, concurrency, burstiness = _load(one, metrics, where)
    count = _successful(metrics, "request_latency").get("count", 0)
    requests = int(number({"count": count}, "count", f"{where}: metrics.request_latency.successful", 1e9))
    return Point(where, "guidellm", rate, concurrency, requests, prompt, output, measured, said, burstiness,
                 notes=notes)  # fmt: skip


def _load(one: Mapping[str, Any], metrics: Mapping[str, Any], where: str) -> tuple[float | None, int | None, float]:
    """(rate, concurrency, burstiness) of the benchmark's strategy; constant arrivals are those of endless shape."""
    strategy: Mapping[str, Any] = next(
        (part["strategy"] for part in (one.get("config"), one.get("args"), one)
         if isinstance(part, Mapping) and isinstance(part.get("strategy"), Mapping)), {},
    )  # fmt: skip
    kind = strategy.get("type_", strategy.get("kind"))
    if kind in ("constant", "poisson", "async"):
        return number(strategy, "rate", f"{where}: strategy"), None, 1.0 if kind == "poisson" else 1e6
    if kind == "concurrent":
        key = next((key for key in ("streams", "max_concurrency", "concurrency") if strategy.get(key)), "streams")
        return None, int(number(strategy, key, f"{where}: strategy", 1e6)), 1.0
    if kind == "synchronous":
        return None, 1, 1.0
    if kind == "throughput":
        most = strategy.get("max_concurrency")
        return (None, int(most), 1.0) if isinstance(most, int) and most > 0 else (math.inf, None, 1.0)
    raise ValueError(f"{where}: strategy.type_: {shown(kind)}: must be one of {', '.join(STRATEGIES)}")


def _lengths(metrics: Mapping[str, Any], key: str, where: str) -> Lengths:
    found = _successful(metrics, key)
    spread = found.get("std_dev", 0.0)
    mean = number(found, "mean", f"{where}: metrics.{key}.successful", MOST_TOKENS)
    return Lengths(mean, float(spread) if isinstance(spread, int | float) and 0 <= spread <= MOST_TOKENS else 0.0)


def _statistics(metrics: Mapping[str, Any], key: str) -> dict[str, float]:
    found = _successful(metrics, key)
    inner = found.get("percentiles")
    values = {name: found.get(name) for name in STATISTICS}
    values |= {name: inner.get(name) for name in PERCENTILES} if isinstance(inner, Mapping) else {}
    return {
        name: float(v)
        for name, v in values.items()
        if isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < MOST
    }


def _successful(metrics: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = metrics.get(key)
    inner = found.get("successful") if isinstance(found, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}


def _said(found: Mapping[str, Any]) -> dict[str, str]:
    """The model, wherever a version keeps it."""
    for part in (found.get("args"), found.get("config"), found):
        for key in ("model", "model_name"):
            if isinstance(part, Mapping) and isinstance(part.get(key), str):
                return {"model": part[key]}
    return {}
