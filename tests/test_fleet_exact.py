"""A fleet of unlike groups behind any router, with polls, limits and tenants, leaps as the stepper steps does."""

from __future__ import annotations

from typing import Any

import pytest
from engine_setup import ROUTERS, Case, examples, label, longer, run_engine, trace
from hypothesis import given, settings
from hypothesis import strategies as st
from stepper import step

from sim.policies.autoregressive import Autoregressive
from sim.policies.speculative import Speculative
from sim.routers.central_queue import CentralQueue
from sim.routers.least_outstanding import LeastOutstanding
from sim.schedulers.chunked import Chunked
from sim.schedulers.continuous import Continuous
from sim.serving.admission import Admission, Line, TenantLimits
from sim.serving.gateway import Gateway
from sim.serving.sight import Polls

FIELDS = ("requests", "round_ends", "emits", "gaps", "chunks", "sums", "refused")


def differences(case: Case, stepping: bool = False) -> list[str]:
    """Fields of what engine and stepper tell that are not equal; empty when leaping is exact."""
    slow, fast = step(case)[0], run_engine(case, stepping)[0]
    return [name for name in FIELDS if getattr(slow, name) != getattr(fast, name)]


def fleet(router: Any, n: int = 30, gap_ns: int = 9_000, seed: int = 5, quantum_ns: int = 1000, **options: Any) -> Case:
    """Two groups that differ in policy, scheduler and memory, under traffic of three tenants and four sessions."""
    requests = tuple(
        r._replace(tenant=i % 3, session=i % 5 - 1) for i, r in enumerate(longer(trace(n, gap_ns, seed, quantum_ns), 4))
    )
    second = Case(
        Speculative("d", 3, 0.8), Continuous(60, 3), (), capacity_bytes=2000, replicas=1, group=("b", 2.0, 9.0)
    )
    return Case(
        Autoregressive(), Chunked(24, 4), requests, quantum_ns=quantum_ns, replicas=2, group=("a", 1.0, 4.0),
        router=router, others=(second,), **options,
    )  # fmt: skip


ALL = pytest.mark.parametrize("router", examples("sim.routers", ROUTERS), ids=label)


@ALL
def test_every_router_leaps_exactly(router: Any) -> None:
    """Every router on two unlike groups, with arrivals that tie with ends; leaping, and with an event a round."""
    case = fleet(router)
    assert differences(case) == []
    assert differences(case, stepping=True) == []


@ALL
def test_every_router_leaps_exactly_in_a_closed_loop(router: Any) -> None:
    """Five users, each of whom asks again at once."""
    assert differences(fleet(router, concurrency=5)) == []


LIMITS = (
    None,
    Admission(max_outstanding=3),
    Admission(max_outstanding=4, max_held=2),
    Admission(max_outstanding=2, queue_ns=20_000),
    Admission(queue_ns=0, max_outstanding=3),
    Admission(max_outstanding=4, fair=True),
    Admission(each=TenantLimits(max_outstanding=1), tenants={1: TenantLimits(rate_per_s=3e4, burst=2)}),
    Admission(fair=True, queue_ns=30_000, each=TenantLimits(4e4, 3, 2)),
)


MEETING: dict[str, st.SearchStrategy[Any]] = {
    "router": st.sampled_from(examples("sim.routers", ROUTERS)),
    "limits": st.sampled_from(LIMITS),
    "stale_ns": st.sampled_from([0, 1, 1000, 7000, 50_000]),
    "users": st.sampled_from([0, 0, 1, 6]),
    "seed": st.integers(0, 999),
    "gap_ns": st.sampled_from([0, 2000, 9000, 60_000]),
}
SELDOM = st.sampled_from([0, 777, 1000, 7000, 50_000])  # polls of every nanosecond take seconds an example


@settings(max_examples=12, deadline=None)
@given(**MEETING | {"seed": st.integers(0, 99)}, request_ns=st.sampled_from([0, 1000]))
def test_leaping_is_exact_behind_a_gateway(
    router: Any, limits: Any, stale_ns: int, users: int, seed: int, gap_ns: int, request_ns: int
) -> None:
    """Whatever comes together: router, limits, staleness, users, ties."""
    stale_ns = 0 if router.pulls else stale_ns
    case = fleet(
        router, 20, gap_ns, seed, stale_ns=stale_ns, admission=limits, concurrency=users, request_ns=request_ns
    )
    assert differences(case) == []


@pytest.mark.slow
@settings(max_examples=600, deadline=None)
@given(**MEETING | {"stale_ns": SELDOM})
def test_leaping_is_exact_behind_a_gateway_at_length(
    router: Any, limits: Any, stale_ns: int, users: int, seed: int, gap_ns: int
) -> None:
    """The same with many more examples, and with the engine stepping too; polls of every nanosecond left out."""
    stale_ns = 0 if router.pulls else stale_ns
    case = fleet(router, 24, gap_ns, seed, stale_ns=stale_ns, admission=limits, concurrency=users)
    assert differences(case) == [] and differences(case, stepping=True) == []
    assert differences(case, stepping=True) == []


# --- planted faults --------------------------------------------------------------------------------


def test_a_poll_a_nanosecond_late_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Polls that take place one period late show an older state, and the stepper notices."""
    case = fleet(LeastOutstanding(), stale_ns=5000)
    assert differences(case) == []
    monkeypatch.setattr(Polls, "of", lambda self, replica: (0, replica.state_at(replica.env.now)))
    assert differences(case) != []


def test_a_gateway_that_forgets_to_look_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a look at the line when a request ends, those who are held are lost; the stepper notices."""
    case = fleet(CentralQueue(1), gap_ns=2000)
    assert differences(case) == []
    monkeypatch.setattr(Gateway, "left", lambda self, request: None)
    assert differences(case) != []


def test_a_line_out_of_order_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one first: noticed."""
    case = fleet(CentralQueue(1), gap_ns=2000)
    assert differences(case) == []
    monkeypatch.setattr(Line, "first", lambda self, *_: max(self, key=lambda s: s.request.id, default=None))
    assert differences(case) != []
