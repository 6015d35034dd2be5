"""Where the end-to-end latency of requests went: queueing, and what the rounds that ran meanwhile were bound by.

A request that has been admitted shares every round of its replica until it ends, so its time in service is split by the
causes of those rounds: prefix sums over the replica's leaps, at admission and at the end. Queueing is the time before
admission and, after a preemption, until the request is admitted again. The parts add up to its E2EL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from analysis.frames import Columns, Run
from sim.account import leap_rows

__all__ = ["QUEUE", "TOTAL", "Step", "parts_ms", "steps"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
QUEUE, IDLE, TOTAL = "queueing", "between rounds", "mean E2EL"


@dataclass(frozen=True)
class Step:
    """One part of the mean E2EL in A and B, in ms; the last one of a waterfall is their sum."""

    cause: str
    a_ms: float
    b_ms: float

    @property
    def difference_ms(self) -> float:
        """B - A."""
        return self.b_ms - self.a_ms


class Parted(Protocol):
    """Something with parts by cause of two runs."""

    @property
    def parts(self) -> tuple[Any, Any]:
        """Of A and of B: milliseconds by cause, each of shape [requests]."""
        ...


def steps(pairs: Sequence[Parted]) -> list[Step]:
    """Mean over all paired requests of all pairs, by cause in falling order of the difference, the total last."""
    causes = dict.fromkeys(cause for pair in pairs for side in pair.parts for cause in side)
    found = [Step(cause, _mean(pairs, 0, cause), _mean(pairs, 1, cause)) for cause in causes]
    found = [step for step in found if step.cause == QUEUE or step.a_ms or step.b_ms]
    found.sort(key=lambda step: -abs(step.difference_ms))
    return [*found, Step(TOTAL, sum(s.a_ms for s in found), sum(s.b_ms for s in found))]


def _mean(pairs: Sequence[Parted], side: int, cause: str) -> float:
    return float(np.mean(np.concatenate([pair.parts[side][cause] for pair in pairs])))


def parts_ms(run: Run, rows: Ints) -> dict[str, Floats]:
    """Milliseconds by cause of the finished requests in ``rows`` of the request table, each of shape [rows]."""
    table, rounds = run.request_columns, run.round_columns
    queue_ns = np.rint(np.ma.getdata(table["queue_ms"])[rows] * 1e6)
    arrival_ns = table["arrival_ns"][rows]
    finish_ns = np.ma.getdata(table["finish_ns"])[rows]
    start_ns = arrival_ns + queue_ns.astype(np.int64)
    ledger = _Ledger.of(rounds)
    replicas = table["replica"][rows]
    parts = ledger.between(replicas, start_ns, finish_ns)
    waited_ns = queue_ns.astype(np.float64)
    for at, from_ns, to_ns in _put_back(run, table["id"][rows], rounds):
        lost = ledger.between(replicas[at], from_ns, to_ns)
        for cause, values in lost.items():
            np.subtract.at(parts[cause], at, values)
        np.add.at(waited_ns, at, to_ns - from_ns)
    service_ns = finish_ns - arrival_ns - waited_ns
    parts[IDLE] = service_ns * 1e-6 - sum(parts.values())
    parts[IDLE][np.abs(parts[IDLE]) < 1e-6] = 0.0  # a nanosecond; sums of seconds are not exact to that
    return {QUEUE: waited_ns * 1e-6, **parts}


@dataclass(frozen=True)
class _Ledger:
    """Seconds by cause that each replica has run up to the ends of its leaps; replicas one behind the other."""

    starts_ns: Ints
    first: Ints
    stop: Ints
    durations_ns: Ints
    sums: dict[str, Floats]

    @classmethod
    def of(cls, rounds: Columns) -> _Ledger:
        order = np.lexsort((rounds["start_ns"], rounds["replica"]))
        counts = np.bincount(rounds["replica"])
        stop = np.cumsum(counts)
        causes = [name for name in rounds if name.endswith("_s")]
        sums = {name[:-2]: np.concatenate(([0.0], np.cumsum(rounds[name][order]))) for name in causes}
        return cls(rounds["start_ns"][order], stop - counts, stop, rounds["duration_ns"][order], sums)

    def between(self, replicas: Ints, from_ns: Ints, to_ns: Ints) -> dict[str, Floats]:
        """Milliseconds by cause that the rounds of ``replicas`` took between two instants, each of shape [n]."""
        places = [self._place(replicas, at) for at in (from_ns, to_ns)]
        return {c: 1e3 * (self._at(s, *places[1]) - self._at(s, *places[0])) for c, s in self.sums.items()}

    def _place(self, replicas: Ints, at_ns: Ints) -> tuple[Ints, Floats]:
        """(leap, share of it that is over) at an instant, leaps counted over all replicas."""
        leap = np.zeros(len(at_ns), dtype=np.int64)
        for replica in np.unique(replicas).tolist():
            rows = replicas == replica
            first, stop = int(self.first[replica]), int(self.stop[replica])
            found = np.searchsorted(self.starts_ns[first:stop], at_ns[rows], side="right") - 1
            leap[rows] = first + np.maximum(found, 0)
        over = (at_ns - self.starts_ns[leap]) / np.maximum(self.durations_ns[leap], 1)
        return leap, np.clip(over, 0.0, 1.0)

    @staticmethod
    def _at(sums: Floats, leap: Ints, over: Floats) -> Floats:
        value: Floats = sums[leap] + over * (sums[leap + 1] - sums[leap])
        return value


def _put_back(run: Run, ids: Ints, rounds: Columns) -> list[tuple[Ints, Ints, Ints]]:
    """For requests that were preempted: (row, from, to) of every wait between losing its place and having one again.

    A request is admitted again where a chunk starts at nothing cached; it lost its place after its last round before.
    """
    table = run.request_columns
    hit = np.isin(ids, table["id"][table["preemptions"] > 0])
    if not hit.any():
        return []
    who, last, begins = _activity(run, ids[hit])
    again = np.flatnonzero(begins[1:] & (who[1:] == who[:-1])) + 1
    ends_ns = rounds["start_ns"] + rounds["duration_ns"]
    from_ns, to_ns = ends_ns[last[again - 1]], rounds["start_ns"][last[again]]
    order = np.argsort(ids)
    return [(order[np.searchsorted(ids, who[again], sorter=order)], from_ns, np.maximum(from_ns, to_ns))]


def _activity(run: Run, ids: Ints) -> tuple[Ints, Ints, NDArray[np.bool_]]:
    """Chunks and stays of these requests in order of time: request, row of the last leap, whether it begins anew."""
    leaps, chunks, stays = (t.frame() for t in (run.recorder.leaps, run.recorder.chunks, run.recorder.stays))
    chunk, stay = np.isin(chunks["request"], ids), np.isin(stays["request"], ids)
    who = np.concatenate((chunks["request"][chunk], stays["request"][stay]))
    ended = stays["last_leap"][stay]
    last = np.concatenate((
        leap_rows(leaps, {n: chunks[n][chunk] for n in ("replica", "leap")}),
        leap_rows(leaps, {"replica": stays["replica"][stay], "leap": np.maximum(ended - 1, 0)}),
    ))  # fmt: skip
    begins = np.concatenate((chunks["cached"][chunk] == 0, np.zeros(len(ended), dtype=bool)))
    order = np.lexsort((~begins, leaps["start_ns"][last], who))
    return who[order], last[order], begins[order]
