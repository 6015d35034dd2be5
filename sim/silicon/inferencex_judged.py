"""How far simulated InferenceX points on an H200 are off: the shipped points, or every so many of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.resources import as_file, files
from typing import Any

import numpy as np
import pandas as pd

from sim.silicon.inferencex import pairs, predict
from sim.silicon.inferencex_fit import half
from sim.silicon.inferencex_rows import is_dense, trap
from sim.silicon.rows import Judged, Verdict

__all__ = ["EVERY", "judged", "left_out", "points", "shipped", "verdicts"]

EVERY = 16  # of the points, for a run of a minute or two; 1 is all of them
FIRST = 13  # of the points that are run
NO_LIMIT = float("inf")
# What was asked for as a mean error, and where it now stands with a margin: beyond that, something broke.
TARGETS = {
    ("TPOT", True): (0.08, 0.12),
    ("TTFT", True): (0.20, 0.25),
    ("TPOT", False): (0.12, 0.14),
    ("TTFT", False): (0.25, 0.50),
}


def shipped(every: int = EVERY) -> pd.DataFrame:
    """The shipped points, or each ``every``-th of them in an order that mixes models and layouts."""
    with as_file(files("analysis") / "data" / "serving" / "inferencex_h200.csv.gz") as path:
        frame = pd.read_csv(path)
    return frame.iloc[FIRST % every :: every]


def points(frame: pd.DataFrame, progress: Callable[[int], None] | None = None) -> pd.DataFrame:
    """Points with predictions, ``trap``, ``dense``, whether experts were ``fitted`` to them, and the textbook's."""
    ours = predict(frame, progress)
    plain = predict(frame, None, lambda said: {**said, "engine": "ideal"})
    rows = frame.to_dict("records")
    return ours.assign(
        textbook_ttft_ms=plain["predicted_ttft_ms"], textbook_tpot_ms=plain["predicted_tpot_ms"],
        trap=[trap({str(k): v for k, v in row.items()}) for row in rows],
        dense=[is_dense(path) for path in frame["model_path"]],
        fitted=[not is_dense(row["model_path"]) and half(row) for row in rows],
    )  # fmt: skip


def judged(found: pd.DataFrame) -> list[Judged]:
    """Errors of what was predicted by model, engine and kind of service, traps in lines of their own."""
    known = found[found["predicted_tpot_ms"].notna()]
    keys = [known[key] for key in ("model_path", "backend", "mode", "trap")]
    return [
        _judged(own, measured, title, str(path).rpartition("/")[2], str(backend), f"{mode} {why}".strip())
        for (path, backend, mode, why), own in known.groupby(keys)
        for measured, _, title in pairs()
    ]


def verdicts(found: pd.DataFrame) -> list[Verdict]:
    """Mean errors over all judged points: dense ones, and those with experts that no fit has seen."""
    return [_verdict(_fair(found, dense), title, dense) for title, dense in TARGETS]


def left_out(found: pd.DataFrame) -> Iterator[str]:
    """What has no prediction, by reason, and what is not judged, by trap; with counts."""
    for column, what in (("reason", "not predicted"), ("trap", "not judged")):
        said = found.loc[found[column] != "", column]
        yield from (f"{count} of {len(found)} points {what}: {why}" for why, count in said.value_counts().items())


def _fair(found: pd.DataFrame, dense: bool) -> pd.DataFrame:
    unseen = (found["dense"] == dense) & (found["trap"] == "") & ~found["fitted"]
    return found[unseen & found["predicted_tpot_ms"].notna()]


def _errors(own: pd.DataFrame, measured: str, prefix: str) -> Any:
    name = measured.removeprefix("silicon_")
    return (own[f"{prefix}_{name}"] / own[measured] - 1.0).to_numpy(float)


def _judged(own: pd.DataFrame, measured: str, title: str, model: str, backend: str, what: str) -> Judged:
    error, plain = _errors(own, measured, "predicted"), _errors(own, measured, "textbook")
    size, bias = np.abs(error), float(np.median(error))
    said = f"{model} {what}, mean {np.mean(size):.1%}"
    middle, high, theirs = (float(v) for v in (np.median(size), np.quantile(size, 0.9), np.nanmedian(np.abs(plain))))
    return Judged(title, "h200-sxm", backend, said, len(own), middle, high, bias, theirs)


def _verdict(own: pd.DataFrame, title: str, dense: bool) -> Verdict:
    measured = next(column for column, _, name in pairs() if name == title)
    if own.empty:
        names = (f"{prefix}_{title.lower()}_ms" for prefix in ("predicted", "textbook"))
        own = pd.DataFrame([dict.fromkeys(names, np.nan) | {measured: 1.0}])
    sizes, plain = (np.abs(_errors(own, measured, prefix)) for prefix in ("predicted", "textbook"))
    target, limit = TARGETS[title, dense]
    name = f"{title}, {'dense' if dense else 'experts, half no fit has seen'}: mean error over {len(own)} points"
    mean, high, theirs = float(np.mean(sizes)), float(np.quantile(sizes, 0.9)), _mean(plain)
    return Verdict(name, 1, mean, high, theirs, target, NO_LIMIT, limit, NO_LIMIT)


def _mean(values: Any) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else np.nan
