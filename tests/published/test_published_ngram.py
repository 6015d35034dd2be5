"""Published numbers of n-gram drafts beside the policy's own. Rows whose inputs nobody published are not here.

Labels: *identity* (the source's own numbers must agree with the formula, to print rounding), *prediction after one
named fit* (the fit is said; the row was not part of it), *known failure* (simple theory misses it, by how much).
Left out, as its README gives neither match nor acceptance: Saxena's 2.4x (summaries and context QA, Mistral-7B).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from sim.policies.ngram import Ngram


@dataclass(frozen=True)
class Row:
    """One published number, ours, and how far apart they may be (relative unless ``absolute``)."""

    what: str
    label: str
    source: str
    published: float
    ours: float
    tolerance: float
    absolute: bool = False

    @property
    def error(self) -> float:
        """Ours less theirs, in the terms of the tolerance."""
        return self.ours - self.published if self.absolute else self.ours / self.published - 1


# vLLM issue 19254, Qwen3-32B-FP8, n-gram, 3 drafts: acceptance by position in two logs, and the acceptance length that
# the same logs print. vLLM counts rounds that drafted, so m is 1.
LOGS = {"a": ([0.543, 0.357, 0.264], 2.16), "b": ([0.615, 0.464, 0.383], 2.46)}

# EAGLE-3 (arXiv 2503.01840) table 1, a transcription: PLD on Vicuna-13B, temperature 0, batch 1: (speedup, tokens).
PLD = {
    "MT-bench": (1.58, 1.63), "HumanEval": (1.85, 1.93), "GSM8K": (1.68, 1.73), "Alpaca": (1.16, 1.19),
    "CNN/DM": (2.42, 2.50),
}  # fmt: skip
FITTED = "MT-bench"

# OWL (arXiv 2510.07535) tables 1 and 2, PLD on Llama-3.3-70B, 8 H200, contexts of 4K to 64K tokens, batch 1.
OWL = (1.59, 2.24)


def through(vector: list[float]) -> dict[str, Any]:
    """The Beta mixture through the first two positions: s1 = mean, s2/s1 = (mean M + 1)/(M + 1)."""
    hazard = vector[1] / vector[0]
    return {"kind": "beta", "mean": vector[0], "concentration": (1 - hazard) / (hazard - vector[0])}


def matching(tokens: float) -> Ngram:
    """The policy with the match probability that gives so many tokens a round; which gamma makes no difference here."""
    return Ngram(10, (tokens - 1) / (Ngram(10, 1.0).expected_tokens - 1))


def overhead() -> float:
    """What a round takes beyond an autoregressive step, in steps: the one number fitted, on ``FITTED``."""
    speedup, tokens = PLD[FITTED]
    return matching(tokens).expected_tokens / speedup - 1


def rows() -> list[Row]:
    """Every row."""
    found = []
    for log, (vector, length) in LOGS.items():
        where = f"vLLM issue 19254, log {log}"
        ours = Ngram(3, 1.0, {"kind": "survival", "vector": vector}).expected_tokens
        found.append(Row("acceptance length", "identity", where, length, ours, 0.0065, absolute=True))
        third = float(Ngram(3, 1.0, through(vector)).survival[2])
        label = "prediction after one named fit (Beta through positions 1 and 2)"
        found.append(Row("acceptance at position 3", label, where, vector[2], third, 0.025))
    lookup = overhead()
    for task, (speedup, tokens) in PLD.items():
        if task != FITTED:
            ours = matching(tokens).wall_time_factor(lookup=lookup)
            label = f"prediction after one named fit (overhead of a round, on {FITTED})"
            found.append(Row(f"speedup, {task}", label, "arXiv 2503.01840 table 1", speedup, ours, 0.015))
    speedup, tokens = OWL
    ours = matching(tokens).wall_time_factor(lookup=lookup)
    label = "known failure: the overhead fitted on short contexts and one GPU, carried to 4K-64K on eight"
    found.append(Row("speedup, LongSpecBench", label, "arXiv 2510.07535 tables 1, 2", speedup, ours, 0.45))
    return found


@pytest.mark.parametrize("row", rows(), ids=lambda r: f"{r.what}, {r.source}")
def test_row(row: Row) -> None:
    """Ours is within the stated tolerance; a known failure is really one (over 25 % off) and not worse than stated."""
    assert abs(row.error) <= row.tolerance
    if row.label.startswith("known failure"):
        assert row.error > 0.25


def test_iid_acceptance_does_not_give_the_third_position() -> None:
    """The rising hazard is needed: with one alpha fitted to the same two positions the third is missed by over 15 %."""
    for vector, _ in LOGS.values():
        alpha = (vector[0] + vector[1]) / (1 + vector[0])  # kept over judged drafts
        assert float(Ngram(3, 1.0, alpha).survival[2]) / vector[2] < 0.85


def test_one_overhead_fits_all_tasks() -> None:
    """Tokens a step over speedup is 1.026 to 1.043 in all five rows: the round law with one constant."""
    ratios = [tokens / speedup for speedup, tokens in PLD.values()]
    assert min(ratios) > 1.02 and max(ratios) < 1.045
