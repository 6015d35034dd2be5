"""The gateway by hand and under fire: polls, rates, order of the line, and whoever is in it when replicas go."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from engine_setup import ROUTERS, Case, FlatCost, examples, policies, run_engine, schedulers, trace
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.policies.autoregressive import Autoregressive
from sim.request import Request
from sim.routers.central_queue import CentralQueue
from sim.schedulers.chunked import Chunked
from sim.serving.admission import Admission, Books, TenantLimits
from sim.serving.clock import FAULT, Moment
from sim.serving.fleet import Fleet, FleetCluster, Group


def flat(router: Any, *requests: Request, **more: Any) -> Case:
    """Rounds of 1000 ns, one seat a replica unless said."""
    scheduler = more.pop("scheduler", Chunked(64, 1))
    return Case(Autoregressive(), scheduler, requests, real=(FlatCost(1000.0),), router=router, **more)


@dataclass(frozen=True)
class Noting:
    """The first replica, always; notes what it is shown."""

    seen: list[Any] = field(default_factory=list)
    pulls: ClassVar[bool] = False

    def pick(self, request: Request, view: Any) -> int:
        state = view.state(0)
        self.seen.append((request.id, view.outstanding(0), state.waiting, state.running))
        return 0


def test_a_stale_view_is_the_last_poll() -> None:
    """Polls every 5000 ns; requests of three rounds. Those of 5000 and 9999 see the poll of 5000: the second runs. That
    of 10,000 sees the poll of that instant: the third has just ended, the fourth waits, and nobody is planned yet.
    """
    router = Noting()
    times = (0, 4000, 5000, 9999, 10_000)
    run_engine(flat(router, *(Request(i, t, 5, 3) for i, t in enumerate(times)), stale_ns=5000))
    assert router.seen == [(0, 0, 0, 0), (1, 0, 0, 0), (2, 1, 0, 1), (3, 1, 0, 1), (4, 1, 1, 0)]


def test_a_bucket_by_hand() -> None:
    """Two a microsecond and a burst of 3: of requests at 0, 0, 0, 0, 499, 500, 999, 1000 ns the fourth, fifth and
    seventh are refused; three more may come after a long silence.
    """
    books = Books(Admission(each=TenantLimits(2e6, 3)))
    times = (0, 0, 0, 0, 499, 500, 999, 1000, 10_000, 10_000, 10_000, 10_000)
    let_in = [books.within_rate(Request(i, t, 1, 1, tenant=4), t) for i, t in enumerate(times)]
    assert let_in == [True] * 3 + [False] * 2 + [True, False, True] + [True] * 3 + [False]


def admitted(case: Case) -> dict[int, int]:
    """When each request was admitted, by number; -1: never."""
    return {number: row[2] for number, row in run_engine(case)[0].requests.items()}


def test_the_line_goes_by_priority_then_number() -> None:
    """One seat, rounds of 1000 ns, answers of one token: 0 runs, then 3 (priority 2), 1, 2 and 4 (priority 0)."""
    requests = [Request(i, i, 5, 1, priority=2 if i == 3 else 0) for i in range(5)]
    assert admitted(flat(CentralQueue(), *requests)) == {0: 0, 3: 1000, 1: 2000, 2: 3000, 4: 4000}


def test_fairness_is_between_tenants() -> None:
    """Two seats: tenant 0 sends four, tenant 1 one that comes last and is served as soon as a seat is free."""
    requests = [Request(i, i, 5, 1, tenant=int(i == 4)) for i in range(5)]
    case = flat(CentralQueue(1), *requests, replicas=2, admission=Admission(fair=True))
    assert admitted(case) == {0: 0, 1: 1, 4: 1000, 2: 1001, 3: 2000}


def test_a_tenant_at_its_limit_lets_others_pass() -> None:
    """One of tenant 0 at a time on three replicas: its second and third wait, tenant 1 does not."""
    requests = [Request(i, i, 5, 1, tenant=int(i == 3)) for i in range(4)]
    limits = Admission(tenants={0: TenantLimits(max_outstanding=1)})
    assert admitted(flat(CentralQueue(1), *requests, replicas=3, admission=limits)) == {0: 0, 1: 1000, 2: 2000, 3: 3}


def test_who_stands_too_long_is_refused() -> None:
    """At most 1500 ns in the line, rounds of 1000 ns: 1 is sent at 1000, 2 at 2000, 3 may not join a line
    of one. Who is sent at the very end of its time is sent; who came 1 ns later and is not, is refused.
    """
    requests = [Request(0, 0, 5, 1), Request(1, 1, 5, 1), Request(2, 1001, 5, 3), Request(3, 1002, 5, 1)]
    told = run_engine(flat(CentralQueue(1), *requests, admission=Admission(queue_ns=1500, max_held=1)))[0]
    assert told.refused == [(3, "full")] and told.requests[2][2] == 2000
    exact = [Request(0, 0, 5, 2), Request(1, 500, 5, 1), Request(2, 501, 5, 1)]
    told = run_engine(flat(CentralQueue(1), *exact, admission=Admission(queue_ns=1500)))[0]
    assert told.requests[1][2] == 2000 and told.refused == [(2, "queue")] and told.requests[2][4] == 2001


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    router=st.sampled_from(examples("sim.routers", ROUTERS)),
    limits=st.sampled_from([None, Admission(max_outstanding=5), Admission(fair=True, queue_ns=40_000, max_held=6)]),
    stale_ns=st.sampled_from([0, 3000]),
)
def test_nobody_is_lost_at_the_gateway(seed: int, router: Any, limits: Any, stale_ns: int) -> None:
    """Replicas fail, drain and come at random under any router: every request ends exactly once, the books are even,
    and who was refused has a reason.
    """
    rnd = random.Random(seed)
    requests = [r._replace(tenant=r.id % 3) for r in trace(25, rnd.choice([500, 20_000]), seed % 1000)]
    case = Case(rnd.choice(policies()), rnd.choice(schedulers()), tuple(requests))
    setup = case.setup()
    fleet = Fleet((Group("a", setup, 2), Group("b", setup, 1, 2.0, 3.0)), rnd.choice([0, 1, 5]), rnd.random() < 0.5)
    stale_ns = 0 if router.pulls else stale_ns
    cluster = FleetCluster(fleet, router, iter(case.requests), stale_ns=stale_ns, admission=limits)
    span_ns = 2 * case.requests[-1].arrival_ns + 1000

    def strike(_: Any) -> None:
        slot = rnd.choice(cluster.slots)
        if slot.phase == "down":
            cluster.start(slot, rnd.randrange(span_ns))
        elif slot.phase == "up" and rnd.random() < 0.4:
            cluster.drain(slot)
        elif slot.replica is not None:
            cluster.fail(slot)

    for _ in range(12):
        Moment(cluster.env, rnd.randrange(span_ns), FAULT, strike)
    rows = cluster.run().requests.frame()
    assert sorted(rows["id"].tolist()) == list(range(25))
    refused = {number for number, _ in cluster.recorder.refused.array().tolist()}
    assert refused == set(rows["id"][(rows["status"] == 1) & (rows["replica"] < 0)].tolist())
    books = cluster.gateway.books
    assert books is None or (books.total == 0 and not books.inside and not any(books.by_tenant.values()))


def test_an_end_that_is_not_booked_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Books that forget who has left let too few in: somebody is never sent."""
    requests = [Request(i, i, 5, 1) for i in range(4)]
    case = flat(CentralQueue(1), *requests, admission=Admission(max_outstanding=1))
    assert all(at >= 0 for at in admitted(case).values())
    monkeypatch.setattr(Books, "leave", lambda self, request: None)
    assert any(row[13] == 2 for row in run_engine(case)[0].requests.values())
