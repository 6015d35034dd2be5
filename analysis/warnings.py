"""What a reader must know before believing a run: backlog, rounding, damage, numbers nobody measured."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.frames import Columns, Run
from sim.uncertain.asked import notes_of

__all__ = ["backlog", "waiting_at", "warnings_of"]

LEAST_BACKLOG = 10
GROWTH, SHARE = 1.2, 0.02


def warnings_of(run: Run) -> list[str]:
    """One sentence each; empty where there is nothing to say."""
    return warnings_with(run, backlog(run.request_columns), _rejected(run.request_columns), _failed(run))


def warnings_with(run: Run, *said: str | None) -> list[str]:
    """The same, given what requests have to say."""
    found = [note[:1].upper() + note[1:] for note in run.notes]
    found += [line[:1].upper() + line[1:] for line in notes_of(run)]
    found += filter(None, said)
    found += filter(None, (_gaps(run), _warmup(run)))
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
    return backlog_of(backlog_sums(requests, end))


def backlog_sums(requests: Columns, end: int) -> NDArray[np.float64]:
    """Who waited halfway through the arrivals and at their ``end``, mean lines of the third and the last quarter, and
    who came in the second half; those of parts of a run add up.
    """
    arrival = requests["arrival_ns"]
    started = arrival + np.rint(np.ma.filled(requests["queue_ms"], np.inf) * 1e6)
    middle, late = waiting_at(arrival, started, end / 2), waiting_at(arrival, started, float(end))
    third, last = (_mean_waiting(arrival, started, end * q / 4, end * (q + 1) / 4) for q in (2, 3))
    return np.array([middle, late, third, last, (arrival > end / 2).sum()], dtype=float)


def backlog_of(sums: NDArray[np.float64]) -> str | None:
    """The rule, from sums."""
    middle, late, third, last, came = sums.tolist()
    if last > GROWTH * third and late - middle >= max(LEAST_BACKLOG, SHARE * came):
        return (
            f"The backlog grows: {middle:.0f} requests waited halfway through the arrivals and {late:.0f} at their end;"
            " latencies depend on how long the run is."
        )
    return None


def waiting_at(arrival: NDArray[Any], started: NDArray[Any], at_ns: float) -> int:
    """Requests that have arrived and are not admitted at an instant."""
    return int(((arrival <= at_ns) & (started > at_ns)).sum())


def _mean_waiting(arrival: NDArray[Any], started: NDArray[Any], start_ns: float, stop_ns: float) -> float:
    spans = np.minimum(started, stop_ns) - np.maximum(arrival, start_ns)
    return float(np.maximum(spans, 0.0).sum() / (stop_ns - start_ns))


def _rejected(requests: Columns) -> str | None:
    never = int((requests["reason"] == "never").sum())
    return rejected_of(never, int((requests["status"] == "rejected").sum()) - never)


def rejected_of(never: int, refused: int) -> str | None:
    """A sentence on those that no replica can ever serve, and one on those refused at the gateway."""
    said = [f"{never} requests were rejected: they can never fit into context or KV memory."] if never else []
    said += [f"{refused} requests were refused at the gateway: requests.rejected_for says why."] if refused else []
    return " ".join(said) or None


def _failed(run: Run) -> str | None:
    """Requests that went down with their replicas too often, and those that nobody was there for."""
    requests, fleet = run.request_columns, run.scenario.fleet
    failed = requests["status"] == "failed"
    if fleet is None or not failed.any():
        return None
    spent = int((failed & (requests["retries"] > fleet.retries)).sum())
    return failed_of(run, spent, int(failed.sum()) - spent)


def failed_of(run: Run, spent: int, held: int) -> str:
    """The same from counts: tried too often, and never sent."""
    fleet = run.scenario.fleet
    said = [f"{spent} requests failed after {fleet.retries} retries."] if spent else []
    said += [f"{held} requests failed: no replica that could serve them ever came."] if held else []
    return " ".join(said)


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
