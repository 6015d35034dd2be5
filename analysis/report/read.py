"""Files of a result folder, read with care: sizes first, and what cannot be read is an error of one line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["read_columns", "read_csv", "read_json", "read_parquet", "read_text"]

MOST_BYTES = 64_000_000
MOST_ROWS = 200_000


def read_text(path: Path, most: int = 1_000_000) -> str:
    """UTF-8 text of at most so many bytes. Raises ValueError, one line."""
    try:
        if path.stat().st_size > most:
            raise ValueError(f"{path}: {path.stat().st_size:,} bytes; at most {most:,} are read")
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not UTF-8 text") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from None


def read_json(path: Path) -> dict[str, Any]:
    """A mapping. Raises ValueError, one line."""
    try:
        found = json.loads(read_text(path, MOST_BYTES))
    except (json.JSONDecodeError, RecursionError) as error:
        reason = f"line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise ValueError(f"{path}: is not JSON: {reason}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds {type(found).__name__}, not a mapping")
    return found


def read_csv(path: Path) -> dict[str, list[str]]:
    """Columns by name, as words. Raises ValueError, one line, for ragged rows, names twice, or no rows."""
    lines = read_text(path, MOST_BYTES).splitlines()
    if len(lines) > MOST_ROWS:
        raise ValueError(f"{path}: {len(lines):,} lines; at most {MOST_ROWS:,} are read")
    try:
        head, *rows = list(csv.reader(lines, strict=True))
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{path}: is not CSV: {error}") from None
    if len(set(head)) < len(head):
        raise ValueError(f"{path}: a column's name stands twice in {', '.join(head)[:200]}")
    for number, row in enumerate(rows, 2):
        if len(row) != len(head):
            raise ValueError(f"{path}: row {number} has {len(row)} cells, the head has {len(head)}")
    if not rows:
        raise ValueError(f"{path}: has no rows")
    return {name: [row[i] for row in rows] for i, name in enumerate(head)}


def read_columns(path: Path) -> dict[str, NDArray[Any]]:
    """The columns of a CSV: numbers where every cell is one, else words."""
    return {name: _typed(cells) for name, cells in read_csv(path).items()}


def _typed(cells: list[str]) -> NDArray[Any]:
    try:
        values = np.array([float(cell) for cell in cells])
    except ValueError:
        return np.array(cells, dtype=object)
    whole = bool(np.isfinite(values).all()) and all(cell.lstrip("-").isdecimal() for cell in cells)
    small = whole and bool((np.abs(values) < 2**53).all())
    return values.astype(np.int64) if small else values


def read_parquet(path: Path, columns: list[str]) -> dict[str, Any]:
    """Some columns of a table, unknown values masked. Raises ValueError, one line."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if (rows := pq.read_metadata(path).num_rows) > 100 * MOST_ROWS:
            raise ValueError(f"{path}: {rows:,} rows; at most {100 * MOST_ROWS:,} are read")
        table = pq.read_table(path, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: is not a table: {' '.join(str(error).split())[:200]}") from None
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise ValueError(f"{path}: has no column {', '.join(missing)}")
    return {name: _masked(table.column(name)) for name in columns}


def _masked(column: Any) -> Any:
    import pyarrow as pa

    if pa.types.is_dictionary(column.type) or pa.types.is_string(column.type):
        return np.array(column.to_pylist(), dtype=object)
    unknown = column.is_null().to_numpy()
    return np.ma.MaskedArray(column.fill_null(0).to_numpy(), mask=unknown) if unknown.any() else column.to_numpy()
