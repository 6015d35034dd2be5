"""CSV of any `Layout`, streamed: blocks by pyarrow, and line by line where pyarrow refuses, to name the line."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workloads.columns import Ints
from workloads.errors import TraceError, Word, hint
from workloads.layout import NS_PER, Ids, Layout, Rows, fits_int64, seconds_to_ns
from workloads.numbers import date_ns, number, tokens
from workloads.source import Block, Source


def header_of(head: bytes) -> list[str]:
    """Column names in the first line of some bytes ([] where that is no CSV header)."""
    try:
        line = head.split(b"\n", 1)[0].decode("utf-8-sig").rstrip("\r")
        return [name.strip() for name in next(csv.reader([line]), [])]
    except (UnicodeDecodeError, csv.Error):
        return []


def read_csv(source: Source, layout: Layout) -> Iterator[Rows]:
    """Raw rows of a CSV file, one chunk per 2 MiB block. Raises TraceError naming file and line."""
    table: _Table | None = None
    for block in source.blocks():
        if table is None:
            first, _, rest = block.data.partition(b"\n")
            table = _Table(source.name, layout, header_of(first))
            block = Block(block.first_line + 1, rest)
        if block.data.strip():
            yield from table.rows(block)
    if table is None:
        raise TraceError(source.name, 1, "file", Word("empty"), "a header line and rows of data")


@dataclass
class _Table:
    """One CSV file's header, resolved against a layout."""

    file: str
    layout: Layout
    header: list[str]
    ids: Ids = field(default_factory=Ids)

    def __post_init__(self) -> None:
        absent = self.layout.missing(self.header)
        if absent is not None:
            raise TraceError(self.file, 1, absent, Word("missing column"), hint(absent, self.header))
        if len(set(self.header)) != len(self.header):
            raise TraceError(self.file, 1, "header", self.header, "every column once")
        self.arrival = self.layout.arrival_in(self.header)
        self.unit = self.layout.arrival[self.arrival] if self.arrival else "ns"
        self.extras = self.layout.extras(self.header)
        self.keys = (self.arrival or "arrival", self.layout.prompt, self.layout.output)

    def rows(self, block: Block) -> Iterator[Rows]:
        """One block of lines -> rows, the fast way if pyarrow takes it whole."""
        fast = _fast(self, block)
        if fast is not None:
            yield fast
        else:
            yield from _slow(self, block)


# the fast way ------------------------------------------------------------------------------------


def _fast(table: _Table, block: Block) -> Rows | None:
    """The block by pyarrow, or None where anything in it needs a closer look."""
    lines = block.data.count(b"\n") + (not block.data.endswith(b"\n"))
    parsed = _arrow(table, block)
    if parsed is None or parsed.num_rows != lines or any(column.null_count for column in parsed.columns):
        return None
    get = {name: parsed.column(name) for name in parsed.column_names}
    arrival = None if table.arrival is None else _arrow_ns(get[table.arrival], table.unit)
    if table.arrival is not None and arrival is None:
        return None
    extras = {key: _arrow_extra(table, key, get[name]) for key, name in table.extras.items()}
    return Rows(
        lines=np.arange(block.first_line, block.first_line + lines, dtype=np.int64),
        prompt=_plain(get[table.layout.prompt]),
        output=_plain(get[table.layout.output]),
        arrival_ns=arrival,
        keys=table.keys,
        epoch=table.unit == "date",
        session=extras.get("session"),
        priority=extras.get("priority"),
        samples=extras.get("samples"),
        tenant=extras.get("tenant"),
    )


def _arrow(table: _Table, block: Block) -> Any | None:
    import pyarrow as pa
    from pyarrow import csv as pa_csv

    types = {table.layout.prompt: pa.int64(), table.layout.output: pa.int64()}
    types |= {name: pa.string() if key == "session" else pa.int64() for key, name in table.extras.items()}
    if table.arrival is not None:
        types[table.arrival] = _arrow_stamp(table, block)
    try:
        return pa_csv.read_csv(
            pa.BufferReader(block.data),
            read_options=pa_csv.ReadOptions(
                column_names=table.header, use_threads=False, block_size=len(block.data) + 1
            ),
            convert_options=pa_csv.ConvertOptions(column_types=types, include_columns=list(types)),
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OverflowError):
        return None


