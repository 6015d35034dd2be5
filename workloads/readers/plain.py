"""decodesim's own CSV: one of `arrival_ns | arrival_ms | arrival_s`, then `prompt_tokens,output_tokens`.

Optional columns: `session` (any text), `priority`, `samples`, `tenant` (integers). Arrival columns may be absent: the
file then holds lengths only. Stamps beyond ten years are taken as times since an epoch and counted from the first row.
"""

from __future__ import annotations

from collections.abc import Iterator

from workloads.csvfile import header_of, read_csv
from workloads.layout import Layout, Rows
from workloads.source import Source

SAMPLE = b"arrival_s,prompt_tokens,output_tokens,session\n0.0,512,128,a\n0.125,640,96,b\n"
LAYOUT = Layout(
    arrival={"arrival_ns": "ns", "arrival_ms": "ms", "arrival_s": "s"},
    arrival_optional=True,
    prompt="prompt_tokens",
    output="output_tokens",
    session="session",
    priority="priority",
    samples="samples",
    tenant="tenant",
)


def sniff(head: bytes) -> bool:
    """Whether the header has both token columns."""
    return {LAYOUT.prompt, LAYOUT.output} <= set(header_of(head))


def read(source: Source) -> Iterator[Rows]:
    """The requests of one file."""
    return read_csv(source, LAYOUT)
