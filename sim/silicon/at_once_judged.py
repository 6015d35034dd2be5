"""Errors on two published tables of batches: prefills and decode steps of 2023, TensorRT-LLM's throughput grid.

All cells of the grid take minutes; ``decodesim validate --silicon`` runs every SAMPLE-th of the held-out release.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sim.calibration.fit_kernels import errors
from sim.calibration.serving_2023 import measured as measured_2023
from sim.silicon import splitwise, tensorrt_llm
from sim.silicon.rows import Judged, Verdict, verdict

__all__ = ["GRID_TARGETS", "TARGETS_2023", "grid", "grid_rows", "grid_verdicts", "rows_2023", "series",
           "verdicts_2023"]  # fmt: skip

SAMPLE = 9
HELD = "v0.17"
TEXTBOOK = "ideal"
# What was asked for (median, p90), and where it now stands with a margin.
INFINITE = float("inf")
GRID_TARGETS = {"TensorRT-LLM v0.17 throughput": ((0.10, 0.30), (0.105, 0.30))}
TARGETS_2023 = {
    "prefill, late 2023": ((0.09, INFINITE), (0.09, 0.40)),
    "decode step, late 2023": ((0.09, INFINITE), (0.09, 0.25)),
}
Pair = tuple[str, str, str]
Floats = NDArray[np.float64]


def grid(step: int = SAMPLE, version: str = HELD) -> pd.DataFrame:
    """Every ``step``-th cell of a release of the shipped grid, suspects aside."""
    raw = (files("analysis") / "data" / "serving" / "tensorrt_llm_throughput.csv.gz").read_bytes()
    frame = pd.read_csv(BytesIO(raw), compression="gzip")
    return frame[(frame["version"] == version) & (frame["suspect"] == 0)].iloc[::step].reset_index(drop=True)


@cache
def grid_rows(step: int = SAMPLE) -> tuple[Judged, ...]:
    """Errors of the held-out release: all cells, then by model, device and layout."""
    frame = grid(step)
    ours, theirs = tensorrt_llm.predict(frame), tensorrt_llm.predict(frame, engine=TEXTBOOK)
    keys = ["gpu", "model", "precision", "parallelism"]
    return tuple(_judged(ours, theirs, tensorrt_llm.pairs()[0], keys, "TensorRT-LLM v0.17"))


@cache
def rows_2023() -> tuple[Judged, ...]:
    """Errors on the held-out half of the points of 2023, likewise."""
    frame = measured_2023()
    frame = frame[frame["held"]].reset_index(drop=True)
    ours, theirs = splitwise.predict(frame), splitwise.predict(frame, engine=TEXTBOOK)
    keys = ["gpu", "model", "tp"]
    return tuple(row for pair in splitwise.pairs() for row in _judged(ours, theirs, pair, keys, "vLLM 2023"))


def series() -> dict[str, dict[str, tuple[Floats, Floats]]]:
    """By title and device or layout: measured and predicted seconds of held-out cases, for pictures.

    Of throughput, seconds between output tokens.
    """
    cells = tensorrt_llm.predict(grid())
    measured, predicted, _ = tensorrt_llm.pairs()[0]
    pace = {str(gpu): _seconds(1 / part[measured], 1 / part[predicted]) for gpu, part in cells.groupby("gpu")}
    found = {"throughput": pace}
    frame = measured_2023()
    points = splitwise.predict(frame[frame["held"]])
    for theirs, ours, title in splitwise.pairs():
        found[f"{title}, 2023"] = {
            f"{model}, tensor {tp}": _seconds(part[theirs] * 1e-3, part[ours] * 1e-3)
            for (model, tp), part in points.groupby(["model", "tp"])
        }
    return found


def _seconds(measured: Any, predicted: Any) -> tuple[Floats, Floats]:
    return np.asarray(measured, dtype=np.float64), np.asarray(predicted, dtype=np.float64)


def grid_verdicts(rows: Sequence[Judged]) -> list[Verdict]:
    """The grid against its target, over all cells at once."""
    return [verdict(name, [r for r in rows if r.what == "all"], *limits) for name, limits in GRID_TARGETS.items()]


def verdicts_2023(rows: Sequence[Judged]) -> list[Verdict]:
    """Prefills and decode steps of 2023 against theirs."""
    return [
        verdict(name, [r for r in rows if r.what == "all" and name.startswith(r.section)], *limits)
        for name, limits in TARGETS_2023.items()
    ]


def _judged(
    ours: pd.DataFrame, theirs: pd.DataFrame, pair: Pair, keys: Sequence[str], library: str
) -> Iterator[Judged]:
    measured, predicted, title = pair
    yield _one(ours, theirs, measured, predicted, (title, "all", library, "all"))
    for key, index in ours.groupby(list(keys), sort=True).indices.items():
        device, *rest = (str(part) for part in key)
        named = (title, device, library, _said(keys[1:], rest))
        yield _one(ours.iloc[index], theirs.iloc[index], measured, predicted, named)


def _said(keys: Sequence[str], values: Sequence[str]) -> str:
    return ", ".join(f"tensor {v}" if key == "tp" else v for key, v in zip(keys, values, strict=True))


def _one(
    ours: pd.DataFrame, theirs: pd.DataFrame, measured: str, predicted: str, named: tuple[str, str, str, str]
) -> Judged:
    error = _errors(ours, measured, predicted)
    return Judged(*named, error.n, error.median, error.p90, error.bias, _errors(theirs, measured, predicted).median)


def _errors(frame: pd.DataFrame, measured: str, predicted: str) -> Any:
    has = frame[predicted].notna().to_numpy()
    return errors(frame[predicted].to_numpy(float)[has], frame[measured].to_numpy(float)[has])
