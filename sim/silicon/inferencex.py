"""Serving points in InferenceX's layout, each simulated as it was measured: a closed loop with ten requests a slot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from sim.build import build_scenario
from sim.run import simulate
from sim.scenario import Scenario
from sim.silicon.inferencex_rows import scenario

__all__ = ["COLUMNS", "NAME", "pairs", "point", "predict"]

NAME = "InferenceX"
COLUMNS = frozenset(
    {"backend", "model_path", "system", "mode", "isl", "osl", "concurrency", "tp_size", "moe_tp_size", "moe_ep_size",
     "silicon_ttft_ms", "silicon_tpot_ms"}
)  # fmt: skip
PREDICTED = ("predicted_ttft_ms", "predicted_tpot_ms")


def pairs() -> list[tuple[str, str, str]]:
    """(measured column, predicted column, title)."""
    return [("silicon_ttft_ms", PREDICTED[0], "TTFT"), ("silicon_tpot_ms", PREDICTED[1], "TPOT")]


def predict(
    frame: pd.DataFrame,
    progress: Callable[[int], None] | None = None,
    change: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> pd.DataFrame:
    """The rows of ``frame`` with mean TTFT and TPOT in milliseconds, and ``reason`` where there is none.

    ``progress`` is told how many rows are done. ``change``: of each scenario, before it runs.
    """
    found: list[tuple[float, float, str]] = []
    for row in frame.to_dict("records"):
        found.append(_answer({str(key): value for key, value in row.items()}, change))
        if progress is not None:
            progress(len(found))
    columns = dict(zip((*PREDICTED, "reason"), zip(*found, strict=True), strict=True)) if found else {}
    return frame.assign(**{key: list(columns.get(key, ())) for key in (*PREDICTED, "reason")})


def _answer(
    row: Mapping[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]] | None
) -> tuple[float, float, str]:
    try:
        said = scenario(row)
        return (*point(said if change is None else change(said)), "")
    except ValueError as error:  # DoesNotFit and what the model does not allow are answers too
        return (np.nan, np.nan, str(error))


def point(said: Mapping[str, Any]) -> tuple[float, float]:
    """Mean TTFT and TPOT in milliseconds of a closed loop, over all of its requests. Raises ValueError."""
    table = simulate(build_scenario(Scenario.parse(dict(said)))).recorder.requests.frame()
    first, last = (np.asarray(table[key], dtype=float) for key in ("first_token_ns", "finish_ns"))
    done = np.isfinite(last) & (last > 0)
    if not done.any():
        raise ValueError("no request of the loop could be answered")
    outputs = np.maximum(np.asarray(table["output"])[done] - 1, 1)
    ttft_ns, tpot_ns = first[done] - np.asarray(table["arrival_ns"])[done], (last - first)[done] / outputs
    return float(ttft_ns.mean()) * 1e-6, float(tpot_ns.mean()) * 1e-6
