"""Who may come in: rates and outstanding requests of tenants, the length of the gateway's line, time in it.

A rate is kept by the generic cell rate algorithm (ITU-T I.371, annex A), which is a token bucket of ``burst`` requests
filled ``rate_per_s`` times a second, in whole nanoseconds: exact, and one number a tenant.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field

from sim.request import Request, Sequence

__all__ = ["REASONS", "Admission", "Books", "Line", "TenantLimits"]

REASONS = ("never", "rate", "full", "queue")
NEVER, RATE, FULL, QUEUE = range(4)


@dataclass(frozen=True)
class TenantLimits:
    """What one tenant may do; None: as much as it likes. ``burst``: requests that may come at once at a rate."""

    rate_per_s: float | None = None
    burst: int = 1
    max_outstanding: int | None = None


@dataclass(frozen=True)
class Admission:
    """Limits of all and of each. None: no limit.

    ``max_outstanding``: requests on all replicas together. ``max_held``: in the line. ``queue_ns``: how long somebody
    stands in it. ``fair``: next is the tenant that has the fewest requests on replicas. ``each``: limits of a tenant
    that is not among ``tenants``, by number.
    """

    max_outstanding: int | None = None
    max_held: int | None = None
    queue_ns: int | None = None
    fair: bool = False
    each: TenantLimits = TenantLimits()
    tenants: Mapping[int, TenantLimits] = field(default_factory=dict)

    def of(self, tenant: int) -> TenantLimits:
        """Limits of one tenant."""
        return self.tenants.get(tenant, self.each)

    @property
    def by_tenant(self) -> bool:
        """Whether tenants wait in lanes of their own."""
        return self.fair or any(limits.max_outstanding is not None for limits in (self.each, *self.tenants.values()))

    @property
    def waits_for_ends(self) -> bool:
        """Whether the end of a request may let another one in."""
        return self.max_outstanding is not None or self.by_tenant


class Books:
    """What the gateway counts: requests on replicas, by tenant, and when each tenant may send again."""

    def __init__(self, said: Admission) -> None:
        self.said, self.total = said, 0
        self.by_tenant: dict[int, int] = {}
        self.inside: set[int] = set()
        self._next_ns: dict[int, int] = {}

    def within_rate(self, request: Request, now_ns: int) -> bool:
        """Whether its tenant may send one more now; if so, it is counted."""
        limits = self.said.of(request.tenant)
        if limits.rate_per_s is None:
            return True
        gap_ns = max(1, round(1e9 / limits.rate_per_s))
        next_ns = self._next_ns.get(request.tenant, 0)
        if next_ns - now_ns > (limits.burst - 1) * gap_ns:
            return False
        self._next_ns[request.tenant] = max(next_ns, now_ns) + gap_ns
        return True

    def full(self) -> bool:
        """Whether nobody at all may be sent."""
        return self.said.max_outstanding is not None and self.total >= self.said.max_outstanding

    def tenant_full(self, tenant: int) -> bool:
        """Whether nobody of one tenant may be sent."""
        most = self.said.of(tenant).max_outstanding
        return most is not None and self.by_tenant.get(tenant, 0) >= most

    def enter(self, request: Request) -> None:
        """One more on a replica."""
        self.inside.add(request.id)
        self.total += 1
        self.by_tenant[request.tenant] = self.by_tenant.get(request.tenant, 0) + 1

    def leave(self, request: Request) -> None:
        """It has ended, or its replica has gone; nothing for one that never came in."""
        if request.id in self.inside:
            self.inside.remove(request.id)
            self.total -= 1
            self.by_tenant[request.tenant] -= 1


Place = tuple[int, int]


class Line:
    """Requests held at the gateway: the highest priority first, then the lowest number; in lanes, one a tenant or one
    for all.
    """

    def __init__(self, by_tenant: bool = False, fair: bool = False) -> None:
        self.by_tenant, self.fair = by_tenant, fair
        self._lanes: dict[int, list[tuple[Place, Sequence]]] = {}
        self._held: dict[int, Sequence] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, number: int) -> bool:
        return number in self._held

    def __iter__(self):  # type: ignore[no-untyped-def]
        """By number."""
        return iter(sorted(self._held.values(), key=lambda s: s.request.id))

    def push(self, sequence: Sequence) -> None:
        """Somebody joins."""
        request = sequence.request
        self._held[request.id] = sequence
        lane = self._lanes.setdefault(self.lane(request), [])
        heapq.heappush(lane, ((-request.priority, request.id), sequence))

    def lane(self, request: Request) -> int:
        """Where it waits."""
        return request.tenant if self.by_tenant else 0

    def take(self, number: int) -> Sequence:
        """Somebody leaves, from wherever it stands."""
        return self._held.pop(number)

    def first(self, passed: set[int], running: Mapping[int, int]) -> Sequence | None:
        """Who is next, lanes ``passed`` left out; ``running``: requests on replicas by tenant, for fairness."""
        best: tuple[tuple[int, Place], Sequence] | None = None
        for lane in list(self._lanes):
            head = None if lane in passed else self._head(lane)
            if head is not None:
                key = (running.get(lane, 0) if self.fair else 0, head[0])
                if best is None or key < best[0]:
                    best = key, head[1]
        return None if best is None else best[1]

    def _head(self, lane: int) -> tuple[Place, Sequence] | None:
        """Whoever has left is dropped when it comes to the front."""
        heap = self._lanes[lane]
        while heap and self._held.get(heap[0][1].request.id) is not heap[0][1]:
            heapq.heappop(heap)
        if not heap:
            del self._lanes[lane]
            return None
        return heap[0]
