"""What a trace holds, in one streaming pass."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from workloads.columns import Columns, Ints
from workloads.trace import Trace

PERCENTILES = (50, 90, 99)


def describe(trace: Trace) -> dict[str, object]:
    """Facts of one trace: rows, span and rate, token statistics, prefix reuse, the file's sha256.

    Times in seconds, lengths in tokens; percentiles interpolate linearly, as NumPy does. `inter_arrival_cv` is standard
    deviation over mean of the gaps (None below two gaps). `prefix_hit_fraction` is the share of prompt tokens that an
    infinite prefix cache, empty at first, would hold: the tokens of each prompt's leading known blocks (None without
    hash ids). Memory grows with distinct lengths and distinct blocks only. Raises TraceError for a damaged trace.
    """
    timed = trace.has_arrivals()
    sums = _Sums()
    for chunk in trace.chunks() if timed else trace.lengths():
        sums.add(chunk)
    return {
        "name": trace.name,
        "format": trace.format,
        "rows": sums.prompt.rows,
        "dropped": dict(trace.dropped),
        **(sums.gaps.facts(sums.prompt.rows) if timed else _Gaps.nothing()),
        "prompt_tokens": sums.prompt.facts(),
        "output_tokens": sums.output.facts(),
        "total_tokens": sums.prompt.total + sums.output.total,
        "prefix_hit_fraction": sums.prefix.fraction(),
        "sha256": _sha256(trace),
        "source": trace.origin,
        "licence": trace.licence,
    }


@dataclass
class _Lengths:
    """How often each length occurs; exact percentiles in memory that grows with distinct lengths only."""

    rows: int = 0
    total: int = 0
    counts: dict[int, int] = field(default_factory=dict)

    def add(self, tokens: Ints) -> None:
        self.rows += len(tokens)
        self.total += int(tokens.sum())
        for value, count in zip(*np.unique(tokens, return_counts=True), strict=True):
            self.counts[int(value)] = self.counts.get(int(value), 0) + int(count)

    def facts(self) -> dict[str, float]:
        if not self.rows:
            return {}
        values = np.array(sorted(self.counts), np.int64)
        upto = np.cumsum([self.counts[int(v)] for v in values])
        named = {f"p{p}": self._percentile(values, upto, p) for p in PERCENTILES}
        return {"mean": self.total / self.rows, **named, "min": int(values[0]), "max": int(values[-1])}

    def _percentile(self, values: Ints, upto: Ints, percent: float) -> float:
        place = (self.rows - 1) * percent / 100
        below = math.floor(place)
        low, high = (int(values[np.searchsorted(upto, at, side="right")]) for at in (below, math.ceil(place)))
        return low + (high - low) * (place - below)


@dataclass
class _Gaps:
    """Running mean and spread of inter-arrival gaps (Chan, Golub and LeVeque 1983, chunk by chunk)."""

    count: int = 0
    mean_ns: float = 0.0
    squares: float = 0.0
    first_ns: int | None = None
    last_ns: int = 0

    def add(self, arrival_ns: Ints) -> None:
        gaps = np.diff(arrival_ns, prepend=arrival_ns[:1] if self.first_ns is None else self.last_ns).astype(np.float64)
        if self.first_ns is None:
            self.first_ns, gaps = int(arrival_ns[0]), gaps[1:]
        self.last_ns = int(arrival_ns[-1])
        if len(gaps):
            self._merge(len(gaps), float(gaps.mean()), float(((gaps - gaps.mean()) ** 2).sum()))

    def _merge(self, count: int, mean_ns: float, squares: float) -> None:
        total = self.count + count
        shift = mean_ns - self.mean_ns
        self.squares += squares + shift * shift * self.count * count / total
        self.mean_ns += shift * count / total
        self.count = total

    def facts(self, rows: int) -> dict[str, object]:
        span_s = (self.last_ns - (self.first_ns or 0)) / 1e9
        cv = math.sqrt(self.squares / self.count) / self.mean_ns if self.count > 1 and self.mean_ns else None
        return {
            "first_arrival_s": (self.first_ns or 0) / 1e9,
            "duration_s": span_s,
            "mean_rate_per_s": (rows - 1) / span_s if span_s else None,
            "inter_arrival_cv": cv,
        }

    @staticmethod
    def nothing() -> dict[str, object]:
        return dict.fromkeys(("first_arrival_s", "duration_s", "mean_rate_per_s", "inter_arrival_cv"))


@dataclass
class _Prefixes:
    """Prompt tokens found in an infinite prefix cache."""

    seen: set[int] = field(default_factory=set)
    hits: int = 0
    tokens: int = 0

    def add(self, chunk: Columns) -> None:
        if chunk.hash_ids is None or chunk.hash_block_tokens is None:
            return
        for ids, prompt in zip(chunk.hash_ids, chunk.prompt_tokens, strict=True):
            blocks = ids.tolist()
            known = next((i for i, block in enumerate(blocks) if block not in self.seen), len(blocks))
            self.hits += min(known * chunk.hash_block_tokens, int(prompt))
            self.tokens += int(prompt)
            self.seen.update(blocks[known:])

    def fraction(self) -> float | None:
        return self.hits / self.tokens if self.tokens else None


@dataclass
class _Sums:
    prompt: _Lengths = field(default_factory=_Lengths)
    output: _Lengths = field(default_factory=_Lengths)
    gaps: _Gaps = field(default_factory=_Gaps)
    prefix: _Prefixes = field(default_factory=_Prefixes)

    def add(self, chunk: Columns) -> None:
        self.prompt.add(chunk.prompt_tokens)
        self.output.add(chunk.output_tokens)
        self.gaps.add(chunk.arrival_ns)
        self.prefix.add(chunk)


def _sha256(trace: Trace) -> str:
    digest = hashlib.sha256()
    for piece in _pieces(trace):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(trace: Trace) -> Iterator[bytes]:
    with trace.path.open("rb") as handle:
        while piece := handle.read(1 << 20):
            yield piece
