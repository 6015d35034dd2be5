"""Autoscaling as Kubernetes' HorizontalPodAutoscaler does it: look now and then, want ceil(load / target) replicas.

Source: https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/ (algorithm details):
``desired = ceil(current * value / target)``, nothing within a tolerance of 10 %, and scaling down only to the most that
was wanted within a stabilisation window (300 s by default). Here ``current * value`` is the load as such: replicas that
are still starting carry none of it and count as there, so that nothing is started twice.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sim.request import Request
from sim.routers import ReplicaState
from sim.serving.fleet import Slot
from sim.serving.outages import Moves
from sim.serving.record import FINISHED
from sim.serving.sight import Place

__all__ = ["Metric", "Scaling"]

Metric = Literal["outstanding", "waiting", "kv", "ttft_ms"]


@dataclass(frozen=True)
class Scaling:
    """Between ``least`` and ``most`` replicas of a group, looked at every ``every_ns``.

    ``target`` is a replica's share of the load: requests ``outstanding`` or ``waiting``, those held at the gateway
    included; the filled share of KV memory (``kv``); or what the percentile of TTFT in milliseconds over the requests
    that ended within ``window_ns`` is to be. ``down_after_ns``: the stabilisation window.
    """

    place: int
    least: int
    most: int
    metric: Metric
    target: float
    every_ns: int
    start_ns: int = 0
    down_after_ns: int = 0
    tolerance: float = 0.1
    window_ns: int = 60_000_000_000
    percentile: float = 99.0

    def begin(self, moves: Moves) -> None:
        """Look from one period on."""
        _Scaler(self, moves)


class _Scaler:
    """One group's autoscaler: what it wanted lately and, for TTFT, what it has seen."""

    def __init__(self, said: Scaling, moves: Moves) -> None:
        self.said, self.moves, self.cluster = said, moves, moves.cluster
        self.wanted: deque[tuple[int, int]] = deque([(self.cluster.env.now, len(self._there()))])
        self.seen: deque[tuple[int, int]] = deque()
        self.mine: set[int] = set()
        moves.may_return.append(lambda slot: slot.place != said.place or len(self._there()) < said.most)
        if said.metric == "ttft_ms":
            self.cluster.on_end.append(self._ended)
            self.cluster.on_change.append(self._changed)
            for slot in self.cluster.slots:
                self._changed(slot)
        moves.after(said.every_ns, self._tick)

    def _tick(self) -> None:
        self._scale()
        self.moves.after(self.said.every_ns, self._tick)

    def _scale(self) -> None:
        now, there = self.cluster.env.now, len(self._there())
        want = min(max(self._desired(there), self.said.least), self.said.most)
        while self.wanted and self.wanted[0][0] < now - self.said.down_after_ns:
            self.wanted.popleft()
        self.wanted.append((now, want))
        for _ in range(want - there):
            self.cluster.start(self._empty(), self.said.start_ns)
        for _ in range(there - max(count for _, count in self.wanted)):
            self.cluster.drain(self._last())

    def _desired(self, there: int) -> int:
        """How many the load asks for; as many as there are where nobody can tell, or within the tolerance."""
        load = self._load()
        if load is None or (there and abs(load / (self.said.target * there) - 1.0) <= self.said.tolerance):
            return there
        return math.ceil(load / self.said.target)

    # --- slots -------------------------------------------------------------------------------------------------------

    def _there(self) -> list[Slot]:
        """Slots that are up or will be; those of outages are not."""
        return [s for s in self.cluster.slots if s.place == self.said.place and s.phase in ("starting", "up")]

    def _up(self) -> list[Place]:
        return [place for place in self.cluster.gateway.up if place.facts.place == self.said.place]

    def _empty(self) -> Slot:
        """The first slot to be filled; a new one where all are taken."""
        mine = (s for s in self.cluster.slots if s.place == self.said.place and s.phase == "down")
        found = next((slot for slot in mine if slot.number not in self.moves.out), None)
        return self.cluster.add_slot(self.said.place) if found is None else found

    def _last(self) -> Slot:
        """Who goes: those that are still starting first, then the highest number."""
        return max(self._there(), key=lambda slot: (slot.phase == "starting", slot.number))

    # --- load --------------------------------------------------------------------------------------------------------

    def _load(self) -> float | None:
        """What all replicas together have of the metric."""
        loads: dict[str, Callable[[], float | None]] = {
            "outstanding": self._outstanding, "waiting": self._waiting, "kv": self._kv, "ttft_ms": self._ttft_ms,
        }  # fmt: skip
        return loads[self.said.metric]()

    def _outstanding(self) -> float:
        return sum(place.outstanding() for place in self._up()) + len(self.cluster.gateway.line)

    def _waiting(self) -> float:
        return sum(state.waiting for state in self._states()) + len(self.cluster.gateway.line)

    def _kv(self) -> float:
        return sum(state.kv_bytes / state.kv_capacity_bytes for state in self._states())

    def _states(self) -> list[ReplicaState]:
        return [place.replica.state_at(self.cluster.env.now) for place in self._up()]

    def _ttft_ms(self) -> float | None:
        """The percentile, by nearest rank, times as many as there are; unknown while some start, or nobody ended."""
        self._outstanding()  # ends up to now are booked
        up, now = len(self._up()), self.cluster.env.now
        self.seen = deque(pair for pair in self.seen if pair[0] > now - self.said.window_ns)
        if not self.seen or up < len(self._there()):
            return None
        times_ns = sorted(ttft_ns for _, ttft_ns in self.seen)
        rank = max(1, math.ceil(self.said.percentile / 100 * len(times_ns)))
        return times_ns[rank - 1] * 1e-6 * up

    def _changed(self, slot: Slot) -> None:
        if slot.place == self.said.place and slot.replica is not None:
            self.mine.add(slot.replica.index)

    def _ended(self, _: Request) -> None:
        row = dict(zip(self.cluster.recorder.requests.columns, self.cluster.recorder.requests.last(), strict=True))
        if row["status"] == FINISHED and row["replica"] in self.mine:
            self.seen.append((row["finish_ns"], row["first_token_ns"] - row["arrival_ns"]))
