"""Decode rounds as one matrix product: what the passes of a linear policy ask for, costed for all of them at once.

A policy whose passes are linear in (seats, totals) is read off once, at unit vectors; a pass in which nobody takes part
costs nothing. A leap is then one product of whole numbers, which floats carry exactly below 2^53, and a handful of
array operations over all passes together, in the order and with the operations of :meth:`PassCost.seconds`: the same
bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.analytic.attention import AttentionCost
from sim.analytic.roofline import combine
from sim.analytic.staged import Cost
from sim.analytic.tables import Table
from sim.analytic.work import Work
from sim.policies import Policy, Windows
from sim.serving.single import Line, SingleRound

__all__ = ["LinearRounds"]

Floats = NDArray[np.float64]
BLOCK = 1024


class LinearRounds:
    """Seconds of decode rounds without prompts, for one policy on one replica.

    Rows of the product, for Q attention kernels of P passes: reads [Q], pairs [Q], reads [Q] and tokens [Q] once more
    for on-chip memory, then tokens [P] and logit rows [P], which are places in ``_flat``.
    """

    def __init__(
        self, work: Floats, kernels: list[tuple[int, AttentionCost]], tables: list[Table], most: int, models: list[int]
    ) -> None:
        """``kernels``: (pass, cost); ``tables``: of the tokens of each pass, then of its rows; ``most``: per seat;
        ``models``: whose pass each is.
        """
        self._work, self._tables, self._most, self._seats, self._length = work, tables, most, -1, 0
        self._models, self._tokens = models, work[4 * len(kernels) : 4 * len(kernels) + len(models)].copy()
        self.always = bool((self._tokens[:, 1] > 0).all())
        self._passes, self._kernels = [p for p, _ in kernels], len(kernels)
        parts = [part for _, part in kernels]
        names = ("read_s", "pair_s", "onchip_read_s", "onchip_token_s")
        self._rates = np.array([[getattr(part, name)] for name in names for part in parts])
        self._floor = np.array([[part.floor_s] for part in parts]) if any(part.floor_s for part in parts) else None
        self._alone = self._passes == list(range(len(tables) // 2))
        self._p = parts[0].p
        self.single: SingleRound | None = None
        self.spill_from = min(part.spill_from for part in parts)
        self._input = np.ones((work.shape[1], 512))

    @classmethod
    def of(cls, policy: Policy, costs: Sequence[Cost], windows: tuple[Windows, ...]) -> LinearRounds | None:
        """None where the policy does not say that it is linear, or where a model has other costs than these."""
        said = [cost.decode_line() for cost in costs if hasattr(cost, "decode_line")]
        lines = [line for line in said if line is not None]
        if not getattr(policy, "linear", False) or len(lines) < len(costs):
            return None
        units = np.eye(1 + policy.channels(windows), dtype=np.int64).tolist()
        found = [list(policy.passes(unit[0], unit[1:], None, windows)) for unit in units]
        models = [one.model for one in found[0]]
        columns = [_rows([one.work for one in passes]) for passes in found]
        attend = [one.work.decode_reads is not None for one in found[0]]  # a projection does not
        kernels = [(p, part) for p, model in enumerate(models) if attend[p] for part in lines[model][2]]
        if not kernels:
            return None
        tables = [lines[model][0] for model in models] + [lines[model][1] for model in models]
        same = len({part.p for _, part in kernels}) == 1
        work = np.array([[0.0] * len(columns[0]), *columns]).T
        if not same:
            return None
        rounds = cls(np.ascontiguousarray(work), kernels, tables, policy.tokens_per_round, models)
        whole = [Line(*line, cost.prefill_line()) for line, cost in zip(lines, costs, strict=True)]
        rounds.single = SingleRound.of(policy, windows, np.ascontiguousarray(work[:, 1:]), whole, rounds.spill_from)
        return rounds

    def layers_run(self, totals: NDArray[np.int64], layers: Sequence[int]) -> NDArray[np.int64]:
        """Layers that the host launches in each round: those of the passes in which anybody takes part."""
        runs = self._tokens[:, 1:].dot(totals) > 0
        each = np.array([layers[model] for model in self._models])
        run: NDArray[np.int64] = (runs * each[:, None]).sum(axis=0)
        return run

    def fits(self, seats: int) -> bool:
        """Whether decodes of so many seats keep their activations on chip."""
        return seats * self._most < self.spill_from

    def serves(self, seats: int) -> bool:
        """The same; look-ups are made ready for them."""
        if not self.fits(seats):
            return False
        if seats > self._seats:
            self._lay_out(seats)
        return True

    def seconds(self, totals: NDArray[np.int64], total: Any) -> Floats | None:
        """Seconds of each round, passes added to ``total`` in order; ``totals``: seats, then the policy's channels.

        None where a pass catches up with more tokens a seat than a round verifies, and look-ups do not reach so far.
        """
        n, kernels = totals.shape[1], self._kernels
        if n > self._input.shape[1]:
            self._input = np.ones((self._input.shape[0], 2 * n))
        given = self._input[:, :n]
        given[1:] = totals
        work = self._work.dot(given)  # whole numbers below 2^53: exact in any order
        if not self.always and self._is_long(work):
            return None
        spent = work[: 4 * kernels]
        floor = self._floor
        if floor is not None and not self.always:
            floor = floor * (spent[kernels : 2 * kernels] > 0)
        spent *= self._rates
        busy = combine(spent[:kernels], spent[kernels : 2 * kernels], self._p)
        onchip = spent[2 * kernels : 3 * kernels]
        onchip += spent[3 * kernels :]
        np.maximum(busy, onchip, out=busy)
        if floor is not None:
            busy += floor
        looked_up = self._flat.take(work[4 * kernels :].astype(np.intp))
        half = len(looked_up) // 2
        done = looked_up[:half]
        done += looked_up[half:]
        if self._alone:
            done += busy
        else:
            for p, one in zip(self._passes, busy, strict=True):
                done[p] += one
        seconds: Floats = done[0]
        seconds += total
        for one in done[1:]:
            seconds += one
        return seconds

    def _is_long(self, work: Floats) -> bool:
        """Whether a pass has more tokens than were looked up, or than keep their activations on chip."""
        at, passes = 4 * self._kernels, len(self._models)
        tokens = work[at : at + passes] - self._work[at : at + passes, :1]
        return bool(tokens.max() >= min(self._length, self.spill_from))

    def _lay_out(self, seats: int) -> None:
        """Tables side by side in one array; where each begins is the constant column of its rows in the product."""
        length = (seats * self._most // BLOCK + 1) * BLOCK
        kinds = list(dict.fromkeys(self._tables))
        for table in kinds:
            table.seconds(length - 1)
        self._flat = np.concatenate([table.second_column[:length] for table in kinds])
        self._work[4 * self._kernels :, 0] = [kinds.index(table) * length for table in self._tables]
        self._seats, self._length = (length - 1) // self._most, length


def _rows(passes: Sequence[Work]) -> list[float]:
    """The counts of all passes in the order of the rows of the product."""
    pairs, reads = [work.decode_pairs or () for work in passes], [work.decode_reads or () for work in passes]
    tokens = [[work.tokens] * len(work.decode_reads or ()) for work in passes]
    kernels = [count for columns in (reads, pairs, reads, tokens) for one in columns for count in one]
    return [float(count) for count in (*kernels, *(w.tokens for w in passes), *(w.logit_rows for w in passes))]
