"""Probes of the machine: single products, by the size of the matrix and by how many rows it meets."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from sim.calibration.timing import Stopwatch
from sim.reference.sampling import stream

Array = NDArray[np.float32]
Probe = Callable[[Stopwatch], float]

STREAM_MB = (1, 2, 4, 8, 16, 32, 64, 128)
RATES = ((64, 256, 768), (256, 512, 2048), (256, 1024, 1024))  # rows, k, n


def all_probes() -> dict[str, Probe]:
    """By name: ``stream.MB``, matrix-vector products that read all of a matrix, and ``rate.ROWS.K.N``."""
    return {
        **{f"stream.{mb}": _product(1, 1024, mb * 1_000_000 // 4096) for mb in STREAM_MB},
        **{f"rate.{m}.{k}.{n}": _product(m, k, n) for m, k, n in RATES},
    }


def measure(probes: Mapping[str, Probe], watch: Stopwatch) -> dict[str, float]:
    """Seconds by probe, one after the other."""
    return {name: probe(watch) for name, probe in probes.items()}


def _random(*size: int) -> Array:
    return stream(0, "probe", *size).standard_normal(size, dtype=np.float32)


def _product(rows: int, k: int, n: int) -> Probe:
    """``[rows, k] @ [k, n]``, the weights stored as checkpoints store them."""
    x, w = _random(rows, k), _random(n, k).T
    return lambda watch: watch.best(lambda: x @ w)
