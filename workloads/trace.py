"""A trace file opened by name or path, sniffed by content, read as a stream of checked columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from workloads.check import checked
from workloads.columns import CHUNK_ROWS, Columns, rechunk
from workloads.errors import TraceError, Word
from workloads.readers import Reader, reader, readers, sniffed
from workloads.shipped import Shipped, locate
from workloads.source import Source


@dataclass
class Trace:
    """One trace: where it is, what format it is in, and its requests as a stream.

    `dropped` counts rows left out by reason (`zero_prompt_tokens`, `zero_output_tokens`); it is filled while reading
    and starts again with every pass. `origin` and `licence` are known for shipped traces.
    """

    name: str
    path: Path
    format: str
    origin: str | None = None
    licence: str | None = None
    quantum_s: float | None = None
    hash_block_tokens: int = 512
    dropped: Counter[str] = field(default_factory=Counter)

    def chunks(self, rows: int = CHUNK_ROWS) -> Iterator[Columns]:
        """The requests in chunks of `rows`, streamed and checked as read.

        Raises TraceError at the first bad row, after yielding the rows before it, and for a file without arrivals.
        """
        return self._pass(rows, need_arrivals=True)

    def lengths(self, rows: int = CHUNK_ROWS) -> Iterator[Columns]:
        """Like `chunks`, but files without arrivals are welcome; theirs are then all 0."""
        return self._pass(rows, need_arrivals=False)

    def has_arrivals(self) -> bool:
        """Whether the file gives arrival times; reads its first rows. Without any, what is wrong is said later."""
        first = next(iter(self._reader().read(self._source())), None)
        return first is None or first.arrival_ns is not None

    def _pass(self, rows: int, need_arrivals: bool) -> Iterator[Columns]:
        self.dropped.clear()
        raw = self._reader().read(self._source())
        yield from rechunk(checked(raw, str(self.path), self.dropped, need_arrivals), rows)

    def _reader(self) -> Reader:
        return reader(self.format)

    def _source(self) -> Source:
        return Source(self.path, self.hash_block_tokens)


def open_trace(name_or_path: str | Path, *, format: str | None = None, hash_block_tokens: int = 512) -> Trace:
    """A shipped trace by name or alias, or a file (plain, gzip or Parquet), its format sniffed unless given.

    `hash_block_tokens` is the prefix block size of `hash_ids` where the file has them. Raises ValueError for an unknown
    name or format, TraceError for a file no reader knows.
    """
    found = locate(name_or_path)
    if isinstance(found, Shipped):
        if len(found.files) > 1:
            raise ValueError(f"trace: {found.name!r}: a length distribution, not a trace: use it as prompt and output")
        path, origin, licence, quantum_s = found.files[0], found.source, found.licence, found.quantum_s
        name = found.name
    else:
        path, origin, licence, quantum_s, name = found, None, None, None, str(found)
    if hash_block_tokens < 1:
        raise ValueError(f"hash_block_tokens: {hash_block_tokens}: must be at least 1")
    if format is None:
        format = _sniff(path)
    reader(format)
    return Trace(name, path, format, origin, licence, quantum_s, hash_block_tokens)


def _sniff(path: Path) -> str:
    head = Source(path).head()
    if not head.strip():
        raise TraceError(str(path), 1, "file", Word("empty"), "a trace in one of: " + ", ".join(readers()))
    found = sniffed(head)
    if found is None:
        first = head.split(b"\n", 1)[0][:80].decode("utf-8", "replace")
        raise TraceError(str(path), 1, "format", first, "the first line of one of: " + ", ".join(readers()))
    return found
