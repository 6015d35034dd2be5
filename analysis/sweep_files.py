"""The folder of a sweep: one tidy row a run in ``sweep.parquet`` and ``sweep.csv``, what it is of in ``sweep.json``."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from analysis.frames import Run
from analysis.store import check_target, new_folder, write_json
from analysis.warnings import backlog

__all__ = ["MARK", "check_place", "save_sweep", "summary_row", "tidy"]

MARK = "sweep.json"
LATENCY = ("mean", "p50", "p90", "p99")
WORDS = ("status", "why")


def check_place(folder: str, overwrite: bool = False) -> None:
    """Raise ValueError, one line, where a sweep may not be written."""
    check_target(Path(folder), overwrite, MARK)


def summary_row(run: Run) -> dict[str, Any]:
    """A run in one flat row: names of ``summary.json`` with their unit, None where a value does not exist."""
    found = run.metrics
    energy, cost, goodput = found["energy"] or {}, found["cost"], found["goodput"] or {}
    row = {
        "finished": found["requests"]["finished"],
        "rejected": found["requests"]["rejected"],
        "duration_s": found["duration_s"],
        "requests_per_s": found["throughput"]["requests_per_s"],
        "output_tokens_per_s": found["throughput"]["output_tokens_per_s"],
        **{name: value for name, value in _latencies(found)},
        "attainment": goodput.get("attainment"),
        "goodput_per_s": goodput.get("requests_per_s"),
        "slo_met": all(one["met"] for one in found["slo"]) if found["slo"] else None,
        "backlog_grows": backlog(run.request_columns) is not None,
        "busy": found["utilisation"]["busy"],
        "mfu": found["utilisation"]["mfu"],
        "mbu": found["utilisation"]["mbu"],
        "mean_accepted_length": found["acceptance"]["mean_accepted_length"],
        "joules_per_output_token": energy.get("joules_per_output_token"),
        "mean_W": energy.get("mean_W"),
        "devices": cost["devices"],
        "usd_per_hour": _times(cost["usd_per_device_hour"], cost["devices"]),
        "usd_per_million_output_tokens": cost["usd_per_million_output_tokens"],
        "usd_per_million_input_tokens": cost["usd_per_million_input_tokens"],
    }
    return {name: _plain(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's, what is no number as None."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not isfinite(value) else value


def _latencies(found: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, values in (*found["latency"].items(), ("queue_ms", found["queue_ms"])):
        for statistic in LATENCY:
            yield f"{name.removesuffix('_ms')}_{statistic}_ms", values.get(statistic)


def _times(value: float | None, count: int) -> float | None:
    return None if value is None else value * count


def tidy(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Columns by name, in the order in which rows bring them; None where a row has no such value.

    A column of anything but numbers is text: lists and mappings as JSON.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = {name: [row.get(name) for row in rows] for name in names}
    return {name: column if _numbers(column) else [_text(v) for v in column] for name, column in table.items()}


def _numbers(column: Sequence[Any]) -> bool:
    return all(value is None or isinstance(value, int | float) for value in column)


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def save_sweep(
    rows: Sequence[Mapping[str, Any]], folder: str, about: Mapping[str, Any], scenario_yaml: str, *,
    overwrite: bool = False,
) -> list[str]:  # fmt: skip
    """Write the folder whole, or nothing; returns the names of its files. Raises ValueError, one line."""
    check_place(folder, overwrite)
    with new_folder(Path(folder)) as beside:
        write_table(tidy(rows), beside / "sweep")
        (beside / "scenario.yaml").write_text(scenario_yaml, "utf-8")
        write_json(beside / MARK, dict(about))
        return sorted(file.name for file in beside.iterdir())


def write_table(table: Mapping[str, list[Any]], stem: Path) -> None:
    """The same table as Parquet and as CSV (floats with all their digits, nothing for None)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: pa.array(column, _kind(column)) for name, column in table.items()}
    pq.write_table(pa.table(columns), stem.with_suffix(".parquet"), compression="zstd")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    writer.writerows(zip(*table.values(), strict=True))
    stem.with_suffix(".csv").write_text(text.getvalue(), "utf-8")


def _kind(column: Sequence[Any]) -> Any:
    """Whole numbers, floats, switches or words; a column of nothing is of floats."""
    import pyarrow as pa

    kinds = {type(value) for value in column if value is not None}
    if kinds <= {bool} and kinds:
        return pa.bool_()
    if kinds <= {int} and kinds:
        return pa.int64()
    return pa.float64() if kinds <= {int, float, bool} else pa.string()
