"""Vidur: `arrived_at,num_prefill_tokens,num_decode_tokens[,...]`, seconds; its processed files carry no arrivals.

Source: github.com/microsoft/vidur (trace replay and trace length generators).
"""

from __future__ import annotations

from collections.abc import Iterator

from workloads.csvfile import header_of, read_csv
from workloads.layout import Layout, Rows
from workloads.source import Source

SAMPLE = b"arrived_at,num_prefill_tokens,num_decode_tokens\n0.25,3772,54\n0.5,2015,156\n"
LAYOUT = Layout(
    arrival={"arrived_at": "s"}, arrival_optional=True, prompt="num_prefill_tokens", output="num_decode_tokens"
)


def sniff(head: bytes) -> bool:
    """Whether the header has both token columns of Vidur."""
    return {LAYOUT.prompt, LAYOUT.output} <= set(header_of(head))


def read(source: Source) -> Iterator[Rows]:
    """The requests of one file."""
    return read_csv(source, LAYOUT)
