"""Real routing: buffers of fixed capacity count as the variant says, visits follow the measured popularity."""

from __future__ import annotations

from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import small_shape
from variant_counting import counted

from sim.reference.sampling import stream
from sim.reference.variants.moe import RoutedMoe, popularity, visited
from sim.validation.counts import measured, mismatches, ragged
from sim.validation.stand_in import stand_in
from sim.variants.moe import Moe


@settings(max_examples=25)
@given(
    capacity=st.sampled_from([None, 0.5, 1.0, 1.25, 2.0]), experts=st.integers(2, 7), seed=st.integers(0, 9),
    passes=st.lists(st.lists(st.integers(0, 6), min_size=2, max_size=2), min_size=1, max_size=3),
)  # fmt: skip
def test_every_op_counts_as_real_routing_does(
    capacity: float | None, experts: int, seed: int, passes: list[list[int]]
) -> None:
    """FLOPs and bytes of every op, exactly; weights of experts as visited, or all where buffers are fixed."""
    shape = small_shape(experts=experts)
    twin = RoutedMoe.of(stand_in(shape, seed), capacity)
    cache, works = twin.new_cache(2), []
    for news in (p for p in passes if sum(p)):
        works.append(ragged(news, cache.lengths.tolist(), shape.windows, sum(n > 0 for n in news)))
        twin.meter.sample(twin.forward([np.arange(n) % shape.vocab for n in news], cache))
    seen = {i: sum(visited(found)) for i, found in twin.choices.items()}
    ours = counted(shape, works, Moe(capacity=capacity), visits=None if capacity else seen)
    assert not [str(m) for m in mismatches(ours, measured(twin.meter))]


def test_visits_follow_the_popularity_measured_on_other_text() -> None:
    """Experts visited by batches of 6: predicted from disjoint tokens, within 95 % of the measured mean's interval."""
    shape = small_shape(layers=1, experts=16)
    twin = RoutedMoe.of(stand_in(shape, 3))
    luck = stream(5, "tokens")

    def run(passes: int, tokens: int) -> list[np.ndarray]:
        twin.choices.clear()
        for _ in range(passes):
            cache = twin.new_cache(tokens)
            twin.forward([luck.integers(0, shape.vocab, 1) for _ in range(tokens)], cache, rows="none")
        return twin.choices[0]

    shares = popularity(run(40, 50), 16)
    found = visited(run(400, 6))
    law = Moe(popularity=(shares + 1e-6).tolist())
    mean, error = np.mean(found), np.std(found) / 20
    assert law.visited(16, 2, 6) == pytest.approx(mean, abs=2.5 * error + 0.05)
    assert Moe().visited(16, 2, 6) > mean + 4 * error, "uniform routing would visit more"


def test_a_full_expert_drops_what_comes_later() -> None:
    """Capacity 0.5 of four tokens and two choices among two experts: each buffer holds half, the rest is dropped."""
    shape = small_shape(layers=1, experts=2)
    twin = RoutedMoe.of(stand_in(shape, 0), 0.5)
    twin.forward([np.arange(4)], twin.new_cache(), rows="none")
    assert twin.dropped == 8 - 2 * ceil(0.5 * 8 / 2)


def test_room_for_all_changes_nothing() -> None:
    """With buffers as large as the pass the output is that of the plain model."""
    shape = small_shape(experts=4)
    base = stand_in(shape, 1)
    wide = RoutedMoe.of(base, 4.0)
    out, plain = (m.forward([np.arange(9)], m.new_cache(), rows="all") for m in (wide, base))
    assert np.allclose(out, plain, atol=1e-4) and not wide.dropped
