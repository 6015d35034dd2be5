"""The documented CSV: one measured point a row, vLLM's names for what was measured (docs/calibration.md).

``prompt_tokens``, ``output_tokens`` and ``rate`` or ``concurrency`` must be there, with one measured column at least.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping
from typing import Any

from workloads.errors import hint, shown
from workloads.results.point import MEASURED, MOST_TOKENS, Lengths, Point, known, number

__all__ = ["SAID", "matches", "point", "points"]

SAID = ("model", "engine", "hardware", "precision", "tensor", "pipeline", "data", "expert")
LOAD = ("rate", "concurrency", "burstiness", "requests")
LENGTHS = ("prompt_tokens", "prompt_std", "output_tokens", "output_std")
MOST_ROWS = 1_000_000


def matches(columns: set[str]) -> bool:
    """Whether a table with these columns is of measured points."""
    lengths = {"prompt_tokens", "output_tokens"} <= columns and bool({"rate", "concurrency"} & columns)
    return lengths and any(MEASURED.fullmatch(name) for name in columns)


def points(text: str, file: str) -> Iterator[Point]:
    """The rows of a CSV file. Raises ValueError naming file, line, column and value."""
    rows = csv.DictReader(io.StringIO(text))
    columns = [name.strip() for name in rows.fieldnames or []]
    if not matches(set(columns)):
        allowed = "rate or concurrency, prompt_tokens, output_tokens, and what was measured, such as mean_ttft_ms"
        raise ValueError(f"{file}: columns {shown(', '.join(columns), 200)}: must have {allowed}")
    for name in columns:
        if name not in (*SAID, *LOAD, *LENGTHS) and name.endswith("_ms") and not MEASURED.fullmatch(name):
            raise ValueError(f"{file}: {name}: unknown column: {hint(name, ('mean_ttft_ms', 'p99_tpot_ms'))}")
    for count, row in enumerate(rows):
        if count >= MOST_ROWS:
            raise ValueError(f"{file}: more than {MOST_ROWS} rows")
        cells = {str(key).strip(): _cell(value) for key, value in row.items() if key is not None}
        yield point(cells, f"{file} line {rows.line_num}")


def point(row: Mapping[str, Any], where: str) -> Point:
    """The point of one row, whose cells are numbers, words or None. Raises ValueError."""
    rate = None if row.get("rate") is None else _rate(row, where)
    users = None if row.get("concurrency") is None else int(number(row, "concurrency", where, 1e6))
    if rate is None and users is None:
        raise ValueError(f"{where}: rate, concurrency: both empty: one of them says how requests were sent")
    measured, notes = known(row, where)
    prompt, output = (_lengths(row, side, where) for side in ("prompt", "output"))
    requests = 0 if row.get("requests") is None else int(number(row, "requests", where, 1e9))
    said = {key: row[key] for key in SAID if row.get(key) is not None}
    burstiness = 1.0 if row.get("burstiness") is None else number(row, "burstiness", where, 1e6)
    closed = users is not None and (rate is None or math.isinf(rate))
    return Point(
        where, "csv", None if closed else rate, users, requests or max(100, 10 * (users or 0)), prompt, output,
        measured, said, burstiness, notes=notes,
    )  # fmt: skip


def _rate(row: Mapping[str, Any], where: str) -> float:
    return math.inf if row["rate"] in ("inf", math.inf) else number(row, "rate", where)


def _lengths(row: Mapping[str, Any], side: str, where: str) -> Lengths:
    std = row.get(f"{side}_std")
    spread = 0.0 if std is None or std == 0 else number(row, f"{side}_std", where, MOST_TOKENS)
    return Lengths(number(row, f"{side}_tokens", where, MOST_TOKENS), spread)


def _cell(said: Any) -> Any:
    """A cell as a number where it is one, else the word; None where it is empty."""
    word = said.strip() if isinstance(said, str) else said
    if not isinstance(word, str) or word == "":
        return None
    try:
        return float(word)
    except ValueError:
        return word
