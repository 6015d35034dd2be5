"""Collectives in closed form: what each device sends, how many messages follow on each other, how long that takes.

Ring algorithms (Patarasuk and Yuan 2009, J. Parallel Distrib. Comput. 69:117, section 3), which reach the lower bound
of bytes sent by every device. A latency is taken once a collective, as it is measured; ``messages`` says how many of
them a ring sends one after another.
"""

from __future__ import annotations

from math import comb
from typing import Any, NamedTuple

from sim.analytic.hardware import Link

__all__ = ["KINDS", "Phase", "chance_met", "kind_of", "link_seconds", "messages", "phases", "sent_bytes"]

Count = Any
KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send")


def sent_bytes(kind: str, devices: int, size_bytes: Count) -> Count:
    """Bytes that each of ``devices`` sends, elementwise.

    ``size_bytes``: of an all-reduce or a reduce-scatter what every device holds before it, of an all-gather what every
    device holds after it, of an all-to-all what a device holds for all of them, itself included; of a send, the
    message. Raises ValueError for another kind.
    """
    _known(kind)
    if kind == "send":
        return size_bytes
    share = (devices - 1) / devices
    return size_bytes * (2 * share if kind == "all_reduce" else share)


def messages(kind: str, devices: int) -> int:
    """How many messages follow on each other: two rounds of the ring, one round, or a single one."""
    _known(kind)
    if kind == "send":
        return 1
    return (devices - 1) * (2 if kind == "all_reduce" else 1)


class Phase(NamedTuple):
    """One collective of several that make up a larger one, among ``devices``, on ``size_bytes``; over the network?"""

    kind: str
    devices: int
    size_bytes: Count
    abroad: bool


def phases(kind: str, devices: int, local: int, size_bytes: Count) -> tuple[Phase, ...]:
    """A collective of ``devices`` in nodes of ``local`` that divide them, wire by wire.

    What lies within a node is summed and cut there before anything leaves it, so that a device sends a ``local``-th
    abroad: an all-reduce is a reduce-scatter within, an all-reduce between peers of all nodes, and an all-gather within
    (Jia et al. 2018, arXiv 1807.11205; BlueConnect, Cho et al., MLSys 2019). Raises ValueError for a kind
    that is not one of the three, or nodes that do not divide.
    """
    if kind not in ("all_reduce", "reduce_scatter", "all_gather"):
        raise ValueError(f"collective {kind!r}: allowed: all_reduce, reduce_scatter, all_gather")
    if devices % local:
        raise ValueError(f"{devices} devices are not whole nodes of {local}")
    between = Phase(kind, devices // local, size_bytes / local, True)
    cut, whole = (Phase(one, local, size_bytes, False) for one in ("reduce_scatter", "all_gather"))
    order = {"all_reduce": (cut, between, whole), "reduce_scatter": (cut, between), "all_gather": (between, whole)}
    return tuple(one for one in order[kind] if one.devices > 1)


def link_seconds(kind: str, devices: int, size_bytes: float, link: Link) -> float:
    """Seconds of one collective over ``link``: its latency, and what each device sends. Raises ValueError."""
    if link.bandwidth_Bps is None:
        raise ValueError(f"{link.name or 'link'}: its bandwidth is unknown")
    sent = float(sent_bytes(kind, devices, size_bytes))
    return link.latency_s + sent / (link.bandwidth_Bps * link.efficiency) if sent else 0.0


def chance_met(experts: int, per_token: int, groups: int) -> float:
    """Chance that a token chooses at least one of the experts of one of ``groups`` equal groups.

    ``1 - C(E - E/groups, k) / C(E, k)`` for k of E experts chosen without replacement, all alike.
    """
    others = experts - experts // groups
    return 1.0 - comb(others, per_token) / comb(experts, per_token)


def kind_of(op: str) -> str:
    """Which collective an op of that name is: experts are reached by all-to-alls, all others are named after theirs."""
    name = op.removeprefix("encoder.")
    return "all_to_all" if name in ("moe.dispatch", "moe.combine") else name


def _known(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"collective {kind!r}: allowed: {', '.join(KINDS)}")
