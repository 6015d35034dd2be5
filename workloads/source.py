"""A file as bytes: gzip by its magic, in blocks of whole lines, memory flat whatever the file claims."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from workloads.errors import TraceError

BLOCK_BYTES = 2 << 20
LINE_BYTES_MAX = 16 << 20
HEAD_BYTES = 64 << 10


@dataclass(frozen=True)
class Block:
    """Whole lines of a text file; `first_line` counts from 1."""

    first_line: int
    data: bytes


@dataclass(frozen=True)
class Source:
    """A trace file and the reading options that a reader may ask for."""

    path: Path
    hash_block_tokens: int = 512

    @property
    def name(self) -> str:
        """The file as an error names it."""
        return str(self.path)

    def is_gzip(self) -> bool:
        """Whether the file starts with the gzip magic."""
        with self.path.open("rb") as raw:
            return raw.read(2) == b"\x1f\x8b"

    def open(self) -> BinaryIO:
        """The file's bytes, decompressed."""
        return cast(BinaryIO, gzip.open(self.path, "rb") if self.is_gzip() else self.path.open("rb"))

    def head(self) -> bytes:
        """The first 64 KiB after decompression, or what of it can be read; for sniffing."""
        with self.open() as handle:
            return _read(handle, HEAD_BYTES)[0]

    def blocks(self) -> Iterator[Block]:
        """The text in blocks of whole lines. Raises TraceError for a damaged gzip, bad UTF-8 or an endless line."""
        line = 1
        with self.open() as handle:
            for data, broken in _whole_lines(handle, self.name):
                if data:
                    yield from _utf8(Block(line, data), self.name)
                line += data.count(b"\n")
                if broken:
                    raise TraceError(self.name, line, "file", broken, "a complete gzip file")


def _whole_lines(handle: BinaryIO, name: str) -> Iterator[tuple[bytes, str]]:
    rest = b""
    while True:
        data, broken = _read(handle, BLOCK_BYTES)
        if broken or not data:
            keep = (rest + data).rfind(b"\n") + 1 if broken else len(rest)
            yield (rest + data)[:keep], broken
            return
        cut = data.rfind(b"\n") + 1
        if cut:
            yield rest + data[:cut], ""
            rest = data[cut:]
        else:
            rest += data
        if len(rest) > LINE_BYTES_MAX:
            raise TraceError(name, 1, "line", f"{len(rest)} bytes", f"lines of at most {LINE_BYTES_MAX} bytes")


def _read(handle: BinaryIO, size: int) -> tuple[bytes, str]:
    """Up to `size` bytes and, where a compressed file is damaged, why nothing more can be read."""
    got: list[bytes] = []
    try:
        while size > 0 and (piece := handle.read(min(size, 64 << 10))):
            got.append(piece)
            size -= len(piece)
    except (EOFError, OSError, zlib.error) as error:
        return b"".join(got), str(error) or "damaged"
    return b"".join(got), ""


def _utf8(block: Block, name: str) -> Iterator[Block]:
    try:
        if not block.data.isascii():
            block.data.decode("utf-8")
    except UnicodeDecodeError as error:
        good = block.data[: block.data.rfind(b"\n", 0, error.start) + 1]
        if good:
            yield Block(block.first_line, good)
        line = block.first_line + good.count(b"\n")
        bad = block.data[error.start : error.start + 4]
        raise TraceError(name, line, "encoding", bad, "UTF-8 text") from error
    yield block
