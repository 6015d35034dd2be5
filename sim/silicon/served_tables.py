"""Errors of predicted services by quantity, model, engine and layout; then over all dense and all expert models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from sim.build import load_shape
from sim.silicon.at_once import model_named
from sim.silicon.named import model_of

__all__ = ["Tabled", "tabled"]

Frame = Any
MODELS, ENGINES = ("model", "model_path"), ("engine", "backend", "version")
PARTS = {"tp": "TP", "tp_size": "TP", "tensor": "TP", "pp_size": "PP", "attention_dp_size": "DP", "moe_ep_size": "EP"}
ALL = "all"


@dataclass(frozen=True)
class Tabled:
    """Errors of ``n`` predictions, as shares: median, mean and 90th percentile of sizes, median of signed ones."""

    quantity: str
    model: str
    engine: str
    layout: str
    kind: str
    n: int
    median: float
    mean: float
    p90: float
    bias: float


def tabled(frame: Frame, pairs: list[tuple[str, str, str]]) -> list[Tabled]:
    """The tables of every measured quantity that has predictions."""
    labels = pd.DataFrame([_labels(row) for row in frame.to_dict("records")])
    found: list[Tabled] = []
    for measured, predicted, title in pairs:
        if measured in frame.columns and predicted in frame.columns:
            ratio = _numbers(frame[predicted]) / _numbers(frame[measured])
            usable = np.isfinite(ratio) & (ratio > 0)
            found += _tables(title, labels[usable], ratio[usable] - 1)
    return found


def _tables(title: str, labels: Frame, errors: Any) -> Iterator[Tabled]:
    keys = ["model", "engine", "layout", "kind"]
    for said, index in labels.reset_index(drop=True).groupby(keys, sort=True).indices.items():
        yield _line(title, tuple(map(str, said)), errors[index])
    kinds = labels["kind"].to_numpy() if len(labels) else np.zeros(0)
    for kind in sorted(set(kinds.tolist())):
        if len(labels[kinds == kind].drop_duplicates()) > 1:
            yield _line(title, (ALL, ALL, ALL, str(kind)), errors[kinds == kind])


def _line(title: str, said: tuple[str, ...], errors: Any) -> Tabled:
    size, (model, engine, layout, kind) = np.abs(errors), said
    found = np.median(size), size.mean(), np.quantile(size, 0.9), np.median(errors)
    return Tabled(title, model, engine, layout, kind, len(size), *map(float, found))


def _labels(row: Mapping[str, Any]) -> dict[str, str]:
    model = _first(row, MODELS)
    return {"model": model.rpartition("/")[2], "engine": _first(row, ENGINES).partition(" (")[0],
            "layout": _layout(row), "kind": _kind(model)}  # fmt: skip


def _layout(row: Mapping[str, Any]) -> str:
    said = _first(row, ("layout", "parallelism"))
    if not said:
        parts = [f"{word}{round(row[key])}" for key, word in PARTS.items() if _is_number(row.get(key)) and
                 (row[key] != 1 or word == "TP")]  # fmt: skip
        said = " ".join(parts)
    if _is_number(row.get("decode_tp_size")):
        said = f"P{_pool(row, 'prefill')} D{_pool(row, 'decode')}"
    mode = row.get("mode") if row.get("mode") in ("agg", "disagg") else None
    return " ".join(filter(None, (mode, said))) or "-"


def _pool(row: Mapping[str, Any], side: str) -> str:
    workers: Any = row.get(f"{side}_num_workers")
    return f"{round(workers) if _is_number(workers) else '?'}xTP{round(row[f'{side}_tp_size'])}"


@cache
def _kind(model: str) -> str:
    """Whether a model's feed-forward blocks are dense or experts."""
    shape = None
    for meaning in (model_of, model_named):
        try:
            shape = shape or load_shape(meaning(model), "model")
        except ValueError:
            continue
    if shape is None:
        return "unknown"
    return "MoE" if any(getattr(layer.ffn, "experts", 0) for layer in shape.layers) else "dense"


def _first(row: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    return next((str(row[key]) for key in keys if isinstance(row.get(key), str) and row[key]), "")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and bool(np.isfinite(value))


def _numbers(column: Any) -> Any:
    return pd.to_numeric(column, errors="coerce").to_numpy(float)
