"""What was promised and what was kept: service level objectives, attainment, goodput (vLLM's definitions)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.frames import Columns, known

__all__ = ["LIMITED", "judge", "judge_with", "kept"]

LIMITED = ("ttft_ms", "tpot_ms", "e2el_ms")


def kept(requests: Columns, slo: Any) -> NDArray[np.bool_]:
    """Which requests met every objective; a TPOT that does not exist (one token) counts as 0, a failure as a miss."""
    good = requests["status"] == "finished"
    for name in LIMITED:
        limit = getattr(slo, name)
        if limit is not None:
            good = good & (np.ma.filled(requests[name], 0.0) <= limit)
    return np.asarray(good)


def judge(requests: Columns, slo: Any) -> list[dict[str, Any]]:
    """Each objective with the value at its percentile of requests, and whether it was met.

    The percentile is over requests that have the metric; a request that was rejected or failed has none, and is counted
    by attainment instead. TPOT of answers of one token does not exist and is met; any other missing value is not.
    """

    def value_of(name: str) -> float | None:
        values = known(requests, name)
        return float(np.percentile(values, slo.percentile)) if len(values) else None

    return judge_with(value_of, slo)


def judge_with(value_of: Callable[[str], float | None], slo: Any) -> list[dict[str, Any]]:
    """The same, given each metric's value at the percentile of ``slo``; None where no request has it."""
    verdicts = []
    for name in LIMITED:
        limit = getattr(slo, name)
        if limit is None:
            continue
        value = value_of(name)
        met = value <= limit if value is not None else name == "tpot_ms" and value_of("ttft_ms") is not None
        verdicts.append({"metric": name, "limit": limit, "percentile": slo.percentile, "value": value, "met": met})
    return verdicts
