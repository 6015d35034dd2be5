"""Azure LLM inference traces 2023 and 2024: `TIMESTAMP,ContextTokens,GeneratedTokens`.

Stamps are calendar times, 2023 with seven digits (100 ns), 2024 with microseconds and a zone; both are read exactly and
counted from the first row. Source: github.com/Azure/AzurePublicDataset.
"""

from __future__ import annotations

from collections.abc import Iterator

from workloads.csvfile import header_of, read_csv
from workloads.layout import Layout, Rows
from workloads.source import Source

SAMPLE = (
    b"TIMESTAMP,ContextTokens,GeneratedTokens\n"
    b"2023-11-16 18:15:46.6805900,374,44\n"
    b"2023-11-16 18:15:50.9951690,396,109\n"
)
LAYOUT = Layout(arrival={"TIMESTAMP": "date"}, prompt="ContextTokens", output="GeneratedTokens")


def sniff(head: bytes) -> bool:
    """Whether the header has both token columns of Azure."""
    return {LAYOUT.prompt, LAYOUT.output} <= set(header_of(head))


def read(source: Source) -> Iterator[Rows]:
    """The requests of one file."""
    return read_csv(source, LAYOUT)
