"""LLMServingSim: `arrival_time_ns,input_toks,output_toks` as CSV or as JSON lines.

Agentic rows (`sub_requests`), whose later requests follow the completion of earlier ones, are no arrival stream and are
refused. Source: github.com/casys-kaist/LLMServingSim.
"""

from __future__ import annotations

from collections.abc import Iterator

from workloads.csvfile import header_of, read_csv
from workloads.errors import TraceError, Word
from workloads.jsonl import first_line, read_jsonl
from workloads.layout import Layout, Rows
from workloads.source import Source

SAMPLE = b"arrival_time_ns,input_toks,output_toks\n46926808,2358,531\n347938951,1034,769\n"
LAYOUT = Layout(
    arrival={"arrival_time_ns": "ns"}, prompt="input_toks", output="output_toks", session="session_id"
)  # fmt: skip


def sniff(head: bytes) -> bool:
    """Whether the header, or the first JSON line, has LLMServingSim's names."""
    line = first_line(head)
    if line:
        return b'"input_toks"' in line or b'"sub_requests"' in line
    return {LAYOUT.prompt, LAYOUT.output} <= set(header_of(head))


def read(source: Source) -> Iterator[Rows]:
    """The requests of one file."""
    line = first_line(source.head())
    if b'"sub_requests"' in line:
        allowed = "rows with one request each, not agentic sessions"
        raise TraceError(source.name, 1, "sub_requests", Word("present"), allowed)
    return read_jsonl(source, LAYOUT) if line else read_csv(source, LAYOUT)
