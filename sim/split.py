"""One run over several workers, where routing allows: a router that never looks at replicas sends requests to queues
that know nothing of each other, so that each worker runs some of the replicas and reads the same traffic.

The tables come back in one order whatever the workers: leaps, chunks, stays and cache hits by replica, in the order in
which that replica had them, and requests by number. A run on one worker is the same to the bit as one on many, and the
same as an undivided one but for the order of rows, and so for the last bits of what is summed over them.
"""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Ordered
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.build import Built, build_scenario
from sim.executors import Crew
from sim.guard import peak_memory_bytes
from sim.request import Request, Sequence
from sim.run import Result, Traffic, clustered, uncollected
from sim.scenario import Scenario
from sim.serving.cluster import Cluster
from sim.serving.record import Gaps, Recorder
from sim.serving.sight import Sight

__all__ = ["check_split", "simulate_split"]

BY_REPLICA = ("leaps", "chunks", "stays", "hits", "levels")


@dataclass(frozen=True)
class Share:
    """Every ``of``-th replica, from number ``first`` on, of a scenario (as plain values, so that it travels)."""

    scenario: dict[str, Any]
    first: int
    of: int

    def __str__(self) -> str:
        """For the line that says whose worker died."""
        return f"replicas {self.first}, {self.first + self.of}, ..."


@dataclass(frozen=True)
class Part:
    """What became of a share: tables by name, gaps, and what a :class:`Result` says of its run."""

    tables: dict[str, NDArray[np.int64]]
    gaps: Gaps
    leaps_of: list[int]
    events: int
    cpu_s: float
    peak_memory_bytes: int
    notes: list[str]
    dropped: Counter[str] = field(default_factory=Counter)


class Blind(Sight):
    """A view that does not show replicas at work."""

    def outstanding(self, i: int) -> int:
        """Raise ValueError."""
        raise _looks()

    def state(self, i: int) -> Any:
        """Raise ValueError."""
        raise _looks()

    def cached_prefix(self, i: int) -> int:
        """Raise ValueError."""
        raise _looks()


def _looks() -> ValueError:
    return ValueError(
        "--executor: this router looks at what replicas do, so that their traffic cannot be divided; "
        "allowed: round_robin, random, weighted, session_sticky where every request has a session"
    )


def check_split(built: Built) -> None:
    """Raise ValueError, one line, where replicas depend on each other whatever the router."""
    ties = {
        "pools": built.prefill is not None,
        "admission": built.admission is not None,
        "router: stale_s": bool(built.stale_ns),
        f"router: {built.router.name}": built.router.pulls,  # type: ignore[attr-defined]
        "workload.concurrency": "concurrency" in built.scenario.workload,
        "workload.sessions": "sessions" in built.scenario.workload,
        "fleet: faults, spot, restarts and autoscale": bool(built.events.all),
    }
    for key, tied in ties.items():
        if tied:
            raise ValueError(f"--executor: {key}: makes replicas depend on each other; leave out one of the two")


def simulate_split(scenario: Scenario | Built, crew: Crew) -> Result:
    """Run to the end on all workers of a crew.

    Raises ValueError for a scenario that makes no sense, brings no request, or whose replicas depend on each other.
    """
    built = scenario if isinstance(scenario, Built) else build_scenario(scenario)
    check_split(built)
    count = sum(count for _, count in built.pools)
    ways, began_s = min(crew.workers, count), time.perf_counter()
    shares = [Share(built.scenario.model_dump(), first, ways) for first in range(ways)]
    parts = dict(crew.results(_run_share, shares))
    return _joined(built, [parts[number] for number in range(ways)], time.perf_counter() - began_s)


def _run_share(share: Share) -> Part:
    """Build, read all traffic, run what goes to the replicas of this share."""
    begun_s = time.process_time()
    built = build_scenario(Scenario.parse(share.scenario))
    traffic = Traffic(built.scenario, any(one.setup.prefix is not None for one, _ in built.pools))
    cluster = clustered(built, iter(()), None)
    cluster.trace = _mine(share, cluster, traffic.arrivals())
    with uncollected():
        recorder = cluster.run()
    tables = {name: getattr(recorder, name).array() for name in (*BY_REPLICA, "requests", "lives")}
    cpu_s = time.process_time() - begun_s
    return Part(
        tables, recorder.gaps, recorder.leaps_of, cluster.events, cpu_s, peak_memory_bytes(), traffic.notes,
        traffic.dropped,
    )  # fmt: skip


def _mine(share: Share, cluster: Cluster, arrivals: Any) -> Iterator[Request]:
    """The requests that the router sends to a share of the replicas, in the order of the traffic."""
    gateway = cluster.gateway
    blind = Blind(gateway.sight.luck)
    for request in arrivals:
        places = gateway.places(request)
        picked = gateway.router.pick(request, blind.of(Sequence.of(request), places))
        assert picked is not None, "a router that does not pull sends everybody"
        if places[picked].replica.index % share.of == share.first:
            yield request


def _joined(built: Built, parts: Ordered[Part], wall_s: float) -> Result:
    """The parts as one run."""
    first = parts[0]
    recorder = Recorder(_channels(first), 0)
    for name in BY_REPLICA:
        rows = np.concatenate([part.tables[name] for part in parts])
        _fill(recorder, name, rows[np.argsort(rows[:, 0], kind="stable")])
    requested = np.concatenate([part.tables["requests"] for part in parts])
    _fill(recorder, "requests", requested[np.argsort(requested[:, 0], kind="stable")])
    _fill(recorder, "lives", _lives([part.tables["lives"] for part in parts]))
    recorder.leaps_of = np.sum([part.leaps_of for part in parts], axis=0).tolist()
    recorder.gaps = Gaps.joined([part.gaps for part in parts])
    if not len(recorder.requests):
        raise ValueError("workload: no request arrives")
    return Result(
        built, recorder, sum(part.events for part in parts), sum(part.cpu_s for part in parts), wall_s,
        max(part.peak_memory_bytes for part in parts), not first.notes, first.notes, first.dropped,
    )  # fmt: skip


def _channels(part: Part) -> int:
    return len(part.tables["leaps"].T) - len(Recorder(0, 0).leaps.columns)


def _fill(recorder: Recorder, name: str, rows: NDArray[np.int64]) -> None:
    getattr(recorder, name).append(array("q", np.ascontiguousarray(rows).tobytes()))


def _lives(tables: Iterable[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Lives of all replicas, which end when the last of them does."""
    found = list(tables)
    lives = found[0].copy()
    lives[:, 4] = np.maximum.reduce([table[:, 4] for table in found])
    return lives
