"""TensorRT-LLM's published throughput tables: every cell simulated whole, from the first prompt to the last token.

The benchmark (``trtllm-bench throughput``) hands over all requests at once, all of the same lengths; its scheduler
admits a request when the cache holds all that it will ever need (no eviction), and engines are built for the lengths:
the largest batch is what the cache holds, the token budget what such batches need, both rounded up (the rules by which
``trtllm-bench build`` tunes engines, TensorRT-LLM 0.17 and later).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from math import ceil
from typing import Any

import pandas as pd

from sim.build import Built, build_scenario
from sim.scenario import Scenario
from sim.silicon.at_once import Row, answered, count, device_named, model_named, ran, word

__all__ = ["COLUMNS", "NAME", "cell", "limits", "pairs", "predict", "prepared", "scenario"]

NAME = "TensorRT-LLM throughput"
COLUMNS = frozenset({"model", "gpu", "precision", "parallelism", "isl", "osl", "num_requests", "output_tok_s_total"})
PREDICTED = "predicted_tok_s_total"
ENGINE = "tensorrt-llm"
FORMATS: dict[str, dict[str, str]] = {
    "fp8": {"weights": "fp8", "activations": "bf16", "kv": "fp8", "compute": "fp8"},
    "fp16": dict.fromkeys(("weights", "activations", "kv"), "fp16"),
    "bf16": dict.fromkeys(("weights", "activations", "kv"), "bf16"),
    "fp4": {"weights": "nvfp4", "activations": "bf16", "kv": "fp8", "compute": "fp4"},
}
WAYS = {"TP": "tensor", "PP": "pipeline", "EP": "expert"}
MOST_SEATS, MOST_TOKENS = 4096, 32768


def pairs() -> list[tuple[str, str, str]]:
    """(measured column, predicted column, title)."""
    return [("output_tok_s_total", PREDICTED, "output throughput")]


def predict(frame: pd.DataFrame, progress: Callable[[int], None] | None = None, engine: str = ENGINE) -> pd.DataFrame:
    """The rows of ``frame`` with output tokens a second, and ``reason`` where there is no prediction.

    ``progress`` is told how many rows are done; ``engine``: an engine profile.
    """
    return answered(frame, (PREDICTED,), lambda row: (cell(row, engine),), progress)


def cell(row: Row, engine: str = ENGINE) -> float:
    """Output tokens a second of one cell. Raises ValueError, DoesNotFit where weights leave no room."""
    built = prepared(row, engine)
    requests, prompt, output = (count(row, key) for key in ("num_requests", "isl", "osl"))
    table = ran(built, prompt, output, requests).requests.frame()
    done = table["status"] == 0
    if not done.all():
        raise ValueError("the cache does not hold one request")
    return float(requests * output / (int(table["finish_ns"].max()) * 1e-9))


def prepared(row: Row, engine: str = ENGINE) -> Built:
    """What serves a cell: built once to see what the cache holds, and again with the limits that follow."""
    said = scenario(row, engine)
    first = build_scenario(Scenario.parse(said))
    prompt, output = count(row, "isl"), count(row, "osl")
    held = first.budget.kv_pool_bytes / (sum(first.costs[0].kv_bytes_per_token) * (prompt + output))
    stages = int(said["layout"].get("pipeline", 1))
    seats, tokens = limits(held, prompt, output, stages)
    options = {"name": "chunked", "token_budget": tokens * stages, "max_sequences": seats * stages}
    return build_scenario(Scenario.parse({**said, "scheduler": options}))


def scenario(row: Row, engine: str = ENGINE) -> dict[str, Any]:
    """The scenario of a cell but for its limits. Raises ValueError naming the column that says what is not known."""
    prompt, output = count(row, "isl"), count(row, "osl")
    spellings = (str(row.get("gpu_variant") or ""), word(row, "gpu"))
    return {
        "model": model_named(word(row, "model")),
        "hardware": device_named(*(text for text in spellings if text and text != "nan")),
        "engine": engine,
        "layout": _layout(word(row, "parallelism")),
        "precision": _formats(word(row, "precision")),
        "kv": {"mode": "reserved", "reserve_tokens": prompt + output},
        "clock": "fixed",
        "workload": {"rate": 1, "prompt": prompt, "output": output, "requests": 1},
    }


def limits(held: float, prompt: int, output: int, stages: int = 1) -> tuple[int, int]:
    """(largest batch, tokens of a pass) that engines are built with where the cache holds ``held`` requests.

    A batch in balance reads prompt / output prompt tokens beside each decode; both are rounded up, the coarser the
    larger, and never below 64 sequences and 2048 tokens.
    """
    seats = min(held, MOST_SEATS) / stages
    tokens = min(seats * (1 + prompt / output), MOST_TOKENS)
    step = 32 if seats < 256 else 128 if seats < 1024 else 256
    grain = 256 if tokens < 4096 else 512 if tokens < 8192 else 1024
    return max(64, step * ceil(seats / step)), max(2048, grain * ceil(tokens / grain))


def _layout(text: str) -> dict[str, int]:
    found = re.findall(r"(TP|PP|EP)\D?(\d+)", text.upper())
    if not found or re.sub(r"(TP|PP|EP)\D?\d+|[\s,x/+-]", "", text.upper()):
        raise ValueError(f"parallelism: {text!r:.40}: allowed: TP, PP and EP with their numbers, as TP4PP2")
    return {WAYS[way]: int(number) for way, number in found}


def _formats(text: str) -> dict[str, str]:
    name = text.lower().split("(")[0].strip().removeprefix("nv")
    if name not in FORMATS:
        raise ValueError(f"precision: {text!r:.40}: allowed: {', '.join(FORMATS)}")
    return FORMATS[name]
