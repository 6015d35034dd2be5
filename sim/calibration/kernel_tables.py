"""Files of kernel timings: recognised by their columns, checked, and cleaned of what is named in ``dropped``.

Layouts (docs/calibration.md): products, decode and prefill attention, collectives; Parquet or CSV, times in ``ms``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sim.plugin import suggest

__all__ = ["KINDS", "KernelTable", "read_table"]

Frame = Any
KINDS = {
    "gemm": ("m", "n", "k", "ms"),
    "decode_attention": ("batch", "kv_len", "heads", "kv_heads", "head_dim", "ms"),
    "prefill_attention": ("batch", "isl", "heads", "kv_heads", "head_dim", "ms"),
    "collectives": ("op", "num_gpus", "message_size", "ms"),
}
TELLING = {"gemm": "n", "decode_attention": "kv_len", "prefill_attention": "isl", "collectives": "message_size"}
TEXT = {"gpu": "", "backend": "any", "source": "any", "version": "", "dtype": "bfloat16", "kv_dtype": "bfloat16",
        "kernel": ""}  # fmt: skip
LIBRARIES = {"tensorrt-llm": "trtllm", "tensorrt_llm": "trtllm", "trt-llm": "trtllm", "vllm-v1": "vllm"}
SIXTEEN = {"bfloat16": "bf16", "float16": "bf16", "half": "bf16", "fp16": "bf16", "bf16": "bf16"}
FORMATS = {**SIXTEEN, "sq": "int8", "float8": "fp8", "e4m3": "fp8"}
MOST_ROWS, MOST_BYTES, FEWEST = 3_000_000, 1 << 29, 24
LONGEST_MS, WIDEST = 1e7, 1 << 40


@dataclass(frozen=True)
class KernelTable:
    """One file: what it times, its rows with ``seconds`` for times, and what was left out, one line each.

    ``frame`` has every column of its kind, and ``gpu``, ``library``, ``version``, ``dtype``, ``kv_dtype``, ``kernel``.
    """

    kind: str
    frame: Frame
    file: str
    dropped: tuple[str, ...] = field(default=())

    def keep(self, rows: Any, why: str) -> KernelTable:
        """Only ``rows``; the others are named with the reason."""
        lost = int((~rows).sum())
        if not lost:
            return self
        said = f"{lost} of {len(rows)} rows: {why}"
        return replace(self, frame=self.frame[rows].reset_index(drop=True), dropped=(*self.dropped, said))


def read_table(path: str | Path, to_fit: bool = True) -> KernelTable:
    """The table of a file, checked. Raises ValueError, one line naming file and column, for anything that is no table.

    ``to_fit``: what is too little or too uniform for a fit is refused as well.
    """
    file = Path(path)
    frame = _read(file)
    kind = _kind(frame.columns, file)
    table = KernelTable(kind, _named(frame, kind), file.name)
    table = _numbers(table)
    if len(table.frame) < (FEWEST if to_fit else 1):
        needs = f"{table.file}: {len(table.frame)} usable rows; allowed: at least {FEWEST if to_fit else 1}"
        raise ValueError("; ".join([needs, *table.dropped]))
    if to_fit:
        _varied(table)
    return _once(table)


def _read(file: Path) -> Frame:
    try:
        if file.stat().st_size > MOST_BYTES:
            raise ValueError(f"{file.stat().st_size} bytes; at most {MOST_BYTES}")
        return _parquet(file) if file.suffix == ".parquet" else pd.read_csv(file, nrows=MOST_ROWS + 1, low_memory=False)
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror or 'not a Parquet file'}") from None
    except Exception as error:
        said = " ".join(str(error).split())[:160]
        raise ValueError(f"{file}: is no table (Parquet or CSV): {said}") from None


def _parquet(file: Path) -> Frame:
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(file) as opened:
        about = opened.metadata
        if about.num_rows > MOST_ROWS or about.num_columns > 200:
            raise ValueError(f"{about.num_rows} rows of {about.num_columns} columns; at most {MOST_ROWS} of 200")
        wanted = {"held", *TEXT, *(c for columns in KINDS.values() for c in columns), "window"}
        return opened.read(columns=[c for c in opened.schema_arrow.names if c in wanted]).to_pandas()


def _kind(columns: Iterable[str], file: Path) -> str:
    have = set(columns)
    for kind, needed in KINDS.items():
        if have >= set(needed):
            return kind
    kind = next((k for k, column in TELLING.items() if column in have), "gemm")
    missing = [c for c in KINDS[kind] if c not in have]
    hint = suggest(missing[0], [str(c) for c in have])
    raise ValueError(f"{file}: no column {missing[0]!r}; {kind} needs {', '.join(KINDS[kind])}{hint}")


def _named(frame: Frame, kind: str) -> Frame:
    if len(frame) > MOST_ROWS:
        raise ValueError(f"more than {MOST_ROWS} rows")
    held = {"held": frame["held"].astype(bool)} if "held" in frame else {}
    numbers = [c for c in KINDS[kind] if c not in ("ms", "op")]
    out = pd.DataFrame({c: pd.to_numeric(frame[c], errors="coerce") for c in numbers} | held)
    for column, default in TEXT.items():
        said = frame[column].astype(object) if column in frame else pd.Series(default, index=frame.index)
        out[column] = said.where(said.notna(), default).astype(str)
    library = out["backend"] if "backend" in frame else out["source"]
    out["library"] = library.str.lower().replace(LIBRARIES)
    out["dtype"] = out["dtype"].str.lower().replace(FORMATS if kind != "collectives" else SIXTEEN)
    out["kv_dtype"] = out["kv_dtype"].str.lower().replace(FORMATS)
    if kind == "collectives":
        out["op"] = frame["op"].astype(str).replace({"alltoall": "all_to_all"})
    if kind.endswith("attention"):
        out["window"] = pd.to_numeric(frame["window"], errors="coerce").fillna(0) if "window" in frame else 0
    out["seconds"] = pd.to_numeric(frame["ms"], errors="coerce") * 1e-3
    return out.drop(columns=["backend", "source"])


def _numbers(table: KernelTable) -> KernelTable:
    frame, whole = table.frame, [c for c in KINDS[table.kind] if c not in ("ms", "op")]
    taken = frame["seconds"].to_numpy(float)
    table = table.keep(pd.Series((taken > 0) & (taken < LONGEST_MS * 1e-3)), "ms is no positive number")
    sizes = table.frame[whole].to_numpy(float)
    table = table.keep(
        pd.Series((np.isfinite(sizes) & (sizes >= 1) & (sizes < WIDEST)).all(axis=1)), "a size is no positive number"
    )
    if "kv_heads" in table.frame:
        table = table.keep(table.frame["heads"] >= table.frame["kv_heads"], "more KV heads than heads")
    return table


def _varied(table: KernelTable) -> None:
    for column in (TELLING[table.kind], "seconds", *(("m", "k") if table.kind == "gemm" else ())):
        if table.frame[column].nunique() < 2:
            name = "ms" if column == "seconds" else column
            raise ValueError(f"{table.file}: {name}: the same in all rows; allowed: at least two values")


def _once(table: KernelTable) -> KernelTable:
    """One row a case, the median of its repeats; refused if repeats say that several things were mixed."""
    keys = [c for c in table.frame.columns if c != "seconds"]
    again = table.frame.duplicated(keys, keep=False)
    if not again.any():
        return table
    grouped = table.frame[again].groupby(keys, dropna=False)["seconds"]
    spread = (grouped.max() / grouped.min()).to_numpy()
    if len(spread) >= 10 and np.median(spread) > 1.4:
        raise ValueError(
            f"{table.file}: the same case is timed {np.median(spread):.1f} times apart in {len(spread)} cases: several "
            "engines or devices mixed? name them in columns backend and gpu"
        )
    merged = table.frame.groupby(keys, as_index=False, dropna=False, sort=False)["seconds"].median()
    lost = len(table.frame) - len(merged)
    return replace(table, frame=merged, dropped=(*table.dropped, f"{lost} repeats: their median is kept"))
