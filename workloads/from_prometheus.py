"""What a saved scrape of a vLLM server says of its traffic: rates, lengths, latencies, model, cache.

Metric names: docs.vllm.ai, "Production Metrics" (V0 and V1). Counters count since the server started, or since an
earlier scrape where one is given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from workloads.errors import TraceError, Word, brief, hint
from workloads.exposition import Histogram, Sample, histogram, samples
from workloads.source import Source

__all__ = ["Scrape", "length_law", "read_scrape"]

LENGTHS = {"prompt": "vllm:request_prompt_tokens", "output": "vllm:request_generation_tokens"}
LATENCIES = {
    "ttft": ("vllm:time_to_first_token_seconds",),
    "tpot": ("vllm:request_time_per_output_token_seconds", "vllm:time_per_output_token_seconds",
             "vllm:inter_token_latency_seconds"),
    "e2el": ("vllm:e2e_request_latency_seconds",),
}  # fmt: skip
GAUGES = ("running", "waiting")
STARTED = "process_start_time_seconds"
CACHE = "vllm:cache_config_info"
POINTS = 16
"""Lengths that stand for a bucket."""


@dataclass(frozen=True)
class Scrape:
    """A server's traffic. ``lengths``: histograms in tokens, ``latency_s``: in seconds, ``cache``: vLLM's cache config
    as words, ``gauges``: requests running and waiting at the instant of the scrape.
    """

    model_name: str
    span_s: float
    lengths: Mapping[str, Histogram]
    latency_s: Mapping[str, Histogram] = field(default_factory=dict)
    gauges: Mapping[str, float] = field(default_factory=dict)
    cache: Mapping[str, str] = field(default_factory=dict)

    @property
    def requests(self) -> float:
        """Requests whose lengths are known: those that were answered."""
        return self.lengths["prompt"].count

    @property
    def rate(self) -> float:
        """Requests answered per second."""
        return self.requests / self.span_s


def read_scrape(
    source: Source, since: Source | None = None, seconds: float | None = None, served: str | None = None
) -> Scrape:
    """One server's scrape, or what came between two. ``seconds``: how long was counted, where the files do not say.

    Raises TraceError or ValueError, one line.
    """
    found = samples(source)
    model = _model(source.name, found, served)
    mine = [one for one in found if one.labels.get("model_name", model) == model]
    last = _Counted.of(source.name, mine)
    if since is not None:
        before = samples(since)
        earlier = _Counted.of(since.name, [o for o in before if o.labels.get("model_name", model) == model])
        last = last.less(earlier, source.name)
    if min(one.count for one in last.lengths.values()) < 1:
        raise TraceError(source.name, 1, LENGTHS["prompt"], 0, "at least one request that was answered")
    span_s = _span(source.name, last) if seconds is None else seconds
    counts = {name: [o.value for o in mine if o.name == f"vllm:num_requests_{name}"] for name in GAUGES}
    gauges = {name: math.fsum(values) for name, values in counts.items() if values}
    cache: dict[str, str] = next((dict(one.labels) for one in mine if one.name == CACHE), {})
    return Scrape(model, span_s, last.lengths, last.latency_s, gauges, cache)


def _model(file: str, found: Sequence[Sample], served: str | None) -> str:
    names = sorted({one.labels["model_name"] for one in found if "model_name" in one.labels})
    if not any(one.name.startswith("vllm:") for one in found):
        raise TraceError(file, 1, "file", Word("no vllm: metrics"), "what a vLLM server says at /metrics")
    if served is not None:
        if served not in names:
            raise ValueError(f"--served: {brief(served)}: {file} does not count it; {hint(served, names)}")
        return served
    if len(names) > 1:
        raise ValueError(f"{file}: counts more than one model; say which with --served NAME: {', '.join(names)}"[:400])
    return names[0] if names else ""


@dataclass(frozen=True)
class _Counted:
    """Histograms of a scrape, when it was taken and when its counting began (seconds since 1970, None: unsaid)."""

    lengths: Mapping[str, Histogram]
    latency_s: Mapping[str, Histogram]
    taken_s: float | None
    began_s: float | None

    @classmethod
    def of(cls, file: str, found: Sequence[Sample]) -> _Counted:
        lengths = {side: histogram(file, found, name) for side, name in LENGTHS.items()}
        for side, one in lengths.items():
            if one is None:
                raise TraceError(file, 1, f"{LENGTHS[side]}_bucket", Word("missing"), "a histogram, as vLLM has it")
        latency = {name: next((h for metric in metrics if (h := histogram(file, found, metric)) is not None), None)
                   for name, metrics in LATENCIES.items()}  # fmt: skip
        stamps = [one.time_ms for one in found if one.time_ms is not None]
        started = [one.value for one in found if one.name == STARTED]
        return cls(
            {side: one for side, one in lengths.items() if one is not None},
            {name: one for name, one in latency.items() if one is not None and one.count > 0},
            max(stamps) / 1e3 if stamps else None,
            max(started) if started and math.isfinite(max(started)) else None,
        )

    def less(self, earlier: _Counted, file: str) -> _Counted:
        """What came since. Raises ValueError, one line."""
        try:
            lengths = {side: one.less(earlier.lengths[side]) for side, one in self.lengths.items()}
            latency = {n: one.less(earlier.latency_s[n]) for n, one in self.latency_s.items() if n in earlier.latency_s}
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        kept = {name: one for name, one in latency.items() if one.count > 0}
        return replace(self, lengths=lengths, latency_s=kept, began_s=earlier.taken_s)


def _span(file: str, counted: _Counted) -> float:
    if counted.taken_s is None or counted.began_s is None:
        raise ValueError(f"{file}: does not say how long it counted; say it with --seconds N")
    span_s = counted.taken_s - counted.began_s
    if not 0 < span_s < 3.2e8:
        raise ValueError(f"{file}: would have counted for {span_s:.3g} s, by its times; say it with --seconds N")
    return span_s


# -- lengths


def length_law(counted: Histogram) -> list[tuple[int, float]]:
    """(tokens, probability) of a histogram of lengths whose mean is the histogram's, to a rounding of tokens.

    Each bucket is spread over at most 16 lengths by exp(k x) on its width, the same k for all, which the mean settles;
    what lies beyond the last edge, up to twice that edge. Raises ValueError where no lengths could have that mean.
    """
    edges = np.append(np.minimum(counted.edges[:-1], 1e8), 2 * counted.edges[-2] if len(counted.edges) > 1 else 2.0)
    lows, mass = np.append(0.0, edges[:-1]), counted.counts / counted.count
    if (edges < 1).any() or (lows < 0).any():
        raise ValueError("buckets of lengths must end at 1 token or more")
    least, most = float(mass @ np.minimum(lows + 1, edges)), float(mass @ edges)
    if not least * 0.999 <= counted.mean <= most * 1.5 + 1:
        raise ValueError(
            f"a mean of {counted.mean:.4g} tokens does not fit buckets that allow {least:.4g} to {most:.4g}"
        )
    low, high = -60.0, 60.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _mean(_spread(lows, edges, mass, middle)) < counted.mean else (low, middle)
    law = _spread(lows, edges, mass, (low + high) / 2)
    return [(tokens, law[tokens]) for tokens in sorted(law) if law[tokens] > 0]


def _spread(lows: np.ndarray, edges: np.ndarray, mass: np.ndarray, tilt: float) -> dict[int, float]:
    law: dict[int, float] = {}
    for low, edge, share in zip(lows.tolist(), edges.tolist(), mass.tolist(), strict=True):
        if share == 0:
            continue
        first, last = math.floor(low) + 1, math.floor(edge)
        at = np.unique(np.rint(np.linspace(first, max(first, last), POINTS)))
        place = (at - at[0]) / max(at[-1] - at[0], 1)
        weights = np.exp(tilt * place - max(tilt, 0.0))
        for tokens, weight in zip(at.tolist(), (share * weights / weights.sum()).tolist(), strict=True):
            law[int(tokens)] = law.get(int(tokens), 0.0) + weight
    return law


def _mean(law: Mapping[int, float]) -> float:
    return math.fsum(tokens * share for tokens, share in law.items())
