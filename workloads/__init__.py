"""Traffic for the simulator: traces as checked, streamed columns, and synthetic arrivals and lengths.

Imports nothing of `sim`. Start with `open_trace(NAME_OR_PATH)` or `workload(SPEC, seed)`.
"""

from workloads.columns import Columns, join, rechunk
from workloads.errors import TraceError
from workloads.info import describe
from workloads.shipped import shipped
from workloads.synthetic import synthetic
from workloads.trace import Trace, open_trace
from workloads.traffic import block_tokens, lengths, workload

__all__ = [
    "Columns",
    "Trace",
    "TraceError",
    "block_tokens",
    "describe",
    "join",
    "lengths",
    "open_trace",
    "rechunk",
    "shipped",
    "synthetic",
    "workload",
]
