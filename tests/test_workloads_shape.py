"""Transforms of a stream: hand-counted results, and the same for every chunk size."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads import open_trace, rechunk, shape, workload
from workloads.columns import Columns, join


def requests(arrival_ns, **more) -> Columns:
    n = len(arrival_ns)
    tokens = np.arange(1, n + 1, dtype=np.int64)
    return Columns(np.array(arrival_ns, np.int64), tokens, 10 * tokens, **more)


def ints(*values):
    return np.array(values, np.int64)


def run(stream) -> Columns:
    return join(list(stream))


def rows_of(stream) -> list[tuple[int, int]]:
    """(arrival, prompt) of every request."""
    return [row for c in stream for row in zip(c.arrival_ns.tolist(), c.prompt_tokens.tolist(), strict=True)]


def times(stream) -> list[int]:
    return [int(t) for chunk in stream for t in chunk.arrival_ns]


TEN = requests(range(0, 100, 10))


# hand counts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
def test_slices(rows):
    """Rows 3 to 6 keep their times; the window [25, 61) ns is counted from its start."""
    assert times(shape.slice_rows(rechunk([TEN], rows), 3, 7)) == [30, 40, 50, 60]
    assert times(shape.slice_rows(rechunk([TEN], rows), 8)) == [80, 90]
    assert times(shape.slice_time(rechunk([TEN], rows), 25e-9, 61e-9)) == [5, 15, 25, 35]


def test_scale_rate_divides_every_time():
    """Twice the rate is half the time; 3 ns / 2 rounds to even."""
    assert times(shape.scale_rate([requests([0, 3, 8])], 2)) == [0, 2, 4]
    for factor in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="rate_scale"):
            list(shape.scale_rate([TEN], factor))
    with pytest.raises(ValueError, match="too small"):
        list(shape.scale_rate([TEN], 1e-300))


def test_loop_keeps_the_mean_rate():
    """Three requests 10 ns apart, from 5: a pass lasts span plus a gap, to its own zero: 5 15 25 | 40 50 60."""
    assert times(shape.loop(lambda: iter([requests([5, 15, 25])]), 2)) == [5, 15, 25, 40, 50, 60]
    assert times(shape.loop(lambda: iter([]), 3)) == []


def test_cap_cuts_requests_tokens_and_blocks():
    """Prompts to 2, outputs to 15, one block of two tokens left of three."""
    stream = [requests([0, 1, 2], hash_ids=[ints(1), ints(2), ints(3, 4)], hash_block_tokens=2)]
    got = run(shape.cap(stream, 3, max_prompt=2, max_output=15))
    assert got.prompt_tokens.tolist() == [1, 2, 2] and got.output_tokens.tolist() == [10, 15, 15]
    assert [ids.tolist() for ids in got.hash_ids] == [[1], [2], [3]]
    assert len(run(shape.cap(rechunk([TEN], 3), 4))) == 4


def test_mix_merges_by_time_and_ties_go_to_the_earlier_stream():
    """0 10 20 and 10 10 30, each with its own tokens."""
    a, b = requests([0, 10, 20]), requests([10, 10, 30])
    got = run(shape.mix([[a], [b]], [1, 1], 1))
    assert got.arrival_ns.tolist() == [0, 10, 10, 10, 20, 30]
    assert got.prompt_tokens.tolist() == [1, 2, 1, 2, 3, 3]


def test_mix_keeps_conversations_and_blocks_apart():
    """Session 0 of two streams are two sessions; -1 stays none; so do block ids; absent columns are filled."""
    a = requests([0, 1], session=ints(0, -1), hash_ids=[ints(7), ints(8)], hash_block_tokens=512)
    b = requests([2, 3], session=ints(0, 1), priority=ints(5, 6))
    got = run(shape.mix([[a], [b]], [1, 1], 1))
    assert got.session.tolist() == [0, -1, 1, 3]
    assert [ids.tolist() for ids in got.hash_ids] == [[14], [16], [], []] and got.hash_block_tokens == 512
    assert got.priority.tolist() == [0, 0, 5, 6]


def test_traces_with_other_block_sizes_do_not_mix():
    """Ids of blocks of 64 and of 512 tokens mean different things."""
    parts = [[requests([0], hash_ids=[ints(1)], hash_block_tokens=size)] for size in (64, 512)]
    with pytest.raises(ValueError, match="must share one prefix block size"):
        run(shape.mix(parts, [1, 1], 1))


def test_thinning_keeps_the_share_asked_for():
    """Weight 0.3 keeps 30 % of 40,000, within 4 standard errors; weights beyond (0, 1] are refused."""
    many = requests(range(40_000))
    kept = len(run(shape.mix([[many]], [0.3], 1)))
    assert abs(kept - 12_000) < 4 * (40_000 * 0.3 * 0.7) ** 0.5
    for weight in (0, 1.5, -1):
        with pytest.raises(ValueError, match="mix: weight"):
            shape.mix([[many]], [weight], 1)


def test_spread_stays_in_its_quantum_and_never_passes_the_next_stamp():
    """Stamps 0 and 5 s with a quantum of 3 s, then 6 s: [0, 3), [5, 6), [6, 9)."""
    stamps = np.repeat([0, 5 * 10**9, 6 * 10**9], 100)
    got = run(shape.spread_quantum([requests(stamps)], 3 * 10**9, 1)).arrival_ns
    assert (np.diff(got) >= 0).all()
    for part, low, high in ((got[:100], 0, 3), (got[100:200], 5, 6), (got[200:], 6, 9)):
        assert low <= part.min() / 1e9 < part.max() / 1e9 < high
        assert abs(part.mean() / 1e9 - (low + high) / 2) < 4 * (high - low) / (12 * 100) ** 0.5


def test_spread_makes_mooncake_look_like_arrivals():
    """Before: 1,180 distinct stamps. After: as many as requests, same span, gaps near Poisson (CV 3.0 -> about 1)."""
    spec = {"trace": "mooncake-conversation", "spread_quantum_s": 3}
    before, after = run(open_trace("mooncake").chunks()), run(workload(spec, 1))
    assert len(np.unique(before.arrival_ns)) == 1180 and len(np.unique(after.arrival_ns)) == 12_031
    assert np.abs(after.arrival_ns - before.arrival_ns).max() < 3 * 10**9
    gaps = np.diff(after.arrival_ns)
    assert 0.9 < gaps.std() / gaps.mean() < 1.2


# the same for every chunking ------------------------------------------------------------------------

stamps = st.lists(st.integers(0, 12), min_size=1, max_size=30).map(sorted)


@given(stamps=stamps, rows=st.integers(1, 31))
def test_spread_does_not_depend_on_chunks(stamps, rows):
    """A stamp may run over any chunk boundary."""
    whole = run(shape.spread_quantum([requests(stamps)], 10**6, 3))
    cut = run(shape.spread_quantum(rechunk([requests(stamps)], rows), 10**6, 3))
    assert np.array_equal(whole.arrival_ns, cut.arrival_ns)
    assert (np.diff(whole.arrival_ns) >= 0).all() and len(whole) == len(stamps)


@given(streams=st.lists(stamps, min_size=1, max_size=4), rows=st.integers(1, 9), weight=st.sampled_from([1.0, 0.6]))
def test_mix_is_a_stable_sort_whatever_the_chunks(streams, rows, weight):
    """The merge equals sorting everything by (time, stream, row), ties included."""
    parts = [requests(at) for at in streams]
    weights = [weight] * len(parts)
    cut = list(shape.mix([rechunk([part], rows) for part in parts], weights, 5))
    kept = [list(shape.thin([part], weight, 5, i)) if weight < 1 else [part] for i, part in enumerate(parts)]
    flat = [(t, i, p) for i, part in enumerate(kept) for t, p in rows_of(part)]
    got = rows_of(cut)
    assert got == [(t, p) for t, _, p in sorted(flat)]


@given(stamps=stamps, rows=st.integers(1, 31), times_over=st.integers(1, 4), factor=st.sampled_from([0.5, 1.0, 3.0]))
def test_other_transforms_do_not_depend_on_chunks(stamps, rows, times_over, factor):
    """Loop, scale, slice and cap, one behind the other; arrivals stay in order."""

    def piped(size: int) -> Columns:
        looped = shape.loop(lambda: rechunk([requests(stamps)], size), times_over)
        return join([requests([]), *shape.cap(shape.scale_rate(shape.slice_time(looped, 1e-9), factor), 40, 5, 50)])

    a, b = piped(31), piped(rows)
    assert np.array_equal(a.arrival_ns, b.arrival_ns) and np.array_equal(a.prompt_tokens, b.prompt_tokens)
    assert (np.diff(a.arrival_ns) >= 0).all() and (a.prompt_tokens <= 5).all()


def test_rechunk_gives_what_it_had_before_an_error():
    """A stream that fails after 5 rows yields them, then fails."""

    def failing():
        yield TEN.part(0, 5)
        raise ValueError("broken")

    got = []
    with pytest.raises(ValueError, match="broken"):
        for chunk in rechunk(failing(), 3):
            got.append(len(chunk))
    assert got == [3, 2]
    with pytest.raises(ValueError, match="rows: 0"):
        list(rechunk([TEN], 0))
