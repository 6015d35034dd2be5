"""Parquet, read by row group, with the columns of the plain format or of any CSV format here.

Arrivals may be numbers in the unit of their name or Parquet timestamps; lines in errors are rows, counted from 1.
`SAMPLE` is built when asked for, so that pyarrow is imported late.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workloads.columns import Ints
from workloads.errors import TraceError, Word, hint
from workloads.layout import NS_PER, Ids, Layout, Rows, fits_int64, seconds_to_ns
from workloads.readers import azure, burstgpt, llmservingsim, mooncake, plain, sharegpt, vidur
from workloads.source import Source

LAYOUTS = tuple(module.LAYOUT for module in (plain, azure, burstgpt, vidur, llmservingsim, mooncake, sharegpt))
BATCH_ROWS = 65_536
GROUP_BYTES_MAX = 8 << 30
THRIFT_MAX = 64 << 20
Bools = NDArray[np.bool_]


def __getattr__(name: str) -> bytes:
    if name != "SAMPLE":
        raise AttributeError(name)
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = {"arrival_s": [0.0, 0.125], "prompt_tokens": [512, 640], "output_tokens": [128, 96]}
    buffer = io.BytesIO()
    pq.write_table(pa.table(rows), buffer)
    return buffer.getvalue()


def sniff(head: bytes) -> bool:
    """Whether the file starts with Parquet's magic."""
    return head.startswith(b"PAR1")


def read(source: Source) -> Iterator[Rows]:
    """The requests of one file. Raises TraceError, also for what pyarrow finds wrong with the file."""
    import pyarrow as pa

    first_row = 1
    try:
        table = _open(source)
        for batch in table.file.iter_batches(BATCH_ROWS, columns=list(table.columns.values()), use_threads=False):
            yield from table.rows(batch, first_row)
            first_row += batch.num_rows
    except TraceError:
        raise
    except (pa.ArrowException, OSError, ValueError, NotImplementedError, MemoryError, OverflowError) as error:
        raise TraceError(source.name, first_row, "parquet", str(error), "a sound Parquet file") from error


def _open(source: Source) -> _Table:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(
        source.path, thrift_string_size_limit=THRIFT_MAX, thrift_container_size_limit=THRIFT_MAX
    )  # fmt: skip
    for i in range(file.metadata.num_row_groups):
        claimed = file.metadata.row_group(i).total_byte_size
        if not 0 <= claimed <= GROUP_BYTES_MAX:
            raise TraceError(source.name, 1, "row group", claimed, f"row groups of at most {GROUP_BYTES_MAX} bytes")
    header = list(file.schema_arrow.names)
    layout = next((layout for layout in LAYOUTS if layout.missing(header) is None), None)
    if layout is None:
        wanted = plain.LAYOUT.missing(header)
        raise TraceError(source.name, 1, str(wanted), Word("missing column"), hint(str(wanted), header))
    return _Table(source, file, layout, header)


@dataclass
class _Table:
    """One Parquet file, its columns resolved against a layout."""

    source: Source
    file: Any
    layout: Layout
    header: list[str]

    def __post_init__(self) -> None:
        self.arrival = self.layout.arrival_in(self.header)
        self.columns = {"prompt": self.layout.prompt, "output": self.layout.output}
        self.columns |= {"arrival": self.arrival} if self.arrival else {}
        self.columns |= self.layout.extras(self.header)
        self.columns |= {"hash_ids": "hash_ids"} if "hash_ids" in self.header else {}
        self.epoch = self.layout.arrival.get(self.arrival or "") == "date"
        self.ids = Ids()

    def rows(self, batch: Any, first_row: int) -> Iterator[Rows]:
        """One batch; rows before a bad one are yielded, then TraceError names it."""
        values: dict[str, Any] = {}
        good, bad = batch.num_rows, None
        for key, name in self.columns.items():
            values[key], ok = self._values(key, name, batch.column(name))
            if not ok[:good].all():
                good, bad = int(ok.argmin()), name
        if good:
            yield self._rows({key: column[:good] for key, column in values.items()}, first_row)
        if bad is not None:
            said = batch.column(bad)[good].as_py()
            raise TraceError(self.source.name, first_row + good, bad, said, "a whole number (or a stamp) in every row")

    def _rows(self, values: dict[str, Any], first_row: int) -> Rows:
        n = len(values["prompt"])
        return Rows(
            lines=np.arange(first_row, first_row + n, dtype=np.int64),
            prompt=values["prompt"],
            output=values["output"],
            arrival_ns=values.get("arrival"),
            session=values.get("session"),
            priority=values.get("priority"),
            samples=values.get("samples"),
            tenant=values.get("tenant"),
            hash_ids=values.get("hash_ids"),
            hash_block_tokens=self.source.hash_block_tokens if "hash_ids" in values else None,
            keys=(self.arrival or "arrival", self.layout.prompt, self.layout.output),
            epoch=self.epoch,
        )

    def _values(self, key: str, name: str, column: Any) -> tuple[Any, Bools]:
        if key == "session":
            names = ["" if value is None else str(value) for value in column.to_pylist()]
            return np.array([self.ids.number(n) for n in names], np.int64), np.ones(len(names), np.bool_)
        if key == "hash_ids":
            lists = [np.array(ids or [], np.int64) for ids in column.to_pylist()]
            return lists, np.array([bool((ids >= 0).all()) for ids in lists])
        if key == "arrival":
            return _stamps(column, self.layout.arrival[name])
        return _whole(column)


def _stamps(column: Any, unit: str) -> tuple[Ints, Bools]:
    """(ns, which are sound) of a column of timestamps or numbers."""
    import pyarrow as pa

    if pa.types.is_timestamp(column.type):
        ticks, ok = _whole(column.cast(pa.int64()))
        return _scaled(ticks, ok, NS_PER[column.type.unit])
    if unit == "date":
        raise ValueError(f"arrival column of type {column.type}: needs Parquet timestamps")
    if pa.types.is_floating(column.type):
        stamps = seconds_to_ns(column.to_numpy(zero_copy_only=False).astype(np.float64), NS_PER[unit])
        ok = fits_int64(stamps)
        return np.where(ok, stamps, 0.0).astype(np.int64), ok
    return _scaled(*_whole(column), NS_PER[unit])


def _scaled(ticks: Ints, ok: Bools, ns_per: int) -> tuple[Ints, Bools]:
    ok = ok & (np.abs(ticks) < 2**62 // ns_per)
    return np.where(ok, ticks, 0) * ns_per, ok


def _whole(column: Any) -> tuple[Ints, Bools]:
    """(int64 values, which are sound) of a column of whole numbers; nulls and fractions are not."""
    import pyarrow as pa

    present = column.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_floating(column.type):
        reals = column.to_numpy(zero_copy_only=False).astype(np.float64)
        with np.errstate(invalid="ignore"):
            ok = present & (np.abs(reals) < 1e18) & (np.floor(reals) == reals)
        return np.where(ok, reals, 0.0).astype(np.int64), ok
    if not pa.types.is_integer(column.type):
        raise ValueError(f"a column of type {column.type}: needs whole numbers")
    return column.fill_null(0).cast(pa.int64()).to_numpy(zero_copy_only=False), present
