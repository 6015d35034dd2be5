"""The KV budget in bytes, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from engine_setup import Case, run_engine
from hypothesis import given
from hypothesis import strategies as st

from sim.policies.autoregressive import Autoregressive
from sim.request import Request
from sim.schedulers.chunked import Chunked
from sim.serving.kv import KvBudget, Span


@pytest.mark.parametrize("tokens, blocks", [(0, 0), (1, 1), (15, 1), (16, 1), (17, 2), (160, 10), (161, 11)])
def test_paged_blocks(tokens: int, blocks: int) -> None:
    """A context takes whole blocks: 16 tokens of 100 bytes are 1,600 bytes."""
    assert KvBudget(10**9, (Span(100),)).bytes_of(tokens) == blocks * 1600


@pytest.mark.parametrize("tokens, blocks", [(1, 1), (4, 1), (5, 2), (12, 3), (13, 4), (16, 4), (17, 4), (4000, 4)])
def test_window_holds_what_it_can_touch(tokens: int, blocks: int) -> None:
    """Window 10 with 3 new tokens: 12 tokens in reach, 3 blocks of 4, and one more that they straddle; never beyond."""
    assert KvBudget(10**9, (Span(5, 10),), block_tokens=4, lookahead=3).bytes_of(tokens) == blocks * 4 * 5


def test_pools_add_up() -> None:
    """Target, windowed layers and draft share one budget: 33 tokens are 3 blocks, of which the window keeps 2."""
    book = KvBudget(10**9, (Span(100), Span(10, 9), Span(1)), block_tokens=16)
    assert book.token_bytes == 111
    assert book.bytes_of(33) == 16 * (3 * 100 + 2 * 10 + 3 * 1)


def test_reserved_sets_the_longest_aside() -> None:
    """Reserved mode takes 1,000 tokens in blocks of 16 (63 of them) for any sequence, and shares nothing."""
    book = KvBudget(10**9, (Span(2),), mode="reserved", reserve_tokens=1000)
    assert {book.bytes_of(t) for t in (1, 500, 999)} == {63 * 16 * 2}
    assert book.shared_tokens(64, 3) == 0
    assert book.group_bytes(64, [65, 66]) == 2 * 63 * 16 * 2


def test_samples_share_full_blocks_of_the_prompt() -> None:
    """Prompt 37 in blocks of 16: 32 tokens are shared, 5 are copied on write. Samples of 40, 49 and 37 tokens hold
    the 2 blocks once, and 1, 2 and 1 blocks of their own."""
    book = KvBudget(10**9, (Span(3),))
    assert book.shared_tokens(37, 3) == 32
    assert book.group_bytes(37, [40, 49, 37]) == (2 + 1 + 2 + 1) * 16 * 3
    assert book.shared_tokens(37, 1) == 0
    assert book.group_bytes(37, [49]) == 4 * 16 * 3
    assert book.shared_tokens(15, 2) == 0


def test_most_bytes_is_the_last_round() -> None:
    """Prompt 10, output 6, 3 tokens a round: 10 + 6 - 1 + 3 = 18 tokens, 5 blocks of 4; a second sample adds 3."""
    book = KvBudget(10**9, (Span(1),), block_tokens=4, lookahead=3)
    assert book.most_bytes(10, 6, 1) == 20
    assert book.most_bytes(10, 6, 2) == 20 + 3 * 4


def test_watermark_is_a_share_of_the_budget() -> None:
    """One percent of 12,345 bytes, rounded down."""
    assert KvBudget(12_345, (Span(1),), watermark=0.01).watermark_bytes == 123


@given(
    st.integers(1, 40), st.lists(st.tuples(st.integers(1, 9), st.none() | st.integers(1, 50)), min_size=1, max_size=3),
    st.integers(1, 9), st.integers(0, 9000), st.lists(st.integers(1, 4), max_size=8),
)  # fmt: skip
def test_array_and_scalar_agree_and_never_fall(
    block: int, spans: list[tuple[int, int | None]], look: int, first: int, gains: list[int]
) -> None:
    """``bytes_along`` is ``bytes_of`` for every context, beyond the first table too, and longer never holds less."""
    book = KvBudget(1, tuple(Span(b, w) for b, w in spans), block, lookahead=look)
    contexts = np.cumsum([first, *gains]).tolist()
    along = book.bytes_along(np.array(contexts)).tolist()
    assert along == [KvBudget(1, book.spans, block, lookahead=look).bytes_of(c) for c in contexts]
    assert along == sorted(along)


@given(st.integers(1, 70), st.lists(st.integers(0, 60), min_size=1, max_size=5), st.integers(1, 20))
def test_a_group_holds_no_more_than_its_samples_apart(prompt: int, grown: list[int], block: int) -> None:
    """Sharing saves memory, at most the prompt of all but one sample, and never below the longest sample."""
    book = KvBudget(1, (Span(2),), block)
    contexts = [prompt + g for g in grown]
    apart = sum(book.bytes_of(c) for c in contexts)
    together = book.group_bytes(prompt, contexts)
    assert max(book.bytes_of(c) for c in contexts) <= together <= apart
    assert apart - together <= (len(contexts) - 1) * book.bytes_of(prompt)


@given(st.integers(1, 3000), st.integers(1, 64))
def test_waste_is_less_than_a_block_per_sequence(tokens: int, block: int) -> None:
    """Paging wastes less than one block of a sequence (Kwon et al. 2023, section 4.3)."""
    waste = KvBudget(1, (Span(1),), block).bytes_of(tokens) - tokens
    assert 0 <= waste < block


def test_reserved_serves_fewer_at_once() -> None:
    """The same memory holds more paged sequences: 8 of 32 tokens at 6 bytes paged, 2 of 128 reserved."""
    requests = tuple(Request(i, 0, 20, 12) for i in range(8))
    most = {}
    for mode in ("paged", "reserved"):
        case = Case(
            Autoregressive(), Chunked(512, 8), requests, capacity_bytes=8 * 32 * 6, mode=mode, max_context=127
        )
        most[mode] = int(run_engine(case)[2].leaps.frame()["seats"].max())
    assert most == {"paged": 8, "reserved": 2}


def test_a_window_frees_what_samples_shared() -> None:
    """Two samples that have moved a window past their prompt share nothing: each holds a window of its own."""
    book = KvBudget(10**9, (Span(1, 9),), block_tokens=4)
    own = book.bytes_of(4000)
    assert own == 16  # 9 tokens in reach, 3 blocks of 4 and the one they straddle
    assert book.group_bytes(40, [4000, 4000]) == 2 * own
