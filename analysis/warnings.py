"""What a reader must know before believing a run: backlog, rounding, damage, numbers nobody measured."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.frames import Columns, Run

__all__ = ["backlog", "waiting_at", "warnings_of"]

LEAST_BACKLOG = 10
GROWTH, SHARE = 1.2, 0.02


def warnings_of(run: Run) -> list[str]:
    """One sentence each; empty where there is nothing to say."""
    found = [note[:1].upper() + note[1:] for note in run.notes]
    found += filter(None, (backlog(run.request_columns), _rejected(run.request_columns), _gaps(run), _warmup(run)))
    dropped = sum(run.dropped.values())
    if dropped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(run.dropped.items()))
        found.append(f"{dropped} rows of the trace were dropped: {reasons}.")
    return found + _profile(run)


def backlog(requests: Columns) -> str | None:
    """The rule: over the second half of the time in which requests arrive, did the line of unadmitted ones grow?

    It did if its mean length in the last quarter exceeds that of the third by a fifth, and if it is longer at the end
    than in the middle by at least 10 requests and 2 % of the arrivals between. Without a span of arrivals (an offline
    job) there is nothing to compare.
    """
    arrival = requests["arrival_ns"]
    end = int(arrival.max(initial=0))
    if end <= int(arrival.min(initial=0)):
        return None
    started = arrival + np.rint(np.ma.filled(requests["queue_ms"], np.inf) * 1e6)
    middle, late = waiting_at(arrival, started, end / 2), waiting_at(arrival, started, float(end))
    third, last = (_mean_waiting(arrival, started, end * q / 4, end * (q + 1) / 4) for q in (2, 3))
    came = int((arrival > end / 2).sum())
    if last > GROWTH * third and late - middle >= max(LEAST_BACKLOG, SHARE * came):
        return (
            f"The backlog grows: {middle} requests waited halfway through the arrivals and {late} at their end; "
            "latencies depend on how long the run is."
        )
    return None


def waiting_at(arrival: NDArray[Any], started: NDArray[Any], at_ns: float) -> int:
    """Requests that have arrived and are not admitted at an instant."""
    return int(((arrival <= at_ns) & (started > at_ns)).sum())


def _mean_waiting(arrival: NDArray[Any], started: NDArray[Any], start_ns: float, stop_ns: float) -> float:
    spans = np.minimum(started, stop_ns) - np.maximum(arrival, start_ns)
    return float(np.maximum(spans, 0.0).sum() / (stop_ns - start_ns))


def _rejected(requests: Columns) -> str | None:
    count = int((requests["status"] == "rejected").sum())
    return f"{count} requests were rejected: they can never fit into context or KV memory." if count else None


def _gaps(run: Run) -> str | None:
    quantum = run.recorder.gaps.quantum_ns
    return f"Inter-token latencies are rounded to {quantum} ns: there were too many of them." if quantum > 1 else None


def _warmup(run: Run) -> str | None:
    warmup_s = run.scenario.warmup_s
    if not warmup_s:
        return None
    return f"The first {warmup_s:g} s are left out of latency and throughput, but not of ITL, which is pooled."


def _profile(run: Run) -> list[str]:
    device = run.built.device
    found = []
    if device.kernels is not None:
        if not device.kernels.source.endswith("measured"):
            found.append(f"{device.kernels.source}: its kernels were not measured.")
    elif device.matmul and next(iter(device.matmul.values())).provenance.startswith("textbook"):
        found.append(f"{device.name} is a textbook roofline: nothing in its times is fitted to a measurement.")
    if not run.built.engine.measured:
        found.append(f"engine {run.built.engine.name}: nothing in its profile is measured; see its notes.")
    if run.built.setup.power is not None and device.clock is not None and device.clock.provenance.startswith("class"):
        found.append(f"{device.name}: its clock under load was not measured: {device.clock.provenance}.")
    if device.energy is None:
        found.append(f"{device.name}: power is unknown, so there are no joules.")
    if device.unverified:
        found.append(f"{device.name}: {len(device.unverified)} of its numbers are unverified (see its profile).")
    return found
