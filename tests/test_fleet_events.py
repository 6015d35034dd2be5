"""Faults, reclaims, restarts and autoscalers: nothing is lost or duplicated, and what a pencil says is what happens."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from engine_setup import Case, FlatCost, longer, trace
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.policies.autoregressive import Autoregressive
from sim.policies.speculative import Speculative
from sim.request import Request
from sim.routers.central_queue import CentralQueue
from sim.routers.least_outstanding import LeastOutstanding
from sim.routers.round_robin import RoundRobin
from sim.schedulers.chunked import Chunked
from sim.schedulers.continuous import Continuous
from sim.serving import outages
from sim.serving.autoscale import Scaling
from sim.serving.events import Event, Events
from sim.serving.faults import RandomOutages, StatedOutages
from sim.serving.fleet import Fleet, FleetCluster, Group, Slot
from sim.serving.outages import Outage
from sim.serving.record import FAILED, FINISHED, STATUS
from sim.serving.restarts import Restart

FLAT = (FlatCost(1000.0),)  # every round lasts a microsecond, whatever is in it


def flat(*requests: Request, seats: int = 1, **more: Any) -> Case:
    """Rounds of one microsecond, one prompt chunk a request."""
    return Case(Autoregressive(), Chunked(64, seats), requests, real=FLAT, **more)


def cluster_of(
    case: Case, replicas: tuple[int, ...], *events: Event, router: Any = None, stepping: bool = False, **more: Any
) -> FleetCluster:
    """A fleet of groups a, b, ... of the case's setup, with events."""
    setup = case.setup(stepping)
    groups = tuple(Group("abc"[i], setup, count) for i, count in enumerate(replicas))
    arrivals = case.closed_loop() or iter(case.requests)
    cluster = FleetCluster(Fleet(groups, **more), router or RoundRobin(), arrivals)
    Events(events).attach(cluster)
    return cluster


def requests_of(cluster: FleetCluster) -> dict[int, dict[str, int]]:
    """Rows by request; each there once."""
    table = cluster.recorder.requests
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.array().tolist()]
    assert len({row["id"] for row in rows}) == len(rows), "every request ends exactly once"
    return {row["id"]: row for row in rows}


def lives_of(cluster: FleetCluster) -> list[tuple[int, int, int, int]]:
    """(slot, up, down, how it ended), by replica."""
    rows = sorted(cluster.recorder.lives.array().tolist())
    return [(slot, up, down, end) for _, _, slot, up, down, end in rows]


def ended(cluster: FleetCluster) -> FleetCluster:
    """The same after its run."""
    cluster.run()
    return cluster


# --- nothing is lost or duplicated ----------------------------------------------------------------


def check(cluster: FleetCluster, asked: dict[int, Request]) -> None:
    """What must hold in every run, whatever happened to whom."""
    rows, policy = requests_of(cluster), cluster.setup.policy
    assert sorted(rows) == sorted(asked), "every request ends, and nobody else"
    emitted = tokens_emitted(cluster)
    for number, row in rows.items():
        assert row["arrival_ns"] <= row["finish_ns"] <= cluster.env.now, "the clock never goes back"
        if row["status"] == FINISHED and policy.tokens_per_round == 1:
            lost = cluster.lost.get(number, 0)
            assert emitted.get(number, 0) == asked[number].output * asked[number].samples + lost, "delivered = asked"
    spans: dict[int, list[tuple[int, int]]] = {}
    for slot, up, down, _ in lives_of(cluster):
        assert up <= down
        spans.setdefault(slot, []).append((up, down))
    for times in spans.values():
        times.sort()
        assert all(a[1] <= b[0] for a, b in pairwise(times)), "lives of a slot overlap"
    assert len(lives_of(cluster)) == len(cluster.replicas), "one life a replica"


