"""JSON lines of any `Layout`, streamed, with prefix block ids where the rows have them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from workloads.columns import Ints
from workloads.errors import TraceError, Word
from workloads.layout import NS_PER, Ids, Layout, Rows
from workloads.numbers import number, tokens
from workloads.source import Block, Source

HASHES = "hash_ids"
BLOCK_ID_MAX = 2**48
"""Ids above this could not be kept apart when traces are mixed."""


def first_line(head: bytes) -> bytes:
    """The first line of some bytes if it starts a JSON object, else nothing."""
    line = head.lstrip(b"\xef\xbb\xbf \r\n\t").split(b"\n", 1)[0]
    return line if line.startswith(b"{") else b""


def read_jsonl(source: Source, layout: Layout) -> Iterator[Rows]:
    """Raw rows of a JSONL file, one chunk per 2 MiB block. Raises TraceError naming file and line."""
    lines = _Lines(source, layout)
    for block in source.blocks():
        yield from lines.rows(block)


@dataclass
class _Lines:
    """One JSONL file: what its first row settled (arrivals or none, prefix blocks or none)."""

    source: Source
    layout: Layout
    ids: Ids = field(default_factory=Ids)
    arrival: str | None = None
    hashed: bool | None = None
    extras: dict[str, str] = field(default_factory=dict)

    def rows(self, block: Block) -> Iterator[Rows]:
        rows: list[list[int]] = []
        hashes: list[Ints] = []
        try:
            for offset, raw in enumerate(block.data.split(b"\n")):
                if raw.strip():
                    self._row(block.first_line + offset, raw, rows, hashes)
        except TraceError:
            yield from self._packed(rows, hashes)
            raise
        yield from self._packed(rows, hashes)

    def _row(self, line: int, raw: bytes, rows: list[list[int]], hashes: list[Ints]) -> None:
        entry = self._object(line, raw)
        if self.hashed is None:
            self.hashed, self.arrival = HASHES in entry, self.layout.arrival_in(list(entry))
            self.extras = self.layout.extras(list(entry))
        row = [line, self._int(line, entry, self.layout.prompt), self._int(line, entry, self.layout.output)]
        if self.arrival is not None:
            row.append(self._stamp(line, entry, self.arrival))
        row.extend(self._extra(line, entry, key, name) for key, name in self.extras.items())
        if self.hashed:
            hashes.append(self._hashes(line, entry, row[1]))
        rows.append(row)

    def _object(self, line: int, raw: bytes) -> dict[str, object]:
        try:
            entry = json.loads(raw.decode("utf-8-sig") if line == 1 else raw)
        except (ValueError, RecursionError) as error:
            raise TraceError(self.source.name, line, "line", raw[:80], "one JSON object") from error
        if not isinstance(entry, dict):
            raise TraceError(self.source.name, line, "line", raw[:80], "one JSON object")
        return entry

    def _int(self, line: int, entry: dict[str, object], key: str) -> int:
        if key not in entry:
            raise TraceError(self.source.name, line, key, Word("missing"), "a whole number of tokens in every row")
        try:
            return tokens(entry[key])
        except ValueError as error:
            raise TraceError(self.source.name, line, key, entry[key], str(error)) from error

    def _stamp(self, line: int, entry: dict[str, object], key: str) -> int:
        if key not in entry:
            allowed = "a stamp in every row, as the first has one (a turn with only a delay needs a closed loop)"
            raise TraceError(self.source.name, line, key, Word("missing"), allowed)
        try:
            return number(entry[key], NS_PER[self.layout.arrival[key]])
        except ValueError as error:
            raise TraceError(self.source.name, line, key, entry[key], str(error)) from error

    def _extra(self, line: int, entry: dict[str, object], key: str, name: str) -> int:
        if key == "session":
            said = entry.get(name)
            if not isinstance(said, str | int | None):
                raise TraceError(self.source.name, line, name, said, "a text or a whole number")
            return self.ids.number("" if said is None else str(said)[:1000])
        return self._int(line, entry, name)

    def _hashes(self, line: int, entry: dict[str, object], prompt: int) -> Ints:
        ids, block = entry.get(HASHES), self.source.hash_block_tokens
        whole = isinstance(ids, list) and all(type(i) is int and 0 <= i < BLOCK_ID_MAX for i in ids)
        if not whole or not isinstance(ids, list):
            raise TraceError(self.source.name, line, HASHES, ids, "a list of block numbers from 0 to 2**48-1")
        if len(ids) > max(0, -(-prompt // block)):
            allowed = f"at most one per {block} prompt tokens, {-(-prompt // block)}; is hash_block_tokens right?"
            raise TraceError(self.source.name, line, HASHES, len(ids), allowed)
        return np.array(ids, np.int64)

    def _packed(self, rows: list[list[int]], hashes: list[Ints]) -> Iterator[Rows]:
        if not rows:
            return
        columns = list(np.array(rows, np.int64).T.copy())
        arrival = None if self.arrival is None else columns.pop(3)
        extras = dict(zip(self.extras, columns[3:], strict=True))
        yield Rows(
            lines=columns[0],
            prompt=columns[1],
            output=columns[2],
            arrival_ns=arrival,
            session=extras.get("session"),
            priority=extras.get("priority"),
            samples=extras.get("samples"),
            tenant=extras.get("tenant"),
            hash_ids=hashes if self.hashed else None,
            hash_block_tokens=self.source.hash_block_tokens if self.hashed else None,
            keys=(self.arrival or "arrival", self.layout.prompt, self.layout.output),
        )
