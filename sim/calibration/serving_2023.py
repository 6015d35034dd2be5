"""The fit behind ``vllm-2023``: prefills and decode steps of two large models on A100s under vLLM of late 2023.

``python -m sim.calibration.serving_2023 FOLDER`` fits engine terms to the half of the measured points that is not
held out and writes the engine's profile into that folder. A point is a (model, layout, prompt, batch) with all its
rows; every second point of a layout, in the order of the table, is held out. Kernels stay as fitted to themselves.
Starts of PARAMETERS are what a global search of the same misfit over sums of kernel times had found.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from sim.calibration.fit_robust import Bounds, Predict, intervals
from sim.silicon.splitwise import PREDICTED, predict

__all__ = ["PARAMETERS", "held", "main", "measured", "profile"]

Floats = NDArray[np.float64]
DATA = "llama2_70b_bloom_a100.csv.gz"
MOST = 0.3  # of a log error that counts: batches of long prompts grow faster than their tokens, and unevenly
STEPS = (0.08, 0.03)  # of the search, in logarithms
# name: (start, low, high, what it is)
PARAMETERS: dict[str, tuple[float, float, float, str]] = {
    "host_us_per_layer": (555.0, 50.0, 2000.0, "eager launches of a layer, beside the device"),
    "host_us_per_sequence": (425.0, 1.0, 2000.0, "block tables, sampling and scheduling, in Python"),
    "request_ms": (13.5, 0.5, 60.0, "time of a request before the engine sees it"),
    "collective_us": (31.0, 0.1, 200.0, "wait for an eager all-reduce"),
    "collective_speed": (0.52, 0.05, 1.0, "share of the pace at which it was measured alone"),
    "attention_speed": (0.24, 0.1, 1.1, "attention, likewise"),
}


def measured() -> pd.DataFrame:
    """The shipped rows that are fit for use, with ``held``: which points no fit has seen."""
    raw = (files("analysis") / "data" / "serving" / DATA).read_bytes()
    frame = pd.read_csv(BytesIO(raw), compression="gzip")
    frame = frame[~frame["synthetic"] & ~frame["kv_overflow"]].reset_index(drop=True)
    return frame.assign(held=held(frame))


def held(frame: pd.DataFrame) -> NDArray[np.bool_]:
    """Every second (prompt, batch) of each model and layout, in the order of the table."""
    point = frame.groupby(["model", "tp"], sort=False).apply(_points, include_groups=False)
    number = point.reset_index(level=[0, 1], drop=True).reindex(frame.index)
    chosen: NDArray[np.bool_] = (number.to_numpy() % 2 == 1).astype(np.bool_)
    return chosen


def _points(part: pd.DataFrame) -> pd.Series[int]:
    return pd.Series(pd.factorize(part["isl"].astype(str) + " " + part["batch"].astype(str))[0], index=part.index)


def profile(
    values: Mapping[str, float], spans: Mapping[str, tuple[float, float]], provenance: str, digits: int = 4
) -> dict[str, Any]:
    """The engine profile with these terms."""
    rounded = {key: float(f"{value:.{digits}g}") for key, value in values.items()}
    return {
        "name": "vllm-2023",
        "host_us_per_step": 0.0,
        **{key: rounded[key] for key in ("host_us_per_layer", "host_us_per_sequence", "request_ms")},
        "cached_token_us": 0.0,
        "plan_ahead": 0,
        "overlap": "max",
        "kernels": "vllm",
        **{key: rounded[key] for key in list(PARAMETERS)[3:]},
        "batch_buckets": None,
        "defaults": {"scheduler": "continuous", "token_budget": 4096, "max_sequences": 256, "memory_fraction": 0.9},
        "provenance": provenance,
        "notes": "vLLM of late 2023 (V0): kernels launched one by one from Python, prompts before decodes.",
        "interval": {
            key: [min(rounded[key], float(f"{low:.4g}")), max(rounded[key], float(f"{high:.4g}"))]
            for key, (low, high) in spans.items()
        },
    }


def main(folder: Path) -> None:
    """Fit the half that is not held out; write the profile."""
    frame = measured()
    seen = frame[~frame["held"]].drop_duplicates(["model", "tp", "isl", "batch"]).reset_index(drop=True)
    wanted = np.log(np.concatenate([seen["prefill_ms"], seen["token_ms"]]))
    start, low, high = (np.log([row[i] for row in PARAMETERS.values()]) for i in range(3))

    def predicted(at: Floats) -> Floats:
        found = predict(seen, engine=_engine(dict(zip(PARAMETERS, np.exp(at).tolist(), strict=True)), folder))
        return np.concatenate([found[name].to_numpy(float) for name in PREDICTED])

    bounds = Bounds(start, low, high)
    at = _search(predicted, wanted, bounds)
    spans = intervals(predicted, wanted, bounds, at, np.arange(len(wanted)) % len(seen))
    limits = {key: (float(a), float(b)) for key, a, b in zip(PARAMETERS, *np.exp(spans), strict=True)}
    said = (
        f"FITTED by sim/calibration/serving_2023.py to {len(seen)} of the points of Llama-2-70B and BLOOM-176B on "
        "A100-SXM-80GB, tensor 2, 4 and 8 (Mutinifni/splitwise-sim, MIT); errors on the other half: docs/validation.md"
    )
    made = profile(dict(zip(PARAMETERS, np.exp(at).tolist(), strict=True)), limits, said)
    (folder / "vllm-2023.yaml").write_text(yaml.safe_dump(made, sort_keys=False, width=120), "utf-8")


def _search(predict: Predict, wanted: Floats, bounds: Bounds) -> Floats:
    """Compass search from the start for the least mean of |log error|, each at most MOST."""

    def misfit(at: Floats) -> float:
        return float(np.minimum(np.abs(np.log(predict(at)) - wanted), MOST).mean())

    best, least = bounds.start.copy(), misfit(bounds.start)
    for step in STEPS:
        for i in range(len(best)):
            for way in (step, -step):
                moved = best.copy()
                moved[i] = np.clip(moved[i] + way, bounds.low[i], bounds.high[i])
                if (found := misfit(moved)) < least:
                    best, least = moved, found
    return best


def _engine(values: Mapping[str, float], folder: Path) -> str:
    """The path of a profile with these terms."""
    path = Path(tempfile.gettempdir()) / f"vllm-2023-{folder.name}.yaml"
    path.write_text(yaml.safe_dump(profile(values, {}, "under way", digits=12)), "utf-8")
    return str(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
