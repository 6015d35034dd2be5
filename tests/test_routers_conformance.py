"""What every router owes: found by name, one of those that are up, the same when asked again, options checked."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import pytest
from engine_setup import ROUTERS, examples, label
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.plugin import build, discover
from sim.request import Request
from sim.routers import GroupFacts, ReplicaState
from sim.serving.luck import GOLDEN, Luck, mix

ALL = pytest.mark.parametrize("router", examples("sim.routers", ROUTERS), ids=label)


@dataclass(frozen=True)
class Shown:
    """A view made of plain numbers: (outstanding, running, KV bytes, cached tokens, place, name) of each replica."""

    request: Request
    rows: tuple[tuple[int, int, int, int, int, str], ...]
    seed: int = 0

    @property
    def count(self) -> int:
        return len(self.rows)

    def outstanding(self, i: int) -> int:
        return self.rows[i][0]

    def state(self, i: int) -> ReplicaState:
        row = self.rows[i]
        return ReplicaState(max(0, row[0] - row[1]), row[1], row[2], 100)

    def cached_prefix(self, i: int) -> int:
        return self.rows[i][3]

    def facts(self, i: int) -> GroupFacts:
        place, name = self.rows[i][4:]
        return GroupFacts(name, place, 1.0 + place, [3.0, 1.0, None][place], 4)

    def score(self, key: int, i: int) -> int:
        return mix(mix(key) + i * GOLDEN)

    def draws(self, count: int) -> list[float]:
        drawn: list[float] = Luck(self.seed).of(self.request.id).uniforms("router", 0, count).tolist()
        return drawn


@st.composite
def shown(draw: Any) -> Shown:
    """Anything that may be up."""
    row = st.tuples(
        st.integers(0, 9), st.integers(0, 4), st.integers(0, 100), st.integers(0, 50), st.integers(0, 2),
        st.sampled_from(["a", "b", ""]),
    )  # fmt: skip
    request = Request(
        draw(st.integers(0, 10**6)), 0, draw(st.integers(1, 60)), 5, priority=draw(st.integers(-1, 2)),
        session=draw(st.integers(-1, 5)),
    )  # fmt: skip
    return Shown(request, tuple(draw(st.lists(row, min_size=1, max_size=6))), draw(st.integers(0, 3)))


@ALL
@settings(max_examples=20)
@given(view=shown())
def test_a_router_picks_one_that_is_up(router: Any, view: Shown) -> None:
    """A number within range, or None from one that pulls; the same when asked again, as it keeps nothing."""
    picked = router.pick(view.request, view)
    assert picked == router.pick(view.request, view)
    assert picked is None if picked is None and router.pulls else 0 <= picked < view.count


@ALL
@settings(max_examples=20)
@given(view=shown())
def test_one_replica_is_no_choice(router: Any, view: Shown) -> None:
    """Who has nothing to do takes the request where nobody else is up."""
    alone = Shown(view.request, ((0, 0, 0, 0, view.rows[0][4], view.rows[0][5]),))
    assert router.pick(alone.request, alone) == 0


@pytest.mark.parametrize("name", sorted(discover("sim.routers")))
def test_a_router_is_a_frozen_dataclass(name: str) -> None:
    """No base class, values that compare and hash."""
    kind = discover("sim.routers")[name]
    made = build("sim.routers", "router", {"name": name, **ROUTERS[name][0]})
    assert kind.__bases__ == (object,) and made == build("sim.routers", "router", {"name": name, **ROUTERS[name][0]})
    assert hash(made) == hash(made) and isinstance(made.pulls, bool)


@pytest.mark.parametrize("name", sorted(ROUTERS))
def test_router_options_are_checked(name: str) -> None:
    """Every option refuses nonsense in one line that names it; a misspelt one is suggested."""
    good = ROUTERS[name][0]
    with pytest.raises(ValueError, match=r"^x\.orders: [^\n]+$"):
        build("sim.routers", "x", {**good, "name": name, "orders": 1})
    for option in dataclasses.fields(discover("sim.routers")[name]):
        refused = 0
        nonsense: tuple[Any, ...] = (-1, "no such", math.nan, math.inf, [], {}, [None])
        for value in nonsense:
            try:
                build("sim.routers", "x", {**good, "name": name, option.name: value})
            except ValueError as error:
                assert option.name in str(error) and "\n" not in str(error)
                refused += 1
        assert refused == len(nonsense)


def rows(*outstanding: int, **more: Any) -> tuple[tuple[int, int, int, int, int, str], ...]:
    """Replicas of one group with so many requests each; ``cached``, ``kv``, ``place``: lists beside it."""
    n = len(outstanding)
    columns = [more.get(key, [0] * n) for key in ("kv", "cached", "place")]
    return tuple(
        (o, min(o, 4), kv, cached, place, "abc"[place])
        for o, kv, cached, place in zip(outstanding, *columns, strict=True)
    )


@pytest.mark.parametrize(
    "said, request_, seen, want",
    [
        ("round_robin", Request(7, 0, 1, 1), rows(9, 0, 0), 1),
        ("least_outstanding", Request(0, 0, 1, 1), rows(3, 1, 2), 1),
        ("least_outstanding", Request(2, 0, 1, 1), rows(1, 1, 1, 1), 2),
        ({"name": "least_outstanding", "by_weight": True}, Request(0, 0, 1, 1), rows(2, 3, 4, place=[0, 1, 2]), 2),
        ("least_kv", Request(0, 0, 1, 1), rows(1, 2, 3, kv=[50, 20, 30]), 1),
        ("least_kv", Request(0, 0, 1, 1), rows(1, 6, 3, kv=[50, 20, 30]), 2),
        ({"name": "central_queue", "slots": 2}, Request(0, 0, 1, 1), rows(2, 1, 2), 1),
        ({"name": "central_queue", "slots": 2}, Request(0, 0, 1, 1), rows(2, 3, 2), None),
        ("prefix_affinity", Request(0, 0, 9000, 1), rows(1, 3, 0, cached=[100, 1200, 0]), 2),
        ("prefix_affinity", Request(0, 0, 9000, 1), rows(1, 3, 0, cached=[100, 1600, 0]), 1),
        ({"name": "cost_aware", "limit": 0.5}, Request(0, 0, 1, 1), rows(0, 1, 0, place=[0, 1, 2]), 1),
        ({"name": "cost_aware", "limit": 0.5}, Request(0, 0, 1, 1), rows(0, 2, 0, place=[0, 1, 2]), 0),
        ({"name": "cost_aware", "limit": 0.5}, Request(0, 0, 1, 1), rows(3, 4, 2, place=[0, 1, 2]), 2),
        ({"name": "by_size", "groups": ["a", "b"], "steps": [9]}, Request(0, 0, 8, 1), rows(5, 0, place=[0, 1]), 0),
        ({"name": "by_size", "groups": ["a", "b"], "steps": [9]}, Request(0, 0, 9, 1), rows(0, 5, place=[0, 1]), 1),
        ({"name": "by_size", "groups": ["a", "b"], "steps": [9]}, Request(0, 0, 9, 1), rows(3, 2, place=[0, 0]), 1),
    ],
)
def test_who_is_picked(said: Any, request_: Request, seen: Any, want: int | None) -> None:
    """By hand: outstanding and KV of each replica, and whom the rule picks. Group a costs 3, b 1, c nobody knows."""
    assert build("sim.routers", "router", said).pick(request_, Shown(request_, seen)) == want


@pytest.mark.parametrize("name, shares", [("random", [1 / 3] * 3), ("weighted", [1 / 6, 2 / 6, 3 / 6])])
def test_shares_of_random_routers(name: str, shares: list[float]) -> None:
    """6,000 requests: each share within 4 standard deviations of what is asked for."""
    router = build("sim.routers", "router", name)
    picked = [
        router.pick(r, Shown(r, rows(9, 5, 0, place=[0, 1, 2]))) for r in (Request(i, 0, 1, 1) for i in range(6000))
    ]
    for i, share in enumerate(shares):
        assert abs(picked.count(i) / 6000 - share) < 4 * math.sqrt(share * (1 - share) / 6000)


def test_power_of_two_never_looks_at_one_replica_twice() -> None:
    """Among three, two different ones are drawn, each pair equally often; the longest line is never joined."""
    router = build("sim.routers", "router", "power_of_two")
    requests = [Request(i, 0, 1, 1) for i in range(3000)]
    picked = [router.pick(r, Shown(r, rows(0, 1, 2))) for r in requests]
    assert 2 not in picked and abs(picked.count(0) / 3000 - 2 / 3) < 0.035


def test_a_lost_replica_moves_only_its_own_sessions() -> None:
    """Rendezvous hashing: of 500 sessions on five replicas, those of the one that goes move, and nobody else."""
    router = build("sim.routers", "router", "session_sticky")

    class Five(Shown):
        def score(self, key: int, i: int) -> int:
            return super().score(key, self.rows[i][1])

    whole = tuple((0, number, 0, 0, 0, "a") for number in range(5))
    requests = [Request(i, 0, 1, 1, session=i) for i in range(500)]
    before = [whole[router.pick(r, Five(r, whole))][1] for r in requests]
    left = tuple(row for row in whole if row[1] != 2)
    after = [left[router.pick(r, Five(r, left))][1] for r in requests]
    assert all(new == old for old, new in zip(before, after, strict=True) if old != 2)
    assert {before.count(i) for i in range(5)} <= set(range(65, 140)) and 2 not in after
