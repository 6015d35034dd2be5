"""A measured point of a service, simulated: the load that it had on a scenario's model, hardware and engine.

Lengths: every request's own where the file has them, else drawn (fixed where no spread is known, a log-normal law of
mean and deviation otherwise). Arrivals: as recorded; else gamma gaps, stretched as ``vllm bench serve`` does; a closed
loop keeps its users.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.build import Built
from sim.run import Result, simulate
from workloads.results import Lengths, Point

__all__ = ["MOST_REQUESTS", "asked", "replayed"]

Floats = NDArray[np.float64]
MOST_REQUESTS = 4000
MOST_AT_ONCE = 50_000


def replayed(built: Built, point: Point, names: tuple[str, ...]) -> dict[str, float]:
    """What a run of the point's load gives of ``names`` (workloads/results/point.py), in the same units.

    Raises ValueError where no request could be served.
    """
    with TemporaryDirectory() as folder:
        result = simulate(replace(built, scenario=built.scenario.model_copy(update={"workload": asked(point, folder)})))
    columns = result.request_columns
    done = columns["status"] == "finished"
    if not done.any():
        raise ValueError(f"{point.where}: no request could be served: prompt and output exceed context or KV memory")
    latency = {key: np.ma.compressed(columns[f"{key}_ms"][done]) for key in ("ttft", "tpot", "e2el")}
    return {name: value for name in names if (value := _value(name, latency, result, columns, done)) is not None}


def asked(point: Point, folder: str) -> dict[str, Any]:
    """The point's load as a scenario's ``workload``; lengths of every request go into a file in ``folder``."""
    most = MOST_AT_ONCE if point.rate == math.inf else MOST_REQUESTS
    said: dict[str, Any] = {"requests": min(point.requests, most)}
    if point.rows:
        starts = point.starts_s if point.rate is not None else ()
        said["trace"] = _written(point, Path(folder) / "lengths.csv", starts)
        if starts:
            return said
    else:
        said |= {"prompt": _law(point.prompt), "output": _law(point.output)}
    if point.rate is None:
        return {**said, "concurrency": point.concurrency}
    if point.rate == math.inf:
        return {**said, "rate": "inf"}
    gaps: Any = {"kind": "gamma", "burstiness": point.burstiness, "rescale": True}
    return {**said, "rate": point.rate, "arrivals": gaps if point.burstiness < 1e5 else "uniform"}


def _value(name: str, latency: dict[str, Floats], result: Result, columns: Any, done: Any) -> float | None:
    """One quantity by vLLM's name; None where it has no value."""
    if name.endswith("_throughput"):
        end_s = float(columns["finish_ns"][done].max()) * 1e-9
        count = done.sum() if name == "request_throughput" else columns["output_tokens"][done].sum()
        return float(count) / end_s
    statistic, metric, _ = name.split("_")
    if metric == "itl":
        found = result.metrics["latency"]["itl_ms"].get({"median": "p50"}.get(statistic, statistic))
        return None if found is None else float(found)
    values = latency[metric]
    if not len(values):
        return None
    if statistic == "mean":
        return float(values.mean())
    return float(np.percentile(values, 50.0 if statistic == "median" else float(statistic[1:])))


def _law(lengths: Lengths) -> Any:
    tokens = max(1, round(lengths.mean))
    if lengths.ends is not None:
        return {"kind": "uniform", "low": lengths.ends[0], "high": lengths.ends[1]}
    if lengths.std < 0.005 * lengths.mean or tokens == 1:
        return tokens
    return {"kind": "lognormal", "mean": lengths.mean, "cv": lengths.std / lengths.mean}


def _written(point: Point, path: Path, starts: tuple[float, ...]) -> str:
    """The lengths, and starts counted from the first where they are to be replayed, as a trace file."""
    rows = point.rows
    if starts:
        first = min(starts)
        lines = [f"{s - first:.9f},{a},{b}" for s, (a, b) in sorted(zip(starts, rows, strict=True))]
    else:
        lines = [f"{a},{b}" for a, b in rows]
    head = ("arrival_s," if starts else "") + "prompt_tokens,output_tokens"
    path.write_text("\n".join([head, *lines, ""]), "utf-8")
    return str(path)
