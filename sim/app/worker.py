"""A trace run in a process of its own: says through a pipe how far it is, ends when nobody holds the other end."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from sim.run import Result, simulate
from sim.scenario import Scenario

__all__ = ["told", "work"]

EVERY = 64  # arrivals between two words
LATENCIES = ("ttft_ms", "tpot_ms")


def work(said: Mapping[str, Any], folder: str, pipe: Connection) -> None:
    """Run the scenario, save it into ``folder`` and send what the page shows.

    Words: ``("at", arrived)``, then one of ``("done", table)`` and ``("failed", line)``.
    """
    threading.Thread(target=_leave_with, args=(pipe,), daemon=True).start()
    try:
        scenario = Scenario.parse(said, "run")
        result = simulate(scenario, progress=lambda arrived: _tell(pipe, arrived))
        pipe.send(("at", len(result.recorder.requests)))
        pipe.send(("done", told(result, result.save(folder))))
    except (ValueError, OSError, MemoryError) as error:
        pipe.send(("failed", " ".join(str(error).split()) or "not enough memory"))


def _tell(pipe: Connection, arrived: int) -> None:
    if arrived % EVERY == 0:
        pipe.send(("at", arrived))


def _leave_with(pipe: Connection) -> None:
    """The page never speaks: what comes is the end of its pipe, also where it was killed."""
    try:
        pipe.recv()
    except (EOFError, OSError):
        os._exit(1)


def told(result: Result, folder: str) -> dict[str, Any]:
    """What the page shows of a run, as plain values: latencies, what it comes to, percentiles 0 to 100, warnings."""
    from analysis.verdict import verdict

    metrics, columns = result.metrics, result.request_columns
    return {
        "latency": {name: dict(row) for name, row in metrics["latency"].items()},
        "percentiles": {name: _percentiles(columns[name]) for name in LATENCIES if name in columns},
        "verdict": verdict(result),
        "warnings": [str(warning) for warning in metrics["warnings"]] + list(result.notes),
        "folder": folder,
    }


def _percentiles(values: Any) -> list[float]:
    known = np.asarray(np.ma.compressed(np.ma.masked_invalid(values)), dtype=np.float64)
    return [] if not len(known) else [float(v) for v in np.percentile(known, np.arange(101))]
