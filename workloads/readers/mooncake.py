"""Mooncake JSONL: `timestamp` (ms), `input_length`, `output_length`, `hash_ids` of 512-token prefix blocks.

AIPerf's `session_id` gives the conversation; its `delay` is ignored where a row has a timestamp. A file without
timestamps holds lengths only. Sources: github.com/kvcache-ai/Mooncake, github.com/ai-dynamo/aiperf (mooncake_trace).
"""

from __future__ import annotations

from collections.abc import Iterator

from workloads.jsonl import first_line, read_jsonl
from workloads.layout import Layout, Rows
from workloads.source import Source

SAMPLE = (
    b'{"timestamp": 0, "input_length": 600, "output_length": 52, "hash_ids": [0, 1]}\n'
    b'{"timestamp": 40, "input_length": 1030, "output_length": 7, "hash_ids": [0, 2, 3]}\n'
    b'{"timestamp": 40, "input_length": 12, "output_length": 9, "hash_ids": [4]}\n'
)
LAYOUT = Layout(
    arrival={"timestamp": "ms"},
    arrival_optional=True,
    prompt="input_length",
    output="output_length",
    session="session_id",
    priority="priority",
    tenant="tenant",
)


def sniff(head: bytes) -> bool:
    """Whether the first line is a JSON object with `input_length`."""
    return b'"input_length"' in first_line(head)


def read(source: Source) -> Iterator[Rows]:
    """The requests of one file."""
    return read_jsonl(source, LAYOUT)
