"""BurstGPT: `Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type`, stamps in seconds.

Zero response tokens mark a failed request; it is dropped and counted. Later releases add `Session ID` and
`Elapsed time`. Source: github.com/HPMLL/BurstGPT.
"""

from __future__ import annotations

from collections.abc import Iterator

from workloads.csvfile import header_of, read_csv
from workloads.layout import Layout, Rows
from workloads.source import Source

SAMPLE = (
    b"Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    b"5,ChatGPT,472,18,490,Conversation log\n"
    b"45,ChatGPT,1087,230,1317,Conversation log\n"
)
LAYOUT = Layout(
    arrival={"Timestamp": "s"}, prompt="Request tokens", output="Response tokens", session="Session ID"
)  # fmt: skip


def sniff(head: bytes) -> bool:
    """Whether the header has both token columns of BurstGPT."""
    return {LAYOUT.prompt, LAYOUT.output} <= set(header_of(head))


def read(source: Source) -> Iterator[Rows]:
    """The requests of one file."""
    return read_csv(source, LAYOUT)
