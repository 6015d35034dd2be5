"""The result folder: written whole beside its place, then renamed, so that nobody ever sees half of one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from analysis.bench import bench
from analysis.cost_report import cost_report
from analysis.fleet import life_columns
from analysis.frames import Columns, Run
from analysis.moves import move_columns
from analysis.origin import header
from analysis.perfetto import TRACE_EVENTS, trace

__all__ = ["MARK", "check_target", "new_folder", "save", "table", "write_json"]

TYPES = {np.dtype(np.int64): pa.int64(), np.dtype(np.float64): pa.float64()}
WORDS = ["status", "phase", "reason", "group", "end"]  # the columns that Parquet keeps as a dictionary
MARK = "summary.json"  # what a folder must hold to be taken for a result


def save(
    run: Run,
    folder: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    date: str = "",
    detailed: bool = False,
    trace_events: int = TRACE_EVENTS,
) -> str:
    """Write every file of docs/results.md into ``folder`` and return its path.

    ``overwrite`` replaces an older result; ``date`` (YYYYMMDD-HHMMSS) goes into bench.json, and ``detailed`` adds lists
    by request to it; ``trace_events`` bounds trace.json (0: none). Raises ValueError, one line, where the folder is
    something else or cannot be written.
    """
    target = Path(folder)
    check_target(target, overwrite)
    with new_folder(target) as beside:
        (beside / "scenario.yaml").write_text(header(run.scenario.seed) + run.scenario.to_yaml(), "utf-8")
        tables = {"requests": run.request_columns, "rounds": run.round_columns}
        if len(run.recorder.lives):
            tables["lives"] = life_columns(run)
        if run.scenario.pools is not None:
            tables["moves"] = move_columns(run)
        for name, columns in tables.items():
            pq.write_table(table(columns), beside / f"{name}.parquet", compression="zstd", use_dictionary=WORDS)
        if trace_events:
            (beside / "trace.json").write_text(trace(run, trace_events), "utf-8")
        write_json(beside / "bench.json", bench(run, date=date, detailed=detailed))
        write_json(beside / MARK, run.metrics)
        write_json(beside / "cost.json", cost_report(run))
    return str(target)


def check_target(target: Path, overwrite: bool = False, mark: str = MARK) -> None:
    """Raise ValueError where a result may not be written; to be asked before a long run, too.

    ``mark``: the file by which an older result of the same kind is known.
    """
    if not target.parent.is_dir():
        raise ValueError(f"{target}: the folder {target.parent} does not exist")
    if not os.access(target.parent, os.W_OK):
        raise ValueError(f"{target}: no permission to write into {target.parent}")
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise ValueError(f"{target}: is not a folder")
    if not target.exists() or not any(target.iterdir()):
        return
    if not (target / mark).is_file():
        raise ValueError(f"{target}: holds something that is not a result (no {mark}); choose another folder")
    if not overwrite:
        raise ValueError(f"{target}: holds a result already; overwrite it on purpose or choose another folder")


def table(columns: Columns) -> pa.Table:
    """Columns as an Arrow table: types follow the arrays, masked values become null."""
    return pa.table({name: _column(values) for name, values in columns.items()})


def _column(values: Any) -> pa.Array:
    """Built from buffers: ``pa.array`` would import pandas, which takes longer than everything else here."""
    data = np.ascontiguousarray(np.ma.getdata(values))
    if data.dtype.kind == "U":
        return _words(data)
    unknown = np.ma.getmask(values)
    valid = None if unknown is np.ma.nomask else pa.py_buffer(np.packbits(~unknown, bitorder="little"))
    return pa.Array.from_buffers(TYPES[data.dtype], len(data), [valid, pa.py_buffer(data)])


def _words(words: NDArray[np.str_]) -> pa.Array:
    names, codes = _coded(words)
    encoded = [name.encode() for name in names]
    ends = pa.py_buffer(np.cumsum([0, *map(len, encoded)]).astype(np.int32))
    spelled = pa.StringArray.from_buffers(len(names), ends, pa.py_buffer(b"".join(encoded)))
    kind = pa.dictionary(pa.int16(), pa.string())
    return pa.DictionaryArray.from_buffers(kind, len(codes), [None, pa.py_buffer(codes)], spelled)


def _coded(words: NDArray[np.str_]) -> tuple[list[str], NDArray[np.int16]]:
    """Distinct words in order of first appearance, and the number of each row's word; there are a handful."""
    codes = np.full(len(words), -1, dtype=np.int16)
    names: list[str] = []
    while len(left := np.flatnonzero(codes < 0)):
        names.append(str(words[left[0]]))
        codes[words == names[-1]] = len(names) - 1
    return names, codes


def write_json(path: Path, content: Any) -> None:
    """Write JSON without NaN, numpy's numbers as plain ones."""
    path.write_text(json.dumps(content, indent=2, allow_nan=False, default=_plain) + "\n", "utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} has no place in a JSON file")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A sibling folder that takes the place of ``target`` if all goes well, and goes away if not."""
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        yield beside
        _replace(target, beside)
    except OSError as error:
        raise ValueError(f"{target}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _replace(target: Path, beside: Path) -> None:
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    if target.exists():
        target.rename(old)
    try:
        beside.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