def _arrow_stamp(table: _Table, block: Block) -> Any:
    import pyarrow as pa

    if table.unit != "date":
        return pa.int64() if table.unit == "ns" else pa.float64()
    assert table.arrival is not None
    cells = block.data.split(b"\n", 1)[0].split(b",")
    index = table.header.index(table.arrival)
    stamp = cells[index].strip() if index < len(cells) else b""
    zoned = stamp.endswith(b"Z") or b"+" in stamp or stamp.count(b"-") > 2
    return pa.timestamp("ns", tz="UTC") if zoned else pa.timestamp("ns")


def _arrow_ns(column: Any, unit: str) -> Ints | None:
    import pyarrow as pa

    if unit in ("date", "ns"):
        exact: Ints = _plain(column.cast(pa.int64()))
        return exact
    stamps = seconds_to_ns(_plain(column), NS_PER[unit])
    return stamps.astype(np.int64) if fits_int64(stamps).all() else None


def _plain(column: Any) -> Any:
    """A column without nulls as an array; `to_numpy` would import pandas, which takes longer than to read a trace."""
    return np.from_dlpack(column.combine_chunks())


def _arrow_extra(table: _Table, key: str, column: Any) -> Ints:
    if key != "session":
        values: Ints = _plain(column)
        return values
    coded = column.combine_chunks().dictionary_encode()
    numbers = np.array([table.ids.number(name) for name in coded.dictionary.to_pylist()], np.int64)
    picked: Ints = numbers[np.from_dlpack(coded.indices)]
    return picked


# the slow way ------------------------------------------------------------------------------------


def _slow(table: _Table, block: Block) -> Iterator[Rows]:
    """The block line by line; the rows before a bad line are yielded, then TraceError names it."""
    rows: list[list[int]] = []
    try:
        for offset, raw in enumerate(block.data.split(b"\n")):
            if raw.strip():
                line = block.first_line + offset
                rows.append([line, *_values(table, line, raw.decode().rstrip("\r"))])
    except TraceError:
        if rows:
            yield _from_lists(table, rows)
        raise
    if rows:
        yield _from_lists(table, rows)


def _values(table: _Table, line: int, text: str) -> list[int]:
    """[prompt, output, arrival if any, extras ...] of one line."""
    cells = _cells(table, line, text)
    try:
        values = [tokens(cells[table.layout.prompt]), tokens(cells[table.layout.output])]
    except ValueError as error:
        key = table.layout.output if _is_int(cells[table.layout.prompt]) else table.layout.prompt
        raise TraceError(table.file, line, key, cells[key], str(error)) from error
    if table.arrival is not None:
        values.append(_stamp(table, line, table.arrival, cells[table.arrival]))
    for key, name in table.extras.items():
        values.append(table.ids.number(cells[name]) if key == "session" else _integer(table, line, name, cells[name]))
    return values


def _cells(table: _Table, line: int, text: str) -> dict[str, str]:
    try:
        cells = next(csv.reader([text]), [])
    except csv.Error as error:
        raise TraceError(table.file, line, "line", text, "comma-separated values") from error
    if len(cells) != len(table.header):
        allowed = f"{len(table.header)} values ({','.join(table.header)}), not {len(cells)}"
        raise TraceError(table.file, line, "line", text, allowed)
    return dict(zip(table.header, cells, strict=True))


def _is_int(text: str) -> bool:
    try:
        tokens(text)
    except ValueError:
        return False
    return True


def _integer(table: _Table, line: int, key: str, text: str) -> int:
    try:
        return tokens(text)
    except ValueError as error:
        raise TraceError(table.file, line, key, text, str(error)) from error


def _stamp(table: _Table, line: int, key: str, text: str) -> int:
    try:
        return date_ns(text) if table.unit == "date" else number(text, NS_PER[table.unit])
    except ValueError as error:
        raise TraceError(table.file, line, key, text, str(error)) from error


def _from_lists(table: _Table, rows: list[list[int]]) -> Rows:
    columns = np.array(rows, np.int64).T.copy()
    rest = iter(columns[3:])
    arrival = None if table.arrival is None else next(rest)
    extras = {key: next(rest) for key in table.extras}
    return Rows(
        lines=columns[0],
        prompt=columns[1],
        output=columns[2],
        arrival_ns=arrival,
        keys=table.keys,
        epoch=table.unit == "date",
        session=extras.get("session"),
        priority=extras.get("priority"),
        samples=extras.get("samples"),
        tenant=extras.get("tenant"),
    )
