"""What a scenario's traffic asks of one replica, in means: requests per second, tokens in and out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from sim.scenario import Scenario
from workloads import Columns, lengths, workload

__all__ = ["Load", "load_of"]

LOOKED_AT = 20_000  # requests


@dataclass(frozen=True)
class Load:
    """Of one replica. ``rate_per_s`` is None for a closed loop, where ``users`` keep one request each under way.

    ``prompt`` and ``output``: mean tokens of a request, all samples of its output; ``context``: cached on average while
    a request decodes, prompt + half of a sample's output.
    """

    rate_per_s: float | None
    users: float | None
    prompt: float
    output: float
    context: int


def load_of(scenario: Scenario) -> Load:
    """From the first ``LOOKED_AT`` requests of the workload. Raises ValueError where none arrives."""
    spec = {k: v for k, v in scenario.workload.items() if v is not None}
    dropped: Counter[str] = Counter()
    closed = "concurrency" in spec
    read = lengths if closed else workload
    rows = _first(read(spec, scenario.seed, dropped=dropped))
    if not len(rows):
        raise ValueError("workload: no request arrives, so there is no load to tune for")
    arrival_ns, prompt, output, samples = rows.T
    span_s = float(arrival_ns[-1] - arrival_ns[0]) * 1e-9
    rate = (len(rows) - 1) / span_s if span_s > 0 else inf
    return Load(
        None if closed else rate / scenario.replicas,
        float(spec["concurrency"]) / scenario.replicas if closed else None,
        float(prompt.mean()),
        float((output * samples).mean()),
        max(1, round(float(prompt.mean() + output.mean() / 2))),
    )


def _first(chunks: Iterable[Columns]) -> NDArray[np.int64]:
    """(arrival_ns, prompt, output, samples) of the first requests; shape [requests, 4]."""
    found, seen = [np.zeros((0, 4), dtype=np.int64)], 0
    for chunk in chunks:
        samples = np.ones(len(chunk), dtype=np.int64) if chunk.samples is None else chunk.samples
        found.append(np.stack([chunk.arrival_ns, chunk.prompt_tokens, chunk.output_tokens, samples], axis=1))
        seen += len(chunk)
        if seen >= LOOKED_AT:
            break
    return np.concatenate(found)[:LOOKED_AT]
