"""ServeGen token length distribution: `input_tokens,prob` or `output_tokens,prob`.

A distribution, not a trace: it has no requests. Use it as `{kind: empirical, name: ...}` for a prompt or an output.
Source: github.com/alibaba/ServeGen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from workloads.columns import Ints
from workloads.csvfile import header_of
from workloads.errors import TraceError
from workloads.layout import Rows
from workloads.numbers import tokens
from workloads.source import Source

SAMPLE = b"input_tokens,prob\n4,0.25\n5,0.75\n"
HEADERS = (["input_tokens", "prob"], ["output_tokens", "prob"])
SUM_TOLERANCE = 1e-2
ROWS_MAX = 10**7


def sniff(head: bytes) -> bool:
    """Whether the header is a token column and `prob`."""
    return header_of(head) in HEADERS


def read(source: Source) -> Iterator[Rows]:
    """Raises TraceError: a distribution of lengths has no requests."""
    allowed = "a trace; this is a length distribution: use {kind: empirical, file: ...} as prompt or output"
    raise TraceError(source.name, 1, "format", "servegen", allowed)


def distribution(source: Source) -> tuple[Ints, NDArray[np.float64]]:
    """(lengths [n] >= 1, cumulative probability [n] ending at 1), zero lengths left out.

    Raises TraceError for a bad row, or probabilities whose sum is not 1 within a percent.
    """
    values: list[int] = []
    weights: list[float] = []
    total = 0.0
    for line, text in _lines(source):
        length, prob = _pair(source.name, line, text)
        total += prob
        if length > 0:
            values.append(length)
            weights.append(prob)
    if not sum(weights) > 0:
        raise TraceError(source.name, 1, "prob", total, "some probability on lengths of at least 1")
    if abs(total - 1) > SUM_TOLERANCE:
        raise TraceError(source.name, 1, "prob", total, f"probabilities that sum to 1 within {SUM_TOLERANCE}")
    upto = np.cumsum(np.array(weights)) / math.fsum(weights)
    upto[-1] = 1.0
    return np.array(values, np.int64), upto


def _lines(source: Source) -> Iterator[tuple[int, str]]:
    for block in source.blocks():
        for offset, raw in enumerate(block.data.split(b"\n")):
            line = block.first_line + offset
            if line > ROWS_MAX:
                raise TraceError(source.name, line, "rows", line, f"at most {ROWS_MAX} rows")
            if line > 1 and raw.strip():
                yield line, raw.decode()


def _pair(file: str, line: int, text: str) -> tuple[int, float]:
    length, _, prob = text.partition(",")
    try:
        pair = tokens(length), float(prob)
    except ValueError as error:
        raise TraceError(file, line, "line", text, "a whole number of tokens, a probability") from error
    if not (0 <= pair[0] <= 10**8 and 0 <= pair[1] <= 1):
        raise TraceError(file, line, "line", text, "tokens from 0 to 1e8, a probability from 0 to 1")
    return pair
