"""Trace formats, one file each; whatever lies in this folder is found and sniffed by content.

A reader is a module with `SAMPLE` (three lines of the format, as bytes), `sniff(head: bytes) -> bool` over the first
64 KiB (decompressed) and `read(source: Source) -> Iterator[Rows]`, which yields raw rows with their line numbers;
`workloads.check` does the checking. `sniff` must say no to every other reader's sample.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Protocol, cast

from workloads.errors import hint
from workloads.layout import Rows
from workloads.source import Source


class Reader(Protocol):
    """What a module in this folder provides."""

    SAMPLE: bytes

    def sniff(self, head: bytes) -> bool:
        """Whether the file's first bytes look like this format."""

    def read(self, source: Source) -> Iterator[Rows]:
        """The file's rows, unchecked, in file order."""


@cache
def readers() -> dict[str, Reader]:
    """Every reader in this folder, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {name: cast(Reader, import_module(f"{__name__}.{name}")) for name in names}


def reader(name: str) -> Reader:
    """The reader of that name. Raises ValueError with a suggestion."""
    if name not in readers():
        raise ValueError(f"format: {name!r}: {hint(name, readers())}")
    return readers()[name]


def sniffed(head: bytes) -> str | None:
    """The name of the format these first bytes are in, if any reader knows it."""
    return next((name for name, module in readers().items() if module.sniff(head)), None)
