"""What was measured and what is asked: questions outside the calibrated range say so, and get wider intervals.

The rule: where a size is r times beyond the nearest that was measured, intervals of that kind of kernel are
``1 + log2(r) / 2`` times as wide, in logarithms of seconds, up to three times. Half as wide again for each doubling is
an assumption: what is not measured cannot say how wrong it is. Only larger counts as beyond: what is smaller takes the
floor, which was measured. n, k and heads may be SLACK times as large, since whole waves of tiles are all alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import log2
from typing import Any

import numpy as np

from sim.analytic.collectives import kind_of
from sim.analytic.hardware import Device
from sim.analytic.kernel_book import KernelBook
from sim.analytic.ops import Op
from sim.analytic.roofline import terms_of
from sim.analytic.staged import Cost
from sim.analytic.work import Work

__all__ = ["BEYOND", "Asked", "beyond", "outside", "widening"]

BEYOND = "outside what was measured"
MOST = 3.0
SLACK = {"n": 8.0, "k": 4.0, "heads": 4.0}
TITLES = {"matmul": "products", "decode_attention": "decode attention", "prefill_attention": "prefill attention",
          "collectives": "collectives"}  # fmt: skip
Asked = dict[tuple[str, str], tuple[float, float]]  # (group, size) -> what is asked, what was measured at most


def outside(cost: Cost, works: Iterable[Work]) -> list[str]:
    """One line for each kind of kernel that some pass asks of beyond its measurements."""
    found: dict[str, list[str]] = {}
    for (group, size), (value, high) in beyond(cost, works).items():
        found.setdefault(group, []).append(f"{size} {value:,.0f} (measured up to {high:,.0f})")
    return [f"{BEYOND}: {TITLES[group]} of {cost.device.name}: {', '.join(sizes)}; intervals are wider there."
            for group, sizes in found.items()]  # fmt: skip


def widening(found: Asked) -> dict[str, float]:
    """How many times wider by group; empty where all is within."""
    wider: dict[str, float] = {}
    for (group, _), asked in found.items():
        wider[group] = max(wider.get(group, 1.0), min(1.0 + log2(_excess(asked)) / 2, MOST))
    return wider


def beyond(cost: Cost, works: Iterable[Work]) -> Asked:
    """Sizes beyond what was measured, of each group the furthest. Counts of work are numbers."""
    furthest: Asked = {}
    for work in works:
        for op in cost.ops(work):
            for key, asked in _of_op(op, cost.device):
                slack = SLACK.get(key[1], 1.0)
                if _excess(asked) > max(slack, _excess(furthest.get(key, (1.0, 1.0)))):
                    furthest[key] = asked
    return furthest


def _excess(asked: tuple[float, float]) -> float:
    return asked[0] / max(asked[1], 1.0)


def _of_op(op: Op, device: Device) -> Iterator[tuple[tuple[str, str], tuple[float, float]]]:
    group, ranges, sizes = _asked(op, device)
    for name, _, high in ranges:
        if name in sizes:
            yield (group, name), (sizes[name], high)


def _asked(op: Op, device: Device) -> tuple[str, tuple[tuple[str, float, float], ...], Mapping[str, float]]:
    """Group, what was measured of it, and the op's sizes."""
    if op.unit == "link":
        book = device.kernels
        wire = book.collective(kind_of(op.name), op.group) if isinstance(book, KernelBook) and not op.link_Bps else None
        return "collectives", wire.ranges if wire else (), {"sent_bytes": _number(op.link_bytes)}
    if op.unit != "tensor" or op.terms == "elementwise":
        return op.terms, (), {}
    return op.terms, terms_of(op, device).ranges, _sizes(op)


def _sizes(op: Op) -> dict[str, float]:
    seen = op.attended
    if seen is None:
        if not op.inner or op.terms != "matmul":
            return {}
        rows = _number(op.inputs) / op.inner
        columns = _number(op.flops) / max(2.0 * rows * op.inner, 1.0)
        return {"m": rows, "n": columns, "k": float(op.inner)} if rows else {}
    pairs, tokens = _number(seen.pairs), _number(seen.tokens)
    if not tokens:
        return {}
    sizes = {"heads": float(seen.heads), "head_dim": float(seen.head_dim)}
    if seen.is_prefill:
        return {**sizes, "context": min(2 * pairs / tokens, _number(seen.reads) + tokens)}
    return {**sizes, "batch": tokens, "context": pairs / tokens}


def _number(count: Any) -> float:
    return float(np.max(count))
