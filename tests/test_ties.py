"""What happens in one nanosecond: ends of rounds, then arrivals by request id, then plans. Traces that collide."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from engine_setup import Case, FlatCost, run_engine
from stepper import step

from sim.policies.autoregressive import Autoregressive
from sim.request import Request
from sim.schedulers.chunked import Chunked
from sim.schedulers.continuous import Continuous
from sim.schedulers.static import Static

FLAT = (FlatCost(1000.0),)  # every round lasts a microsecond, whatever is in it


def rows(case: Case) -> dict[int, tuple[int, ...]]:
    """Admitted, first token and finish by request id, the same in both engines."""
    told = run_engine(case)[0]
    assert told == step(case)[0] and told == run_engine(case, stepping=True)[0]
    return {i: row[2:5] for i, row in told.requests.items()}


def flat(scheduler: Any, *requests: Request, **more: Any) -> Case:
    """Autoregressive with rounds of one microsecond."""
    return Case(Autoregressive(), scheduler, requests, real=FLAT, **more)


def test_an_end_frees_its_seat_for_an_arrival_of_the_same_nanosecond() -> None:
    """Request 0 ends at 3000, request 1 arrives at 3000 and starts at once; at 3001, a nanosecond later."""
    for late in (0, 1):
        case = flat(Chunked(64, 1), Request(0, 0, 5, 3), Request(1, 3000 + late, 5, 1))
        assert rows(case) == {0: (0, 1000, 3000), 1: (3000 + late, 4000 + late, 4000 + late)}


def test_the_plan_waits_for_all_arrivals_of_its_nanosecond() -> None:
    """Four requests of one nanosecond share one prefill round, in an idle replica and at the end of a round."""
    for when in (0, 2000):
        first = [Request(0, 0, 5, 9)] if when else []
        case = flat(Chunked(64, 8), *first, *(Request(i, when, 5, 1) for i in range(len(first), 5)))
        told = run_engine(case)[0]
        assert {row[2:5] for row in told.requests.values() if row[6] == 1} == {(when, when + 1000, when + 1000)}


def test_arrivals_of_one_nanosecond_queue_by_id() -> None:
    """One seat: requests 0, 1 and 2 of one nanosecond are served in that order."""
    case = flat(Chunked(64, 1), *(Request(i, 500, 5, 1) for i in range(3)))
    assert [row[0] for row in rows(case).values()] == [500, 1500, 2500]


def test_priority_of_an_arrival_at_the_end_of_a_round() -> None:
    """A seat comes free at 2000: the more urgent request that arrives then takes it from the one waiting."""
    case = flat(
        Chunked(64, 1, "priority"), Request(0, 0, 5, 2), Request(1, 100, 5, 1), Request(2, 2000, 5, 1, priority=1)
    )
    assert rows(case) == {0: (0, 1000, 2000), 2: (2000, 3000, 3000), 1: (3000, 4000, 4000)}


def test_ends_of_one_round_are_recorded_by_id() -> None:
    """Requests that end in the same round leave in order of their ids, whatever the order in which they came."""
    case = flat(Chunked(64, 8, "shortest_prompt"), *(Request(i, 0, 9 - i, 4) for i in range(4)))
    recorder = run_engine(case)[2]
    table = recorder.requests.frame()
    assert table["id"].tolist() == [0, 1, 2, 3] and len(set(table["finish_ns"].tolist())) == 1


def test_an_arrival_in_a_full_batch_lets_the_leap_pass() -> None:
    """With the seats taken an arrival changes nothing: the leap of request 0 is not cut."""
    case = flat(Chunked(64, 1), Request(0, 0, 5, 50), *(Request(i, 1000 * i + 7, 5, 1) for i in range(1, 20)))
    frame = run_engine(case)[2].leaps.frame()
    assert frame["rounds"][frame["start_ns"] < 50_000].sum() == 50
    assert (frame["start_ns"] < 50_000).sum() <= 4
    assert rows(case)[0] == (0, 1000, 50_000)


@pytest.mark.parametrize("scheduler", [Chunked(64, 2), Continuous(64, 2)])
def test_an_arrival_between_two_ends_finishes_the_round_under_way(scheduler: Any) -> None:
    """Arrival at 2500: the round until 3000 is finished, the prompt is read from 3000 to 4000."""
    case = flat(scheduler, Request(0, 0, 5, 50), Request(1, 2500, 5, 1))
    assert rows(case)[1] == (3000, 4000, 4000)


def test_static_batches_wait_for_the_last() -> None:
    """Static: requests 0 and 1 of 2 and 4 tokens run until 4000; request 2 of nanosecond 1000 starts only then."""
    case = flat(Static(2), Request(0, 0, 5, 2), Request(1, 0, 5, 4), Request(2, 1000, 5, 1))
    assert rows(case) == {0: (0, 1000, 2000), 1: (0, 1000, 4000), 2: (4000, 5000, 5000)}


@dataclass(frozen=True)
class Noting:
    """Round robin that notes time, request and the states it is shown."""

    seen: list[Any] = field(default_factory=list)
    pulls: ClassVar[bool] = False

    def pick(self, request: Request, view: Any) -> int:
        states = [view.state(i) for i in range(view.count)]
        self.seen.append((request.id, [s.waiting for s in states], [s.running for s in states]))
        return int(request.id % view.count)


def test_users_of_one_nanosecond_ask_in_the_order_of_their_numbers() -> None:
    """Closed loop of four on two replicas: all end at 1000; the next four are routed 4, 5, 6, 7, each seeing those
    before it waiting and none running, as the ends come first."""
    case = flat(Chunked(64, 8), *(Request(i, 0, 5, 1) for i in range(8)), replicas=2, concurrency=4)
    case = Case(**{**vars(case), "router": Noting()})
    run_engine(case)
    late = case.router.seen[4:]
    assert late == [(4, [0, 0], [0, 0]), (5, [1, 0], [0, 0]), (6, [1, 1], [0, 0]), (7, [2, 1], [0, 0])]


def test_a_rejected_request_does_not_silence_its_user() -> None:
    """Closed loop of one user: a question that can never be served is rejected, and the next one is asked."""
    case = flat(
        Chunked(64, 8), Request(0, 0, 5, 1), Request(1, 0, 5, 1, samples=9), Request(2, 0, 5, 1), concurrency=1
    )
    told = run_engine(case)[0]
    assert {i: row[13] for i, row in told.requests.items()} == {0: 0, 1: 1, 2: 0}


def test_a_closed_loop_keeps_the_session() -> None:
    """What the trace says of a request is what the record says, in a closed loop too."""
    case = flat(Chunked(64, 8), Request(0, 0, 5, 1, priority=3, session=7), concurrency=1)
    assert run_engine(case)[0].requests[0][14:16] == (3, 7)
