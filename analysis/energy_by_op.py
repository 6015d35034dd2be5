"""Dynamic joules of a run by op and by level of memory: the accounts' mean rounds, op by op instead of leap by leap."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.account import LINEAR, Prompted, driven, leap_rows, mean_rounds
from sim.analytic.ops import Op
from sim.analytic.roofline import hbm_bytes, kernels, onchip_bytes, used_format
from sim.analytic.staged import Cost
from sim.analytic.work import Work

__all__ = ["LEVELS", "spent_by_op"]

Columns = Mapping[str, NDArray[np.int64]]
Floats = NDArray[np.float64]
Spent = dict[tuple[str, str], float]
LEVELS = ("flops", "memory", "onchip", "link")


def spent_by_op(
    pools: Sequence[tuple[Any, int]], leaps: Columns, chunks: Columns, numbers: NDArray[np.int64], metered: Floats
) -> dict[tuple[str, str], float]:
    """Dynamic joules of all devices by (op name, level of LEVELS); drafts' ops begin with ``draft``.

    ``pools``: (what replicas are built of, how many); ``numbers``: place there of each replica; ``metered``: by leap,
    as ``Accounts`` has it. NaN where energy is unknown. The joules add up to those of the leaps (``Accounts.floor``
    less static and running power) up to float rounding.
    """
    total: Spent = {}
    for place, (one, _) in enumerate(pools):
        here, there = (numbers[table["replica"]] == place for table in (leaps, chunks))
        mine, read = ({k: c[rows] for k, c in table.items()} for table, rows in ((leaps, here), (chunks, there)))
        _add(total, _of_pool(one.setup.rounds, mine, read, metered[here]))
    return total


def _of_pool(rounds: Any, leaps: Columns, chunks: Columns, metered: Floats) -> Spent:
    books = [_Book(cost, index) for index, cost in enumerate(rounds.costs)]
    prompts = Prompted.of(leap_rows(leaps, chunks), chunks, len(leaps["rounds"]))
    total: Spent = {}
    for block in mean_rounds(rounds, leaps, prompts):
        weights = leaps["rounds"][block.rows] * metered[block.rows]
        for one in block.passes:
            _add(total, books[one.model].spent(one.work, weights))
    return total


def _add(total: Spent, part: Spent) -> None:
    for key, joules in part.items():
        total[key] = total.get(key, 0.0) + joules


class _Book:
    """Joules of one model's passes, by op and level, summed over leaps."""

    def __init__(self, cost: Cost, model: int) -> None:
        self.cost, self.prefix = cost, "draft " if model else ""

    def spent(self, work: Work, weights: Floats) -> Spent:
        """Of passes that run ``weights`` times each; leading axes of the work (draft steps) are summed."""
        columns = [c for pairs in (work.decode_pairs, work.prefill_pairs) for c in pairs or ()]
        columns += [work.tokens, work.logit_rows, work.encoder_tokens]
        shape = np.broadcast_shapes(*(np.shape(c) for c in columns), weights.shape)
        total = self._total((op for op in self.cost.ops(work) if op.driver not in LINEAR), shape, weights)
        for drivers, counts, steps in driven(work):
            values, often = _histogram(np.broadcast_to(counts, weights.shape), weights * steps)
            same = Work(values if "tokens" in drivers else 0, values if "rows" in drivers else 0)
            _add(total, self._total((op for op in self.cost.ops(same) if op.driver in drivers), values.shape, often))
        return total

    def _total(self, ops: Iterator[Op], shape: tuple[int, ...], weights: Floats) -> Spent:
        total: Spent = defaultdict(float)
        for kernel in kernels(ops):
            for op in kernel:
                for level, joules in zip(LEVELS, self._joules(op), strict=True):
                    if np.any(joules):
                        each = np.broadcast_to(joules, shape)
                        total[self.prefix + op.name, level] += float((each * weights).sum())
        return total

    def _joules(self, op: Op) -> tuple[Any, ...]:
        """Of all layers and devices, by level, as ``roofline.joules`` has them."""
        device, energy = self.cost.device, self.cost.device.energy
        if energy is None:
            return (float("nan"),) * len(LEVELS)
        times = op.layers * self.cost.layout.devices
        flop_J = 0.0 if op.unit == "link" else energy.joules_per_flop(used_format(op, device))
        memory = sum(hbm_bytes([op], self.cost.placement))
        moved = memory * energy.memory_byte_J, onchip_bytes([op]) * energy.onchip_byte_J
        return tuple(times * joules for joules in (op.flops * flop_J, *moved, op.link_bytes * energy.link_byte_J))


def _histogram(counts: NDArray[Any], weights: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Distinct whole counts and how often each is met; a mean count lies between two whole ones."""
    low = counts.astype(np.int64)
    rest = weights * (counts - low)
    length = int(low.max()) + 2
    often = (np.bincount(low, weights - rest, length) + np.bincount(low + 1, rest, length)).astype(np.float64)
    values = np.flatnonzero(often).astype(np.int64)
    return values, often[values]
