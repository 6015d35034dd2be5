"""Adapters really multiplied in one batch: counts, and the same results as each adapter alone or merged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import small_shape
from variant_counting import counted

from sim.reference.variants.peft import Adapted, merged, reset, with_bottlenecks, with_lora, with_prefixes
from sim.validation.counts import Tally, added, measured, mismatches, ragged
from sim.validation.stand_in import stand_in
from sim.variants.peft import Peft
from sim.variants.peft_layers import TARGETS

SHAPE = small_shape()
PASSES = st.lists(st.lists(st.integers(0, 4), min_size=4, max_size=4), min_size=1, max_size=3)
USES = st.lists(st.integers(0, 2), min_size=4, max_size=4)


def both(twin: Adapted, passes: list[list[int]], uses: list[int], **options: Any) -> tuple[Tally, Tally]:
    """What simulator and witness count; the simulator is told how many adapters each pass uses."""
    cache, tallies = twin.new_cache(4), []
    for news in (p for p in passes if sum(p)):
        work = ragged(news, cache.lengths.tolist(), (None,), sum(n > 0 for n in news))
        distinct = len({uses[i] for i, n in enumerate(news) if n})
        tallies.append(counted(SHAPE, [work], Peft(adapters=3, in_batch=distinct, **options)))
        twin.meter.sample(twin.forward([np.arange(n) % SHAPE.vocab for n in news], cache))
    return added(*tallies), measured(twin.meter)


@settings(max_examples=30)
@given(passes=PASSES, uses=USES, rank=st.integers(1, 4), targets=st.sets(st.sampled_from(TARGETS), min_size=1))
def test_lora_counts_alike(passes: list[list[int]], uses: list[int], rank: int, targets: set[str]) -> None:
    """Ragged batches, several adapters each: FLOPs and bytes of every op, exactly."""
    if not any(map(sum, passes)):
        return
    twin = with_lora(stand_in(SHAPE), rank, sorted(targets), 3, uses)
    ours, theirs = both(twin, passes, uses, rank=rank, targets=sorted(targets))
    assert not [str(m) for m in mismatches(ours, theirs)]


@settings(max_examples=20)
@given(passes=PASSES, uses=USES, width=st.integers(1, 5), places=st.sampled_from([1, 2]))
def test_bottlenecks_count_alike(passes: list[list[int]], uses: list[int], width: int, places: int) -> None:
    """Houlsby's two places or one."""
    if not any(map(sum, passes)):
        return
    twin = with_bottlenecks(stand_in(SHAPE), width, places, 3, uses)
    ours, theirs = both(twin, passes, uses, method="adapter", bottleneck=width, places=places)
    assert not [str(m) for m in mismatches(ours, theirs)]


@settings(max_examples=20)
@given(news=st.integers(1, 4), steps=st.integers(1, 3), uses=USES, tokens=st.integers(1, 5))
def test_prompts_count_alike(news: int, steps: int, uses: list[int], tokens: int) -> None:
    """Learned keys and values, read once for each adapter of a batch whose texts are attended together."""
    twin = with_prefixes(stand_in(SHAPE), tokens, 3, uses)
    ours, theirs = both(twin, [[news] * 4] * steps, uses, method="prompt", tokens=tokens)
    assert not [str(m) for m in mismatches(ours, theirs)]


def test_a_batch_of_adapters_gives_what_each_gives_merged() -> None:
    """Three sequences, two adapters: logits of the merged models."""
    base = stand_in(SHAPE, 4)
    twin = with_lora(base, 3, TARGETS, 2, [0, 1, 0])
    texts = [np.array([1, 2, 3]), np.array([4, 5]), np.array([6])]
    together = twin.forward(texts, twin.new_cache(3))
    for i, adapter in enumerate((0, 1, 0)):
        alone = merged(twin, adapter)
        assert np.allclose(together[i], alone.forward([texts[i]], alone.new_cache()), atol=1e-3)
    assert not np.allclose(together[0], base.forward([texts[0]], base.new_cache()), atol=1e-2)


@pytest.mark.parametrize(
    "make", [lambda b: with_bottlenecks(b, 3, 2, 2, [0, 1]), lambda b: with_prefixes(b, 3, 2, [0, 1])]
)
def test_sequences_do_not_meet(make: Any) -> None:
    """A sequence's logits do not depend on whose adapters run beside it."""
    twin = make(stand_in(SHAPE, 4))
    texts = [np.array([1, 2, 3]), np.array([4, 5, 6])]
    together = twin.forward(texts, twin.new_cache(2))
    for i in range(2):
        alone = reset(twin, [i])
        assert np.allclose(together[i], alone.forward([texts[i]], alone.new_cache())[0], atol=1e-4)


def test_what_a_model_learns_is_as_many_numbers_as_the_simulator_says() -> None:
    """Arrays counted."""
    base = stand_in(SHAPE)
    lora = with_lora(base, 3, TARGETS, 1, [0])
    assert sum(a.size + b.size for a, b in lora.pairs[0].values()) == Peft(rank=3, targets=TARGETS).trainable(SHAPE)
    small = with_bottlenecks(base, 5, 2, 1, [0])
    numbers = sum(a.size + b.size for a, b in small.pairs[0].values())
    assert numbers == Peft("adapter", bottleneck=5).trainable(SHAPE)
    prefix = with_prefixes(base, 4, 1, [0])
    assert sum(a.size + b.size for a, b in prefix.prefixes[0]) == Peft("prompt", tokens=4).trainable(SHAPE)
