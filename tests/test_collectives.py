"""Collectives: bytes sent by hand, against a ring that is played through, and what an all-to-all of experts meets."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.analytic.collectives import KINDS, chance_met, link_seconds, messages, sent_bytes
from sim.analytic.hardware import Link


def played_ring(devices: int, chunk_bytes: int, rounds: int) -> tuple[int, int]:
    """(bytes sent by a device, messages one after another) of a ring in which everyone passes a chunk on each time."""
    sent = steps = 0
    for _ in range(rounds * (devices - 1)):
        sent, steps = sent + chunk_bytes, steps + 1
    return sent, steps


@pytest.mark.parametrize("devices", [1, 2, 3, 4, 8, 64])
def test_rings_send_what_a_played_ring_sends(devices: int) -> None:
    """An all-reduce goes round twice, its halves once, with one n-th of the buffer at a time."""
    size = 1000 * devices
    for kind, rounds in (("all_reduce", 2), ("reduce_scatter", 1), ("all_gather", 1), ("all_to_all", 1)):
        sent, steps = played_ring(devices, 1000, rounds)
        assert sent_bytes(kind, devices, size) == pytest.approx(sent)
        assert messages(kind, devices) == steps
    assert sent_bytes("send", devices, size) == size and messages("send", devices) == 1


def test_an_all_reduce_is_a_reduce_scatter_and_an_all_gather() -> None:
    halves = sent_bytes("reduce_scatter", 8, 4096) + sent_bytes("all_gather", 8, 4096)
    assert sent_bytes("all_reduce", 8, 4096) == halves == 2 * 7 / 8 * 4096


def test_seconds_are_latency_and_size_over_bandwidth() -> None:
    """64 MB over eight devices on 450 GB/s of which 80 % are reached: 5 us + 112 MB / 360 GB/s."""
    link = Link("x", 450e9, 0.8, 5e-6)
    assert link_seconds("all_reduce", 8, 64e6, link) == pytest.approx(5e-6 + 112e6 / 360e9)
    assert link_seconds("all_reduce", 1, 64e6, link) == 0.0


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'gather': allowed: all_reduce"):
        sent_bytes("gather", 2, 1)
    with pytest.raises(ValueError, match="bandwidth is unknown"):
        link_seconds("send", 2, 1.0, Link("x", None))
    assert set(KINDS) == {"all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send"}


@given(st.data())
def test_the_chance_to_meet_a_group_is_counted(data: st.DataObject) -> None:
    """Against every choice of k of at most nine experts."""
    groups = data.draw(st.integers(1, 4))
    experts = groups * data.draw(st.integers(1, 9 // groups))
    chosen = data.draw(st.integers(1, experts))
    choices = list(combinations(range(experts), chosen))
    met = sum(any(e < experts // groups for e in choice) for choice in choices)
    assert chance_met(experts, chosen, groups) == pytest.approx(met / len(choices))
