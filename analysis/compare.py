"""Two scenarios under the same luck: differences with confidence intervals, and what the difference is made of.

Several pairs of runs (``--repeats``): each metric is one number a run, and the interval of its mean difference is
Student's, over pairs. One pair: requests of one run are correlated, because they share queues and batches, so blocks of
consecutive requests are drawn again, the same ones from both runs (circular block bootstrap, Politis and Romano 1992).
Their length follows the autocorrelation of the paired differences (analysis/blocks.py). Latencies are paired by request
id, rates by order of completion. An interval is of the difference, so what both runs share cancels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.blocks import Blocks, student
from analysis.frames import Run
from analysis.pairs import Pair, metrics_of, pair_up
from analysis.waterfall import Step, steps

Floats = NDArray[np.float64]

__all__ = ["Comparison", "Difference", "Step", "compare"]


@dataclass(frozen=True)
class Difference:
    """One metric of A and B; ``difference`` is B - A, ``low`` and ``high`` its interval (None: not estimated)."""

    metric: str
    a: float
    b: float
    difference: float
    low: float | None
    high: float | None

    @property
    def certain(self) -> bool:
        """Whether the interval excludes no difference."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Comparison:
    """What ``decodesim compare`` says. ``method``: where the intervals come from; ``requests``: pairs of finished ones;
    ``waterfall``: means over them, in milliseconds, adding up to their mean E2EL. ``uncertainty``: samples, and p10,
    p50 and p90 of each difference over hardware drawn anew (docs/uncertainty.md)."""

    labels: tuple[str, str]
    confidence: float
    method: str
    repeats: int
    requests: int
    differences: list[Difference]
    waterfall: list[Step]
    sentence: str
    notes: list[str] = field(default_factory=list)
    uncertainty: dict[str, Any] | None = None


def compare(pairs: Iterable[tuple[Run, Run]], labels: Sequence[str], confidence: float = 0.95) -> Comparison:
    """Compare pairs of runs (``sim.run.pairs``), read one at a time.

    Raises ValueError where no request finished in both runs of a pair.
    """
    paired = [pair_up(a, b) for a, b in pairs]
    first = paired[0]
    tables = [[metrics_of(pair, side) for side in (0, 1)] for pair in paired]
    blocks = None if _luck_matters(tables) else Blocks.of(first)
    draws = {} if blocks is None else blocks.differences(first)
    differences = [
        _difference(name, [[side[name] for side in row] for row in tables], blocks is None, draws.get(name), confidence)
        for name in tables[0][0]
        if tables[0][0][name] is not None and tables[0][1].get(name) is not None
    ]
    waterfall = steps(paired)
    names = (str(labels[0]), str(labels[1]))
    return Comparison(
        labels=names,
        confidence=confidence,
        method="pairs of seeds" if blocks is None else f"moving blocks of {blocks.length} requests",
        repeats=len(paired),
        requests=sum(len(pair.ids) for pair in paired),
        differences=differences,
        waterfall=waterfall,
        sentence=_sentence(differences, waterfall),
        notes=_notes(paired, blocks),
    )


def _luck_matters(tables: list[list[dict[str, float | None]]]) -> bool:
    """Whether seeds changed anything; a recorded trace without drafts has no luck in it."""
    return len(tables) > 1 and any(row != tables[0] for row in tables[1:])


def _difference(
    name: str, values: list[list[float | None]], seeds: bool, draws: Floats | None, confidence: float
) -> Difference:
    table = np.array(values, dtype=np.float64)  # [pairs, 2]
    a, b = (float(v) for v in table.mean(axis=0))
    if seeds:
        low, high = student(table[:, 1] - table[:, 0], confidence)
        return Difference(name, a, b, b - a, low, high)
    if draws is None or np.isnan(draws).any():
        return Difference(name, a, b, b - a, None, None)
    tail = (1 - confidence) / 2
    low, high = (float(b - a + v) for v in np.quantile(draws, [tail, 1 - tail]))
    return Difference(name, a, b, b - a, low, high)


def _sentence(differences: list[Difference], waterfall: list[Step]) -> str:
    """Mean E2EL, its interval, and the largest part of the difference."""
    d = next(d for d in differences if d.metric == "E2EL mean (ms)")
    if d.low is None or d.high is None:
        return "One run of a handful of requests gives no interval: raise --repeats."
    if d.low == d.high == 0:
        return "No difference: every paired request took as long in B as in A."
    interval = f"{d.low:+,.4g} to {d.high:+,.4g} ms"
    if not d.certain:
        return f"No difference in mean E2EL that these runs can show: {d.difference:+,.4g} ms, interval {interval}."
    share = abs(d.difference) / d.a if d.a else 0.0
    word = "shorter" if d.difference < 0 else "longer"
    parts = [s for s in waterfall[:-1] if s.difference_ms * d.difference > 0]
    made = sorted(parts, key=lambda s: -abs(s.difference_ms))[:2]
    because = " and ".join(f"{s.cause} ({s.difference_ms:+,.4g} ms)" for s in made)
    found = f"B's mean E2EL is {share:.1%} {word} ({d.difference:+,.4g} ms, interval {interval})"
    return f"{found}, above all by {because}."


def _notes(paired: list[Pair], blocks: Blocks | None) -> list[str]:
    notes = []
    left_out = sum(pair.left_out for pair in paired)
    if left_out:
        notes.append(f"{left_out} requests did not finish in both runs; latencies and the waterfall leave them out.")
    if any(not pair.alike for pair in paired):
        notes.append("The requests themselves differ (lengths): a pair shares its number and its luck, not its work.")
    if blocks is not None and len(paired) > 1:
        notes.append("The seeds changed nothing (recorded traffic, nothing drawn): intervals are of blocks of one run.")
    if blocks is not None and blocks.cut:
        notes.append("Requests stay correlated for longer than blocks may be here: intervals are too narrow.")
    return [*notes, *dict.fromkeys(note for pair in paired for note in pair.notes)]
