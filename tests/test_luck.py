"""Luck: uniform, addressed, the same however it is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sim.serving.luck import GOLDEN, MASK, PURPOSES, Luck, mix

MANY, FEW = 50_000, 3_000


def axis(name: str, seed: int) -> Any:
    """``MANY`` draws along one axis of the address, ``FEW`` where each is of another stream."""
    luck = Luck(seed)
    if name == "round":
        return luck.of(17, 2).uniforms("acceptance", 0, MANY)
    if name == "request":
        return np.array([luck.of(i).uniforms("acceptance", 3, 1)[0] for i in range(FEW)])
    if name == "sample":
        return np.array([luck.of(5, i).uniforms("match", 0, 1)[0] for i in range(FEW)])
    return np.array([Luck(i).of(5).uniforms("acceptance", 0, 1)[0] for i in range(FEW)])


AXES = ["round", "request", "sample", "seed"]


@pytest.mark.parametrize("name", AXES)
def test_uniform_along_every_axis(name: str) -> None:
    """Rounds, requests, samples and seeds each give uniform draws (Kolmogorov-Smirnov and chi-square, p > 1e-4)."""
    u = axis(name, 1)
    assert u.min() >= 0.0 and u.max() < 1.0
    assert stats.kstest(u, "uniform").pvalue > 1e-4
    assert stats.chisquare(np.bincount((u * 64).astype(int), minlength=64)).pvalue > 1e-4


@pytest.mark.parametrize("name", AXES)
def test_neighbours_are_independent(name: str) -> None:
    """Draws at neighbouring addresses fill an 8 by 8 table evenly (chi-square, p > 1e-4)."""
    u = axis(name, 2)
    for lag in (1, 2, 7):
        cells = (u[:-lag] * 8).astype(int) * 8 + (u[lag:] * 8).astype(int)
        assert stats.chisquare(np.bincount(cells, minlength=64)).pvalue > 1e-4


def test_purposes_requests_and_seeds_do_not_share_a_stream() -> None:
    """No 64-bit draw occurs twice among streams of other purposes, requests, samples and seeds, shifted or not."""
    streams = [
        Luck(seed).of(request, sample).uniforms(purpose, 0, 500)
        for seed in (0, 1) for request in (0, 1, 2) for sample in (0, 1) for purpose in PURPOSES
    ]  # fmt: skip
    draws = np.concatenate(streams)
    assert len(np.unique(draws)) == len(draws)
    correlations = np.corrcoef(np.array(streams)) - np.eye(len(streams))
    assert np.abs(correlations).max() < 5.5 / np.sqrt(500)


@given(st.integers(0, 2**31), st.integers(0, 2**31), st.integers(0, 9), st.integers(0, 6000), st.integers(1, 60))
def test_a_draw_is_its_address(seed: int, request: int, sample: int, start: int, count: int) -> None:
    """Together, one by one, from elsewhere, or after others were drawn: the same draw."""
    luck = Luck(seed)
    together = luck.of(request, sample).uniforms("match", start, count)
    Luck(seed).of(request + 1).uniforms("match", 0, 3)
    one_by_one = [Luck(seed).of(request, sample).uniforms("match", start + i, 1)[0] for i in range(count)]
    assert together.tolist() == one_by_one


def test_what_is_kept_is_what_was_drawn() -> None:
    """One ``Luck`` that has seen thousands of addresses still says what a new one says, near and far from the start."""
    luck, addresses = Luck(5), [(i * 37 % 9001, i % 3, i * 5 % 140) for i in range(2000)]
    for request, sample, start in [*addresses, *addresses[:200]]:
        said = luck.of(request, sample).uniforms("match", start, 3)
        key = luck.stream(request, sample, "match")
        want = [(mix(key + (start + i + 1) * GOLDEN) >> 11) * 2.0**-53 for i in range(3)]
        assert said.tolist() == want


def test_nobody_can_write_into_the_luck_of_others() -> None:
    """Draws that are kept are read-only, or a copy."""
    luck = Luck(6)
    first = luck.of(3).uniforms("match", 0, 9)
    said = first.tolist()
    if first.flags.writeable:
        first[:] = 0.0
    assert luck.of(3).uniforms("match", 0, 9).tolist() == said


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 20))
def test_against_plain_integers(seed: int, request: int, round_: int) -> None:
    """SplitMix64 in Python integers: a counter times the golden gamma, through the finaliser, upper 53 bits."""
    key = mix(mix(mix(mix(seed + GOLDEN) ^ request) + 3 * GOLDEN) + PURPOSES["acceptance"] * GOLDEN)
    word = mix((key + (round_ + 1) * GOLDEN) & MASK)
    assert Luck(seed).of(request, 3).uniforms("acceptance", round_, 1)[0] == (word >> 11) * 2.0**-53


def test_published_splitmix64() -> None:
    """The first outputs of SplitMix64 from state 1234567, as the reference implementation prints them."""
    state, out = 1234567, []
    for _ in range(3):
        state = (state + GOLDEN) & MASK
        out.append(mix(state))
    assert out == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_unknown_purpose_is_an_error() -> None:
    """A misspelt purpose must not get a stream of its own."""
    with pytest.raises(KeyError):
        Luck(0).of(0).uniforms("acceptence", 0, 1)
