"""Prometheus' text exposition format (a saved ``/metrics``), read strictly: samples, and histograms added up.

Format: prometheus.io/docs/instrumenting/exposition_formats, version 0.0.4.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workloads.errors import TraceError
from workloads.source import Source

__all__ = ["Histogram", "Sample", "histogram", "samples"]

SAMPLES_MAX = 500_000
_LINE = re.compile(
    r"([A-Za-z_:][\w:]*)(?:\{((?:[^\"}]|\"(?:[^\"\\]|\\.)*\")*)\})?\s+(\S+)(?:\s+(-?\d{1,18}))?\s*", re.ASCII
)
_LABEL = re.compile(r"\s*([A-Za-z_]\w*)\s*=\s*\"((?:[^\"\\]|\\.)*)\"\s*(?:,|$)", re.ASCII)
_ESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


@dataclass(frozen=True)
class Sample:
    """One line: a value of a metric under labels, with its time in ms since 1970 where the line has one."""

    line: int
    name: str
    labels: Mapping[str, str]
    value: float
    time_ms: int | None = None


@dataclass(frozen=True)
class Histogram:
    """Counts [n] of observations in buckets that end at ``edges`` [n] (the last is infinite), and their sum."""

    edges: NDArray[np.float64]
    counts: NDArray[np.float64]
    total: float

    @property
    def count(self) -> float:
        """Observations in all."""
        return float(self.counts.sum())

    @property
    def mean(self) -> float:
        """Mean of the observations."""
        return self.total / self.count

    def percentile(self, percent: float) -> float:
        """By a straight line within the bucket, as Prometheus' histogram_quantile; the last edge if beyond it."""
        upto = np.cumsum(self.counts)
        wanted = percent / 100 * upto[-1]
        at = int(np.searchsorted(upto, wanted, side="left"))
        if not math.isfinite(self.edges[at]):
            return float(self.edges[at - 1]) if at else math.inf
        low = float(self.edges[at - 1]) if at else 0.0
        before = float(upto[at - 1]) if at else 0.0
        inside = (wanted - before) / self.counts[at] if self.counts[at] else 0.0
        return low + (float(self.edges[at]) - low) * inside

    def less(self, earlier: Histogram) -> Histogram:
        """What came since an earlier scrape. Raises ValueError where it is not one of the same process."""
        if not np.array_equal(self.edges, earlier.edges):
            raise ValueError("its buckets are not those of the earlier scrape")
        counts, total = self.counts - earlier.counts, self.total - earlier.total
        if (counts < 0).any() or total < 0:
            raise ValueError("it counts less than the earlier scrape: the server was started anew, or they are swapped")
        return Histogram(self.edges, counts, total)


def samples(source: Source) -> list[Sample]:
    """Every sample of the file. Raises TraceError naming the line that is none."""
    found: list[Sample] = []
    for line, text in _lines(source):
        if len(found) >= SAMPLES_MAX:
            raise TraceError(source.name, line, "samples", len(found), f"at most {SAMPLES_MAX:,}")
        found.append(_sample(source.name, line, text))
    if not found:
        raise TraceError(source.name, 1, "file", "no samples", "a saved scrape: lines of NAME{LABELS} VALUE")
    return found


def _lines(source: Source) -> Iterator[tuple[int, str]]:
    for block in source.blocks():
        for offset, raw in enumerate(block.data.split(b"\n")):
            text = raw.decode().strip()
            if text and not text.startswith("#"):
                yield block.first_line + offset, text


def _sample(file: str, line: int, text: str) -> Sample:
    found = _LINE.fullmatch(text) if len(text) < 100_000 else None
    if found is None:
        raise TraceError(file, line, "line", text, 'NAME{LABEL="..."} VALUE [TIME], as a server\'s /metrics has it')
    try:
        value = float(found[3])
    except ValueError:
        raise TraceError(file, line, found[1], found[3], "a number") from None
    return Sample(line, found[1], _labels(file, line, found[2] or ""), value, int(found[4]) if found[4] else None)


def _labels(file: str, line: int, text: str) -> dict[str, str]:
    labels, at = {}, 0
    while at < len(text):
        found = _LABEL.match(text, at)
        if found is None:
            raise TraceError(file, line, "labels", text[at:], 'NAME="VALUE", ...')
        labels[found[1]] = re.sub(r'\\[\\"n]', lambda one: _ESCAPES[one[0]], found[2])
        at = found.end()
    return labels


def histogram(file: str, found: Sequence[Sample], name: str) -> Histogram | None:
    """The histogram of that name, added over whatever labels its series have; None where the scrape has none.

    Raises TraceError for buckets that do not grow, edges or counts that are no numbers.
    """
    series: dict[tuple[tuple[str, str], ...], list[tuple[float, float, Sample]]] = {}
    for one in found:
        if one.name == f"{name}_bucket":
            rest = tuple(sorted((k, v) for k, v in one.labels.items() if k != "le"))
            series.setdefault(rest, []).append((_edge(file, one), one.value, one))
    if not series:
        return None
    parts = [_counts(file, name, sorted(buckets, key=lambda b: b[0])) for buckets in series.values()]
    edges = parts[0][0]
    if any(not np.array_equal(edges, one[0]) for one in parts):
        line = next(iter(series.values()))[0][2].line
        raise TraceError(file, line, name, "buckets", "the same edges in every series of a histogram")
    total = math.fsum(one.value for one in found if one.name == f"{name}_sum")
    if not (math.isfinite(total) and total >= 0):
        raise TraceError(file, 1, f"{name}_sum", total, "a number >= 0")
    return Histogram(edges, np.sum([one[1] for one in parts], axis=0), total)


def _edge(file: str, one: Sample) -> float:
    try:
        edge = float(one.labels.get("le", ""))
    except ValueError:
        edge = math.nan
    if math.isnan(edge):
        raise TraceError(file, one.line, "le", one.labels.get("le", "missing"), "the upper edge of a bucket")
    return edge


def _counts(
    file: str, name: str, buckets: list[tuple[float, float, Sample]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    edges, upto = np.array([b[0] for b in buckets]), np.array([b[1] for b in buckets])
    line = buckets[0][2].line
    if not math.isinf(edges[-1]) or (np.diff(edges) <= 0).any():
        raise TraceError(file, line, name, "buckets", "edges that grow, the last one +Inf")
    counts = np.diff(upto, prepend=0.0)
    if not np.isfinite(upto).all() or (counts < 0).any():
        raise TraceError(file, line, name, "buckets", "cumulative counts: numbers that do not fall")
    return edges, counts