def tokens_emitted(cluster: FleetCluster) -> dict[int, int]:
    """Tokens by request, counted from stays (one a sample and round) and last prompt chunks (one a sample)."""
    recorder, found = cluster.recorder, dict[int, int]()
    leaps = recorder.leaps.frame()
    rounds = {i: leaps["rounds"][leaps["replica"] == i] for i in range(len(cluster.replicas))}
    decoding = {i: leaps["seats"][leaps["replica"] == i] > 0 for i in rounds}
    for replica, request, first, last, seats in recorder.stays.array().tolist():
        mine = rounds[replica][first:last][decoding[replica][first:last]]
        found[request] = found.get(request, 0) + int(mine.sum()) * seats
    for _, _, request, _, _, final, _ in recorder.chunks.array().tolist():
        found[request] = found.get(request, 0) + final
    return found


OUTAGES = st.builds(
    Outage,
    notice_ns=st.sampled_from([0, 0, 1000, 30_000, None]),
    away_ns=st.sampled_from([0, 1, 5000, 100_000, None]),
    start_ns=st.sampled_from([0, 1000, 40_000]),
)
PLACES = st.sampled_from([None, 0, 1])
INSTANTS = st.lists(st.integers(0, 400_000).map(lambda t: t // 1000 * 1000), min_size=1, max_size=4).map(tuple)
EVENTS: Any = st.one_of(
    st.builds(StatedOutages, INSTANTS, OUTAGES, PLACES, st.sampled_from([None, 0, 1])),
    st.builds(
        RandomOutages, st.sampled_from([20_000.0, 200_000.0]), OUTAGES, PLACES, st.booleans(), st.integers(0, 3)
    ),
    st.builds(Restart, st.integers(0, 300_000), OUTAGES, PLACES, st.integers(1, 3)),
    st.builds(
        Scaling, place=st.just(1), least=st.integers(0, 1), most=st.integers(1, 5),
        metric=st.sampled_from(["outstanding", "waiting", "kv", "ttft_ms"]), target=st.sampled_from([0.02, 0.5, 2.0]),
        every_ns=st.sampled_from([1000, 17_000]), start_ns=st.sampled_from([0, 20_000]),
        down_after_ns=st.sampled_from([0, 50_000]), window_ns=st.just(60_000),
    ),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    events=st.lists(EVENTS, min_size=1, max_size=5),
    policy=st.sampled_from([Autoregressive(), Speculative("d", 3, 0.8)]),
    router=st.sampled_from([RoundRobin(), LeastOutstanding(), CentralQueue(2)]),
    seed=st.integers(0, 99),
    gap_ns=st.sampled_from([0, 4000, 15_000]),
    retries=st.sampled_from([0, 1, 20]),
    resume=st.booleans(),
    users=st.sampled_from([0, 0, 3]),
    stepping=st.booleans(),
)
def test_nothing_is_lost_or_duplicated(
    events: list[Event], policy: Any, router: Any, seed: int, gap_ns: int, retries: int, resume: bool, users: int,
    stepping: bool,
) -> None:  # fmt: skip
    """Random failures, reclaims, restarts, scaling on two groups: every request ends once, with what it asked for."""
    requests = longer(trace(16, gap_ns, seed, 1000), 4)
    case = Case(policy, Continuous(60, 4), requests, quantum_ns=1000, capacity_bytes=4000, concurrency=users)
    cluster = cluster_of(
        case, (2, 1), *events, router=router, stepping=stepping, retries=retries, resume=resume
    )  # fmt: skip
    before = outages.MOST_IDLE
    outages.MOST_IDLE = 3000
    try:
        cluster.run()
    finally:
        outages.MOST_IDLE = before
    came = {request.id: request for request in requests if request.id in requests_of(cluster)}
    assert users or len(came) == len(requests)
    check(cluster, came)


@settings(max_examples=25, deadline=None)
@given(events=st.lists(EVENTS, min_size=1, max_size=4), seed=st.integers(0, 99), stop=st.integers(0, 300))
def test_a_run_cut_short_records_everybody(events: list[Event], seed: int, stop: int) -> None:
    """Ctrl-C after any number of events: whoever had arrived has a row, and every replica a life."""
    requests = longer(trace(16, 4000, seed, 1000), 4)
    case = Case(Autoregressive(), Continuous(60, 4), requests, quantum_ns=1000)
    cluster = cluster_of(case, (2, 1), *events)
    step, count = cluster.env.step, iter(range(10**9))

    def counted() -> None:
        step()
        if next(count) == stop:
            cluster.stop()

    cluster.env.step = counted  # type: ignore[method-assign]
    cluster.run()
    rows = requests_of(cluster)
    assert len(rows) == cluster.arrived
    assert len(lives_of(cluster)) == len(cluster.replicas)


def test_leaping_and_stepping_meet_the_same_faults() -> None:
    """Lives, and every row of requests, are the same with one event a round."""
    requests = longer(trace(60, 4000, 7, 1000), 4)
    case = Case(Speculative("d", 3, 0.8), Continuous(60, 4), requests, quantum_ns=1000)
    events = (
        RandomOutages(60_000.0, Outage(0, 20_000, 1000), exponential=True),
        StatedOutages((100_000,), Outage(15_000, 5000), 1),
        Scaling(0, 1, 6, "outstanding", 3.0, 10_000, 5000, 40_000),
    )
    leaping, stepping = (ended(cluster_of(case, (2, 2), *events, stepping=each)) for each in (False, True))
    assert lives_of(leaping) == lives_of(stepping) and len(lives_of(leaping)) > 10
    assert requests_of(leaping) == requests_of(stepping)


@settings(max_examples=40, deadline=None)
@given(
    events=st.lists(EVENTS, min_size=1, max_size=4),
    policy=st.sampled_from([Autoregressive(), Speculative("d", 3, 0.8)]),
    router=st.sampled_from([RoundRobin(), LeastOutstanding(), CentralQueue(2)]),
    seed=st.integers(0, 99),
    users=st.sampled_from([0, 0, 3]),
)
def test_random_schedules_leap_exactly(events: list[Event], policy: Any, router: Any, seed: int, users: int) -> None:
    """Leaping and stepping tell the same lives and the same requests, whatever happens to whom."""
    requests = longer(trace(16, 9000, seed, 1000), 4)
    case = Case(policy, Continuous(60, 4), requests, quantum_ns=1000, capacity_bytes=4000, concurrency=users)
    before, outages.MOST_IDLE = outages.MOST_IDLE, 3000
    try:
        runs = [ended(cluster_of(case, (2, 1), *events, router=router, stepping=each)) for each in (False, True)]
    finally:
        outages.MOST_IDLE = before
    assert requests_of(runs[0]) == requests_of(runs[1]) and lives_of(runs[0]) == lives_of(runs[1])


# --- by pencil -------------------------------------------------------------------------------------


def test_a_failure_sends_requests_elsewhere_with_what_they_have() -> None:
    """Slot 0 fails at 3500: three tokens are out (ends 1000, 2000, 3000); slot 1 reads anew and emits the other two."""
    cluster = ended(cluster_of(flat(Request(0, 0, 5, 5)), (2,), StatedOutages((3500,), Outage(0, None), 0, 0)))
    assert requests_of(cluster)[0]["finish_ns"] == 3500 + 2000
    assert lives_of(cluster) == [(0, 0, 3500, 2), (1, 0, 5500, 0)]


def test_a_failure_at_the_end_of_a_round_comes_after_it() -> None:
    """At 3000 the third token is out before the replica fails: the rest takes 2000 from there."""
    cluster = ended(cluster_of(flat(Request(0, 0, 5, 5)), (2,), StatedOutages((3000,), Outage(0, None), 0, 0)))
    assert requests_of(cluster)[0]["finish_ns"] == 5000


def test_all_down_is_held() -> None:
    """The only replica is away from 1500 to 9000 and starts for 500: what has emitted one token goes on at 9500."""
    fault = StatedOutages((1500,), Outage(0, 7500, 500))
    cluster = ended(cluster_of(flat(Request(0, 0, 5, 3), Request(1, 2000, 5, 1), seats=2), (1,), fault))
    rows = requests_of(cluster)
    assert (rows[0]["finish_ns"], rows[1]["finish_ns"]) == (11_500, 10_500)
    assert lives_of(cluster) == [(0, 0, 1500, 2), (0, 9000, 11_500, 0)]


def test_retries_come_to_an_end() -> None:
    """Fails every 1500 ns: ten tokens from the start never get through; after three retries the request has failed."""
    faults = StatedOutages(tuple(range(1500, 60_000, 1500)), Outage(0, 0))
    cluster = ended(cluster_of(flat(Request(0, 0, 5, 10)), (1,), faults, retries=3, resume=False))
    row = requests_of(cluster)[0]
    assert (STATUS[row["status"]], row["finish_ns"], row["retries"]) == ("failed", 6000, 4)
    assert cluster.env.now == 6000, "nobody waits for the faults that were still planned"


def test_a_reclaim_drains_first() -> None:
    """Told at 1500 with 2000 of notice: the short request ends by 3000, the long one is cut at 3500 and goes on."""
    requests = (Request(0, 0, 5, 3), Request(1, 0, 5, 6), Request(2, 2000, 5, 1))
    spot = StatedOutages((1500,), Outage(2000, 1000, 0))
    rows = requests_of(cluster := ended(cluster_of(flat(*requests, seats=4), (1,), spot)))
    assert (rows[0]["finish_ns"], rows[0]["retries"]) == (3000, 0)
    assert (rows[1]["finish_ns"], rows[1]["retries"]) == (4500 + 3000, 1)
    assert rows[2]["admitted_ns"] == 4500, "a draining replica takes nobody"
    assert lives_of(cluster) == [(0, 0, 3500, 2), (0, 4500, 7500, 0)]


def test_a_rolling_restart_takes_one_after_another() -> None:
    """Idle replicas: 0 restarts from 1000 to 3000, then 1, then 2; two at a time in 4000 less."""
    last = Request(0, 20_000, 5, 1)
    for at_once, ups in ((1, [0, 0, 0, 1000, 3000, 5000]), (2, [0, 0, 0, 1000, 1000, 3000])):
        restart = Restart(1000, Outage(None, 0, 2000), None, at_once)
        cluster = ended(cluster_of(flat(last), (3,), restart))
        assert [up for _, up, _, _ in lives_of(cluster)] == ups


@settings(max_examples=30, deadline=None)
@given(at_once=st.integers(1, 4), seed=st.integers(0, 99), drain_ns=st.sampled_from([0, 5000, None]))
def test_a_rolling_restart_never_takes_more_than_it_may(at_once: int, seed: int, drain_ns: int | None) -> None:
    """Under load, at no change of phase are more than ``at_once`` slots out; all four have two lives at the end."""
    requests = (*longer(trace(60, 4000, seed), 4), Request(60, 10**8, 5, 1))
    case = Case(Autoregressive(), Continuous(60, 4), requests)
    cluster = cluster_of(case, (4,), Restart(20_000, Outage(drain_ns, 0, 3000), None, at_once))
    most = [0]
    cluster.on_change.append(lambda _: most.append(sum(slot.phase != "up" for slot in cluster.slots)))
    cluster.run()
    assert max(most) <= at_once
    assert len(lives_of(cluster)) == 8


def test_availability_is_that_of_the_closed_form() -> None:
    """MTBF 4 ms, repair 1 ms: M / (M + R) = 80 % of slot time, within three standard errors of renewal theory.

    Var of the time up over T is about 2 M^2 R^2 T / (M + R)^3 for exponential times (Cox, Renewal Theory, 1962).
    """
    mean, away, slots, span = 4e6, 1e6, 8, 2_000_000_000
    fault = RandomOutages(mean, Outage(0, round(away)), exponential=True)
    cluster = ended(cluster_of(flat(Request(0, span, 5, 1)), (slots,), fault))
    up_ns = sum(min(down, span) - min(up, span) for _, up, down, _ in lives_of(cluster))
    error = math.sqrt(2 * mean**2 * away**2 * span / (mean + away) ** 3 * slots) / (slots * span)
    assert abs(up_ns / (slots * span) - mean / (mean + away)) < 3 * error < 0.0125


def test_a_slot_fails_by_its_own_luck() -> None:
    """The first failures of slots 0 and 1 are the same whether or not there are more slots."""
    fault = RandomOutages(1e6, Outage(0, 1000))
    last = Request(0, 20_000_000, 5, 1)
    few, many = (lives_of(ended(cluster_of(flat(last), (count,), fault))) for count in (2, 5))
    for slot in (0, 1):
        assert [life[2] for life in few if life[0] == slot][:-1] == [life[2] for life in many if life[0] == slot][:-1]


# --- autoscaling -----------------------------------------------------------------------------------


def counts_of(cluster: FleetCluster) -> list[tuple[int, int]]:
    """(instant, replicas that are starting or up), at each change."""
    seen = [(0, sum(slot.phase != "down" for slot in cluster.slots))]
    cluster.on_change.append(
        lambda _: seen.append((cluster.env.now, sum(s.phase in ("starting", "up") for s in cluster.slots)))
    )
    return seen


def test_a_step_of_load_by_hand() -> None:
    """Seven long requests from 500 on, target 2: ceil(7 / 2) = 4 at the first look (1000), up at 1300. They end at
    10 500 (the first replica has them all): one again at the first look by which, for 4000, nobody wanted more.
    """
    requests = [*(Request(i, 500, 5, 10) for i in range(7)), Request(7, 30_000, 5, 1)]
    scaling = Scaling(0, 1, 8, "outstanding", 2.0, 1000, 300, 4000)
    cluster = cluster_of(flat(*requests, seats=8), (1,), scaling)
    seen = counts_of(cluster)
    cluster.run()
    rows = requests_of(cluster)
    assert {rows[i]["finish_ns"] for i in range(7)} == {10_500}
    assert [(up, down, end) for _, up, down, end in lives_of(cluster)][1:] == [(1000, 15_000, 1)] * 3
    assert max(count for _, count in seen) == 4 and seen[-1] == (15_000, 1)


def test_the_most_and_the_tolerance_are_kept() -> None:
    """31 requests, target 10: four asked, three allowed; 21 on two replicas are within 10 % and change nothing."""
    many = [*(Request(i, 500, 5, 10) for i in range(31)), Request(31, 30_000, 5, 1)]
    cluster = ended(cluster_of(flat(*many, seats=64), (1,), Scaling(0, 1, 3, "outstanding", 10.0, 1000, 0, 10**6)))
    assert len(lives_of(cluster)) == 3
    few = many[:21]
    cluster = ended(cluster_of(flat(*few, seats=64), (2,), Scaling(0, 1, 9, "outstanding", 10.0, 1000, 0, 10**6)))
    assert len(lives_of(cluster)) == 2


def test_from_nobody_and_back() -> None:
    """A group of none starts one for the request that is held, 400 after the look at 1000, and gives it back."""
    scaling = Scaling(1, 0, 2, "outstanding", 1.0, 1000, 400, 0)
    gone = StatedOutages((0,), Outage(0, None), 0)
    requests = (Request(0, 200, 5, 2), Request(1, 9100, 5, 1))
    cluster = ended(cluster_of(flat(*requests), (1, 0), gone, scaling))
    rows = requests_of(cluster)
    assert (rows[0]["finish_ns"], rows[1]["finish_ns"]) == (3400, 11_400)
    assert lives_of(cluster)[1:] == [(1, 1000, 4000, 1), (1, 10_000, 11_400, 0)]


def test_ttft_is_a_ratio() -> None:
    """Requests one after another on one seat: TTFT grows past 2 us, twice the target, and the group doubles."""
    requests = [Request(i, 0, 5, 1) for i in range(2)] + [Request(2, 10_000, 5, 1)]
    scaling = Scaling(0, 1, 8, "ttft_ms", 1e-3, 2500, 0, 10**6, window_ns=3000, percentile=99)
    cluster = cluster_of(flat(*requests), (1,), scaling)
    seen = counts_of(cluster)
    cluster.run()
    assert (2500, 2) in seen and max(count for _, count in seen) == 2


def test_scale_down_leaves_nobody_behind() -> None:
    """Who is told to go ends what it has: no request is retried by scaling alone."""
    requests = longer(trace(80, 3000, 3), 8)
    case = Case(Autoregressive(), Continuous(60, 4), requests)
    cluster = ended(cluster_of(case, (1,), Scaling(0, 1, 8, "outstanding", 2.0, 5000, 2000, 10_000)))
    rows = requests_of(cluster)
    assert {row["status"] for row in rows.values()} == {FINISHED} and not any(r["retries"] for r in rows.values())
    assert len(lives_of(cluster)) > 4


# --- the end ---------------------------------------------------------------------------------------


def test_a_run_ends_with_its_last_request() -> None:
    """Random failures and an autoscaler would go on for ever; the clock stops when the last request has ended."""
    events = (RandomOutages(1e6, Outage(0, 1000)), Scaling(0, 1, 4, "outstanding", 9.0, 1000))
    cluster = ended(cluster_of(flat(Request(0, 500, 5, 3)), (1,), *events))
    assert cluster.env.now == 3500


def test_a_run_ends_when_the_last_request_is_refused() -> None:
    """The last one could never be served (its prompt is beyond the context): nobody waits for later faults."""
    fault = StatedOutages((10**12,), Outage(0, 0))
    cluster = ended(cluster_of(flat(Request(0, 500, 5000, 3)), (1,), fault))
    assert cluster.env.now == 500


@pytest.mark.parametrize("stepping", [False, True])
def test_a_run_ends_with_the_last_that_happened(stepping: bool) -> None:
    """All down for good at 3500, in a leap that would have run to 9000: who is held has failed at 3500."""
    fault = StatedOutages((3500,), Outage(0, None))
    cluster = ended(cluster_of(flat(Request(0, 0, 5, 9)), (1,), fault, stepping=stepping))
    row = requests_of(cluster)[0]
    assert (row["status"], row["finish_ns"]) == (FAILED, 3500)


def test_requests_that_nobody_takes_fail_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """The only replica is gone for good; an autoscaler of another group that may not grow looks in vain."""
    monkeypatch.setattr(outages, "MOST_IDLE", 50)
    events = (StatedOutages((0,), Outage(0, None), 0), Scaling(1, 0, 1, "waiting", 100.0, 1000, tolerance=1.0))
    small = flat(Request(0, 500, 50, 3))
    setup, other = small.setup(), replace(small, max_context=20).setup()
    fleet = Fleet((Group("a", setup, 1), Group("b", other, 0)))
    cluster = FleetCluster(fleet, RoundRobin(), iter(small.requests))
    Events(events).attach(cluster)
    cluster.run()
    assert requests_of(cluster)[0]["status"] == FAILED


# --- planted faults --------------------------------------------------------------------------------


def test_a_failure_that_forgets_somebody_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the retry of whoever was on the replica, a request has no row, and the check says so."""
    monkeypatch.setattr(FleetCluster, "_again", lambda self, sequence: None)
    cluster = ended(cluster_of(flat(Request(0, 0, 5, 5)), (2,), StatedOutages((3500,), Outage(0, None), 0, 0)))
    with pytest.raises(AssertionError):
        check(cluster, {0: Request(0, 0, 5, 5)})


def test_a_token_too_many_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sequence that emits again what it had emitted when its replica failed delivers more than was asked."""
    request = Request(0, 0, 5, 5)
    again = FleetCluster._again

    def forgets(self: FleetCluster, sequence: Any) -> None:
        sequence.members[0].emitted -= 1
        again(self, sequence)

    monkeypatch.setattr(FleetCluster, "_again", forgets)
    cluster = ended(cluster_of(flat(request), (2,), StatedOutages((3500,), Outage(0, None), 0, 0)))
    with pytest.raises(AssertionError, match="delivered"):
        check(cluster, {0: request})


def test_two_starts_of_one_slot_are_stopped() -> None:
    """A slot that is up cannot be started again: an assertion, not two lives at once."""
    cluster = cluster_of(flat(Request(0, 0, 5, 5)), (1,))
    slot: Slot = cluster.slots[0]
    with pytest.raises(AssertionError, match="empty slot"):
        cluster.start(slot)
