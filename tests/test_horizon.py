"""The horizon against a table that is counted again after every step."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.policies import Future
from sim.request import Member, Request, Sequence
from sim.serving.horizon import Entry, Horizon

CHANNELS = 3


def entry(number: int, start: int, lengths: list[int], seed: int) -> Entry:
    """A sequence whose samples run ``lengths`` rounds, with arbitrary rows; bytes of a lone sample never fall."""
    request = Request(number, 0, 1, 1, len(lengths))
    sequence = Sequence.of(request)
    rows = np.random.default_rng(seed).integers(0, 100, (CHANNELS, max(lengths)))
    if len(lengths) == 1:
        rows[0].sort()
    ones = [np.ones(n, dtype=np.int64) for n in lengths]
    futures = [Future(one, np.cumsum(one) - one, one, one) for one in ones]
    return Entry(sequence, start, tuple(rows), list(zip(sequence.members, futures, strict=True)), 0)


def recount(live: list[Entry], round_: int, rounds: int) -> Any:
    """Totals of the rounds ``round_, round_ + 1, ...``, one addition at a time."""
    totals = np.zeros((CHANNELS, rounds), dtype=np.int64)
    for one in live:
        for i in range(rounds):
            place = round_ + i - one.start
            if place < len(one.rows[0]):
                totals[:, i] += [row[place] for row in one.rows]
    return totals


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(st.integers(1, 30), min_size=1, max_size=3)),
        st.tuples(st.just("remove"), st.integers(0, 9)),
        st.tuples(st.just("swap"), st.integers(1, 12)),
        st.tuples(st.just("leap"), st.integers(1, 12)),
    ),
    max_size=30,
)


@settings(max_examples=150)
@given(STEPS, st.integers(4, 20))
def test_totals_ends_and_fit_after_any_steps(steps: list[tuple[str, Any]], length: int) -> None:
    """Adding, taking back, leaping, growing and shifting: totals, ends and room are what a recount says."""
    horizon, live = Horizon(CHANNELS, length), list[Entry]()
    for number, (what, value) in enumerate(steps):
        if what == "add":
            live.append(entry(number, horizon.round, value, number))
            horizon.add(live[-1])
        elif what == "remove" and live:
            horizon.remove(live.pop(value % len(live)))
        elif what == "swap":
            live = swap(horizon, live, value)
        elif what == "leap" and live:
            leap(horizon, live, value)
        check(horizon, live)


def swap(horizon: Horizon, live: list[Entry], more: int) -> list[Entry]:
    """Everybody goes on in another way from now on, and ends ``more`` rounds after the round that comes next."""
    pairs = []
    for old in live:
        done = horizon.round - old.start
        lengths = [done + more + i for i, (_, future) in enumerate(old.futures) if len(future.gains) > done]
        new = entry(old.sequence.request.id, old.start, lengths, more)
        rows = tuple(np.concatenate((a[:done], b[done:])) for a, b in zip(old.rows, new.rows, strict=True))
        pairs.append((old, Entry(new.sequence, old.start, rows, new.futures, 0)))
    horizon.swap(pairs)
    return [new for _, new in pairs]


def leap(horizon: Horizon, live: list[Entry], most: int) -> None:
    """Advance by at most ``most`` rounds and no further than the first end; whoever ended is reported, by id."""
    rounds = min(most, horizon.rounds_to_end())
    due = horizon.round + rounds
    want = sorted(
        (e.sequence.request.id, m.sample) for e in live for m, f in e.futures if e.start + len(f.gains) == due
    )
    ended = horizon.advance(rounds)
    assert sorted((e.sequence.request.id, m.sample) for e, m in ended) == want
    ids = [e.sequence.request.id for e, _ in ended]
    assert ids == sorted(ids)
    for one in [e for e in live if e.start + len(e.rows[0]) <= horizon.round]:
        live.remove(one)
        horizon.close(one)


def check(horizon: Horizon, live: list[Entry]) -> None:
    """The next 15 rounds against a recount."""
    rounds = min(15, horizon.totals.shape[1] - (horizon.round - horizon.base))
    want = recount(live, horizon.round, rounds)
    assert (horizon.window(rounds) == want).all()
    assert horizon.next_bytes() == want[0, 0]
    assert horizon.sums(rounds) == want[2:].sum(axis=1).tolist()
    if live:
        ends = [e.start + len(f.gains) for e in live for _, f in e.futures]
        first = min(end for end in ends if end > horizon.round) - horizon.round
        assert horizon.rounds_to_end() == first
        budget = int(np.median(recount(live, horizon.round, first)[0]))
        fits = recount(live, horizon.round, first)[0] <= budget
        assert horizon.rounds_that_fit(first, budget) == (first if fits.all() else int(fits.argmin()))


def test_a_sequence_joins_at_the_next_round() -> None:
    """An entry that starts at another round than the next one is a broken invariant."""
    horizon = Horizon(CHANNELS)
    try:
        horizon.add(entry(0, 1, [3], 0))
    except AssertionError:
        return
    raise AssertionError("the horizon took a sequence that starts later")


def test_rounds_with_enough_seats_by_hand() -> None:
    """Seats fall 3, 3, 2, 2, 1, 1: how far at least two are left, from the first round on and from the second."""
    horizon = Horizon(CHANNELS)
    for number, length in enumerate((6, 4, 2)):
        row = np.ones(length, dtype=np.int64)
        one = entry(number, 0, [length], 0)
        horizon.add(Entry(one.sequence, 0, (row, row, row), one.futures, 0))
    assert [horizon.seats_after(i) for i in range(6)] == [3, 3, 2, 2, 1, 1]
    assert [horizon.rounds_with(2, first, 6) for first in (0, 1, 3)] == [4, 4, 4]
    assert horizon.rounds_with(2, 0, 3) == 3 and horizon.rounds_with(1, 0, 6) == 6


def test_removed_ends_are_forgotten() -> None:
    """Of a preempted sequence no sample ends, also where another one ends in the same round."""
    horizon = Horizon(CHANNELS)
    gone, stays = entry(0, 0, [3], 0), entry(1, 0, [3], 1)
    horizon.add(gone)
    horizon.add(stays)
    horizon.advance(1)
    horizon.remove(gone)
    assert horizon.rounds_to_end() == 2
    assert [(e.sequence.request.id, type(m)) for e, m in horizon.advance(2)] == [(1, Member)]
    assert not horizon.window(5).any()
