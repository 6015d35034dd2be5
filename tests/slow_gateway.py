"""The gateway of the stepper: one plain list of who is held, everything counted again whenever it is asked for.

Of the engine it uses the luck, and the facts of a group; polls, limits, order and refusals are counted here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sim.request import Request
from sim.routers import GroupFacts, ReplicaState
from sim.serving.luck import GOLDEN, mix

REJECTED = 1
Seen = tuple[int, ReplicaState]


def see(replica: Any) -> Seen:
    """Outstanding requests and state of a replica, counted."""
    state = replica.state()
    return state.waiting + len(replica.admitted), state


@dataclass
class SlowView:
    """What is shown to a router: some replicas, and what was seen of them."""

    request: Request
    replicas: list[Any]
    seen: list[Seen]
    known: list[GroupFacts]
    luck: Any

    @property
    def count(self) -> int:
        return len(self.replicas)

    def outstanding(self, i: int) -> int:
        return self.seen[i][0]

    def state(self, i: int) -> ReplicaState:
        return self.seen[i][1]

    def cached_prefix(self, i: int) -> int:
        return 0

    def facts(self, i: int) -> GroupFacts:
        return self.known[i]

    def score(self, key: int, i: int) -> int:
        return mix(mix(self.luck.key ^ key) + self.replicas[i].index * GOLDEN)

    def draws(self, count: int) -> list[float]:
        drawn: list[float] = self.luck.of(self.request.id).uniforms("router", 0, count).tolist()
        return drawn


@dataclass
class SlowGateway:
    """``facts``: of the group of each replica. ``held``: (request, when it came)."""

    case: Any
    replicas: list[Any]
    facts: list[GroupFacts]
    told: Any
    held: list[tuple[Request, int]] = field(default_factory=list)
    finished: list[Request] = field(default_factory=list)
    sent: list[Request] = field(default_factory=list)
    polled: list[Seen] = field(default_factory=list)
    before_ns: int = -1
    tokens: dict[int, tuple[float, int]] = field(default_factory=dict)  # by tenant: in its bucket, when
    refused: list[tuple[int, str]] = field(default_factory=list)

    def poll(self, now: int, settled: bool) -> None:
        """Before anything of ``now``: multiples that lie between; once rounds have ended: ``now`` itself."""
        period = self.case.stale_ns
        if period and (now % period == 0 if settled else (now - 1) // period > max(self.before_ns, -1) // period):
            self.polled = [see(replica) for replica in self.replicas]
        self.before_ns = now

    def moments(self) -> list[int]:
        """When somebody has been held for too long."""
        said = self.case.admission
        return [] if said is None or said.queue_ns is None else [came + said.queue_ns for _, came in self.held]

    def arrive(self, request: Request, now: int) -> None:
        """A request comes."""
        said = self.case.admission
        if said is not None and not self._may_send(request, now):
            self._refuse(request, now, "rate")
        elif self.held or not self._try(request, now):
            if said is not None and (said.queue_ns == 0 or said.max_held == len(self.held)):
                self._refuse(request, now, "full")
            else:
                self.held.append((request, now))

    def dispatch(self, now: int) -> bool:
        """Send whoever may go, then refuse whoever has stood too long; whether anything happened."""
        happened = False
        stopped = False
        while not stopped:
            stopped = True
            for request, came in sorted(self.held, key=self._order):
                if self._limited(request) == "tenant":
                    continue
                if self._try(request, now):
                    self.held.remove((request, came))
                    happened, stopped = True, False
                break
        said = self.case.admission
        for request, came in sorted(self.held) if said is not None and said.queue_ns is not None else []:
            if came + said.queue_ns == now:
                self.held.remove((request, came))
                self._refuse(request, now, "queue")
                happened = True
        return happened

    def _order(self, one: tuple[Request, int]) -> tuple[int, int, int]:
        request, said = one[0], self.case.admission
        fair = said is not None and said.fair
        return (len(self._out(request.tenant)) if fair else 0, -request.priority, request.id)

    def _out(self, tenant: int | None = None) -> list[Request]:
        """Requests that are on replicas."""
        return [r for r in self.sent if r.id not in self.told.requests and tenant in (None, r.tenant)]

    def _limited(self, request: Request) -> str | None:
        said = self.case.admission
        if said is None:
            return None
        if said.max_outstanding is not None and len(self._out()) >= said.max_outstanding:
            return "all"
        most = said.of(request.tenant).max_outstanding
        return "tenant" if most is not None and len(self._out(request.tenant)) >= most else None

    def _try(self, request: Request, now: int) -> bool:
        if self._limited(request):
            return False
        able = [r for r in self.replicas if r.could_serve(request)] or self.replicas
        able = able if len(set(self.facts)) > 1 else self.replicas
        seen = [self.polled[r.index] if self.case.stale_ns else see(r) for r in able]
        known = [self.facts[r.index] for r in able]
        picked = self.case.router.pick(request, SlowView(request, able, seen, known, self.replicas[0].setup.luck))
        if picked is None:
            return False
        self.sent.append(request)
        able[picked].arrive(request, now)
        return True

    def _may_send(self, request: Request, now: int) -> bool:
        """A bucket of so many requests, filled at the rate; counted in 1e-9 requests of a whole gap."""
        limits = self.case.admission.of(request.tenant)
        if limits.rate_per_s is None:
            return True
        gap_ns = round(1e9 / limits.rate_per_s)
        held, since = self.tokens.get(request.tenant, (limits.burst * gap_ns, 0))
        held = min(held + now - since, limits.burst * gap_ns)
        self.tokens[request.tenant] = (held - gap_ns if held >= gap_ns else held, now)
        return held >= gap_ns

    def _refuse(self, r: Request, now: int, why: str) -> None:
        self.refused.append((r.id, why))
        self.finished.append(r)
        self.told.requests[r.id] = (
            r.id, r.arrival_ns, -1, -1, now, r.prompt, r.output, r.samples, 0, 0, 0, 0, -1, REJECTED, r.priority,
            r.session, 0, r.tenant,
        )  # fmt: skip
