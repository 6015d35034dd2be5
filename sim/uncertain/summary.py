"""From samples to what is reported: the 10th, 50th and 90th percentile of every metric, an 80 % interval."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np

__all__ = ["LEVELS", "MOST_SAMPLES", "NAMES", "flat", "interval", "intervals", "samples_checked"]

LEVELS = (0.1, 0.5, 0.9)
NAMES = ("p10", "p50", "p90")
FEWEST_SAMPLES, MOST_SAMPLES = 5, 10_000
SECTIONS = ("latency", "queue_ms", "throughput", "goodput", "energy", "cost", "duration_s")
DEPTH = {"latency": 3, "energy": 2, "cost": 2}  # parts of a name: finer splits of joules and dollars are left out
NO_SPREAD = ("std", "max")


def samples_checked(samples: int) -> int:
    """``samples``. Raises ValueError, one line, for so few that they have no 10th percentile, or absurdly many."""
    if not FEWEST_SAMPLES <= samples <= MOST_SAMPLES:
        raise ValueError(f"--uncertainty: {samples}: allowed: {FEWEST_SAMPLES} to {MOST_SAMPLES} samples")
    return samples


def interval(values: Sequence[float]) -> dict[str, float] | None:
    """The percentiles of one metric by name; None where it has no value in some sample."""
    if not values or not all(map(isfinite, values)):
        return None
    return dict(zip(NAMES, (float(v) for v in np.quantile(np.array(values), LEVELS)), strict=True))


def intervals(tables: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """The percentiles of every metric that all ``tables`` have, in the order of the first."""
    names = [name for name in (tables[0] if tables else ()) if all(name in table for table in tables)]
    found = {name: interval([table[name] for table in tables]) for name in names}
    return {name: one for name, one in found.items() if one is not None}


def flat(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a summary that hardware has a say in, by dotted name: ``latency.tpot_ms.mean``."""
    found = ((name.split("."), value) for section in SECTIONS for name, value in _leaves(section, metrics.get(section)))
    return {".".join(parts): value for parts, value in found
            if len(parts) <= DEPTH.get(parts[0], 2) and parts[-1] not in NO_SPREAD}  # fmt: skip


def _leaves(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(f"{name}.{key}", inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)
