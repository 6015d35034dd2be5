"""ShareGPT lengths: `input_length,output_length`, no arrivals: usable with a rate, or as an empirical length."""

from __future__ import annotations

from collections.abc import Iterator

from workloads.csvfile import header_of, read_csv
from workloads.layout import Layout, Rows
from workloads.source import Source

SAMPLE = b"input_length,output_length\n146,1691\n17,71\n"
LAYOUT = Layout(prompt="input_length", output="output_length")


def sniff(head: bytes) -> bool:
    """Whether the header has both length columns, and none that may be a time, which would be lost."""
    header = header_of(head)
    return {LAYOUT.prompt, LAYOUT.output} <= set(header) and not any("time" in name.lower() for name in header)


def read(source: Source) -> Iterator[Rows]:
    """The lengths of one file."""
    return read_csv(source, LAYOUT)
