"""``vllm bench serve --save-result`` JSON, plain and ``--save-detailed``: latencies in ms, lists in seconds.

Keys: vllm/benchmarks/serve.py. Results appended to one file (``--append-result``) stand one in a line. Arrivals are
gamma with shape ``burstiness``, stretched so that the last request comes at N/rate; with ``max_concurrency`` and an
infinite rate it is a closed loop. Forks spell ``"request_goodput:"`` with a colon; goodput is not read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from workloads.errors import shown
from workloads.results.point import MOST_TOKENS, Lengths, Point, known, number

__all__ = ["matches", "point"]

NAMES = {"model_id": "model", "backend": "engine", "endpoint_type": "engine"}
LISTS = ("input_lens", "output_lens", "ttfts", "itls", "errors", "start_times")


def matches(found: Any) -> bool:
    """Whether one JSON object is such a result."""
    return isinstance(found, Mapping) and {"completed", "total_output_tokens", "duration"} <= set(found)


def point(found: Mapping[str, Any], where: str) -> Point:
    """The measured point of one result. Raises ValueError naming place, key and value."""
    completed = int(number(found, "completed", where, 1e9))
    rows, starts = _rows(found, where)
    measured, notes = known(found, where)
    means = [number(found, f"total_{side}_tokens", where) / completed for side in ("input", "output")]
    if rows:
        prompt, output = (Lengths(float(c.mean()), float(c.std())) for c in np.array(rows, dtype=float).T)
    else:
        prompt, output = Lengths(means[0]), Lengths(means[1])
    rate, concurrency = _load(found, where)
    said = {ours: found[theirs] for theirs, ours in NAMES.items() if isinstance(found.get(theirs), str)}
    burstiness = number(found, "burstiness", where) if found.get("burstiness") is not None else 1.0
    return Point(
        where, "vllm bench serve", rate, concurrency, completed, prompt, output, measured, said,
        min(burstiness, 1e6), rows, starts, notes,
    )  # fmt: skip


def _load(found: Mapping[str, Any], where: str) -> tuple[float | None, int | None]:
    """(rate, concurrency): an infinite rate under a limit is a closed loop of that many users."""
    rate, most = found.get("request_rate", "inf"), found.get("max_concurrency")
    endless = rate is None or str(rate).lower() in ("inf", "infinity")
    if most is not None:
        users = int(number(found, "max_concurrency", where, 1e6))
        if endless:
            return None, users
        return number(found, "request_rate", where), users
    return (math.inf if endless else number(found, "request_rate", where)), None


def _rows(found: Mapping[str, Any], where: str) -> tuple[tuple[tuple[int, int], ...], tuple[float, ...]]:
    """(prompt, output) tokens of every request that was answered, and starts in seconds; empty where not saved."""
    prompts, outputs = found.get("input_lens"), found.get("output_lens")
    if prompts is None or outputs is None:
        return (), ()
    for key in ("input_lens", "output_lens"):
        if not isinstance(found[key], list) or len(found[key]) != len(prompts):
            raise ValueError(f"{where}: {key}: {shown(found[key])}: must be a list of one number for each request")
    starts = found.get("start_times")
    each = starts if isinstance(starts, list) and len(starts) == len(prompts) else [math.nan] * len(prompts)
    rows, kept = [], []
    for place, (prompt, output, start) in enumerate(zip(prompts, outputs, each, strict=True)):
        if output == 0:  # it failed
            continue
        for key, value in (("input_lens", prompt), ("output_lens", output)):
            number({f"{key}[{place}]": value}, f"{key}[{place}]", where, MOST_TOKENS)
        rows.append((int(prompt), int(output)))
        kept.append(float(start) if isinstance(start, int | float) and 0 <= start < 1e15 else math.nan)
    return tuple(rows), tuple(kept) if rows and all(map(math.isfinite, kept)) else ()
