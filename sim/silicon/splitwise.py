"""Prompts and decode steps of batches in the layout of splitwise-sim's tables: milliseconds by batch and lengths.

Each row is a batch of equal requests that are all there at once: how long until the last prompt is read, and how long a
decode step of all of them lasts (Patel et al. 2024, arXiv 2311.18677, section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from sim.build import build_scenario
from sim.scenario import Scenario
from sim.silicon.at_once import Row, answered, count, device_named, model_named, ran, word

__all__ = ["COLUMNS", "NAME", "pairs", "point", "predict", "scenario"]

NAME = "splitwise-sim"
COLUMNS = frozenset({"model", "gpu", "tp", "isl", "batch", "osl", "prefill_ms", "token_ms"})
PREDICTED = ("predicted_prefill_ms", "predicted_token_ms")
ENGINE = "vllm-2023"
STEPS = 128  # decode steps are alike: more of them are not simulated


def pairs() -> list[tuple[str, str, str]]:
    """(measured column, predicted column, title)."""
    return [("prefill_ms", PREDICTED[0], "prefill"), ("token_ms", PREDICTED[1], "decode step")]


def predict(frame: pd.DataFrame, progress: Callable[[int], None] | None = None, engine: str = ENGINE) -> pd.DataFrame:
    """The rows of ``frame`` with milliseconds of prefill and of a decode step, and ``reason`` where there are none.

    ``progress`` is told how many rows are done; ``engine``: an engine profile.
    """
    return answered(frame, PREDICTED, lambda row: point(row, engine), progress)


def point(row: Row, engine: str = ENGINE) -> tuple[float, float]:
    """Milliseconds until the last prompt is read, and of a mean decode step of the batch. Raises ValueError."""
    built = build_scenario(Scenario.parse(scenario(row, engine)))
    prompt, output, batch = count(row, "isl"), min(count(row, "osl"), STEPS), count(row, "batch")
    # measured beyond the context that models were trained for, too
    built = replace(built, setup=replace(built.setup, max_context=prompt + output))
    recorder = ran(built, prompt, output, batch)
    table, leaps = recorder.requests.frame(), recorder.leaps.frame()
    if (table["status"] != 0).any() or (table["preemptions"] != 0).any():
        raise ValueError("the cache does not hold the batch")
    decodes = leaps["chunks"] == 0
    steps, spent_ns = leaps["rounds"][decodes].sum(), leaps["duration_ns"][decodes].sum()
    return float(table["first_token_ns"].max()) * 1e-6, float(spent_ns / steps) * 1e-6 if steps else np.nan


def scenario(row: Row, engine: str = ENGINE) -> dict[str, Any]:
    """The scenario of a row. Raises ValueError naming the column that says what is not known."""
    prompt, output, batch = count(row, "isl"), count(row, "osl"), count(row, "batch")
    return {
        "model": model_named(word(row, "model")),
        "hardware": device_named(word(row, "gpu")),
        "engine": engine,
        "layout": {"tensor": count(row, "tp")},
        "precision": dict.fromkeys(("weights", "activations", "kv"), "fp16"),
        "clock": "fixed",
        "workload": {"concurrency": batch, "prompt": prompt, "output": max(output, 2), "requests": batch},
    }
