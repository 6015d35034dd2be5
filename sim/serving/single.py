"""One round of a linear policy, prompts included, in Python numbers: most rounds of a busy replica read a prompt.

What :meth:`PassCost.seconds` does with the passes of such a round, in the same order and with the same operations, but
without making the passes: their counts come out of one product (``sim/serving/linear.py``), prompts are added to those
passes that were seen to carry them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.analytic.attention import AttentionCost
from sim.analytic.roofline import combine
from sim.analytic.tables import Table
from sim.policies import Pass, Policy, PromptPart, Prompts, Windows

__all__ = ["Line", "SingleRound"]

FEW = 4  # passes: fewer are cheaper made and costed one by one


class Line(NamedTuple):
    """What passes of a model are made of: tables of tokens and of logit rows, kernels of decodes and of prompts."""

    tokens: Table
    rows: Table
    decode: tuple[AttentionCost, ...]
    prefill: tuple[AttentionCost, ...]


class _Step(NamedTuple):
    """One pass: its model, its kernels of decodes, and whether prompts ride on it and send their last rows to the head
    (1 or 0).
    """

    model: int
    kernels: tuple[AttentionCost, ...]
    carries: bool
    heads: int


class _Probe:
    """Prompts that are recognised wherever they turn up."""

    def part(self, windows: Windows) -> PromptPart:
        """Counts that no unit vector makes."""
        kinds = range(len(windows))
        return PromptPart(1013, 17, tuple(5003 + k for k in kinds), tuple(2003 + k for k in kinds))


class SingleRound:
    """Seconds of one round with decodes. ``work``: reads, pairs and again reads and tokens of all kernels, then tokens
    and logit rows of all passes, by (seats, totals): [4 kernels + 2 passes, 1 + channels].
    """

    def __init__(self, work: NDArray[np.float64], steps: list[_Step], lines: Sequence[Line], spill_from: float) -> None:
        kernels = [kernel for step in steps for kernel in step.kernels]
        names = ("read_s", "pair_s", "onchip_read_s", "onchip_token_s")
        self._spill_from = spill_from
        self._passes = [(step, lines[step.model], len(step.kernels)) for step in steps]
        self._rates = np.array([getattr(kernel, name) for name in names for kernel in kernels])
        self._floor = np.array([kernel.floor_s for kernel in kernels])
        self._floors, self._p, self._kernels, self._work = bool(self._floor.any()), kernels[0].p, len(kernels), work

    @classmethod
    def of(
        cls, policy: Policy, windows: tuple[Windows, ...], work: NDArray[np.float64], lines: Sequence[Line],
        spill_from: float,
    ) -> SingleRound | None:  # fmt: skip
        """None where passes are few, or prompts change one in another way than by what they bring.

        ``spill_from``: decodes of a pass from which activations may leave the chip.
        """
        if any(line.prefill and len(line.prefill) != len(w) for line, w in zip(lines, windows, strict=True)):
            return None  # a variant has several kernels of a kind
        unit = [0] * policy.channels(windows)
        bare = list(policy.passes(1, unit, None, windows))
        carrying = list(policy.passes(1, unit, _Probe(), windows))
        if len(bare) < FEW or [one.model for one in bare] != [one.model for one in carrying]:
            return None
        steps = [_step(a, b, windows[a.model], lines[a.model]) for a, b in zip(bare, carrying, strict=True)]
        known = [step for step in steps if step is not None]
        return cls(work, known, lines, spill_from) if len(known) == len(steps) else None

    def seconds(
        self, seats: int, totals: list[int], prompts: Prompts | None, windows: tuple[Windows, ...],
        host_s: Callable[[Any], Any], layers: Sequence[int] | None,
    ) -> Any:  # fmt: skip
        """Seconds of the round; ``host_s`` of the layers that it runs, by model where the host has any to launch.

        None where a pass has so many decodes that their activations may not stay on chip.
        """
        counts = self._work.dot(np.array([seats, *totals], dtype=np.float64))
        busy, tokens = self._busy(counts), counts[4 * self._kernels :].tolist()
        if max(tokens[: len(self._passes)]) >= self._spill_from:
            return None
        total = host_s(0 if layers is None else self._layers_run(tokens, prompts, layers))
        at, place, rows = 0, 0, len(self._passes)
        for step, line, kernels in self._passes:
            part = prompts.part(windows[step.model]) if step.carries and prompts is not None else None
            count, heads = int(tokens[place]), int(tokens[rows + place])
            if part is not None:
                tokens_s = line.tokens.seconds(count + part.tokens)
                seconds = tokens_s + line.rows.seconds(heads + step.heads * part.rows)
                total = total + _carrying_s(line, seconds, busy[at : at + kernels], part)
            elif count:
                seconds = line.tokens.seconds(count) + line.rows.seconds(heads)
                for kernel in range(at, at + kernels):
                    seconds = seconds + busy[kernel]
                total = total + seconds
            at, place = at + kernels, place + 1
        return total

    def _layers_run(self, tokens: list[float], prompts: Prompts | None, layers: Sequence[int]) -> int:
        carried = prompts is not None
        runs = zip(self._passes, tokens[: len(self._passes)], strict=True)
        return sum(layers[step.model] for (step, _, _), count in runs if count or (carried and step.carries))

    def _busy(self, counts: NDArray[np.float64]) -> list[float]:
        """Seconds of every attention kernel of the decodes, in order."""
        n = self._kernels
        spent = counts[: 4 * n] * self._rates
        busy = np.maximum(combine(spent[n : 2 * n], spent[:n], self._p), spent[2 * n : 3 * n] + spent[3 * n :])
        if self._floors:
            busy += self._floor * (counts[n : 2 * n] > 0)
        each: list[float] = busy.tolist()
        return each


def _carrying_s(line: Line, seconds: Any, busy: list[float], part: PromptPart) -> Any:
    """Seconds of a pass on which prompts ride: ``seconds`` of its products, ``busy`` of its decodes' kernels."""
    for one in busy:
        seconds = seconds + one
    for prefill, pairs, reads in zip(line.prefill, part.pairs or (), part.reads or (), strict=True):
        seconds = seconds + prefill.seconds(pairs, reads, part.tokens, len(line.tokens))
    return seconds


def _step(bare: Pass, carrying: Pass, windows: Windows, line: Line) -> _Step | None:
    """How a pass takes prompts; None where it is neither without them nor with all of them beside its decodes."""
    probe = _Probe().part(windows)
    kernels = line.decode if bare.work.decode_reads is not None else ()
    if carrying.work == bare.work:
        return _Step(bare.model, kernels, False, 0)
    heads = int(carrying.work.logit_rows != bare.work.logit_rows)
    want = bare.work._replace(
        tokens=bare.work.tokens + probe.tokens, logit_rows=bare.work.logit_rows + heads * probe.rows,
        prefill_pairs=probe.pairs, prefill_reads=probe.reads, prefill_tokens=probe.tokens,
    )  # fmt: skip
    return _Step(bare.model, kernels, True, heads) if carrying.work == want else None
