"""Acceptance by position as servers log it, through the n-gram and the speculative policy."""

from __future__ import annotations

from sim.policies.ngram import Ngram
from sim.policies.speculative import Speculative
from sim.published.table import Published, Table


def _vector(row: Published, table: Table) -> list[float]:
    rows = [table.one(row, quantity="per_position_acceptance", gamma=position) for position in ("1", "2", "3")]
    return [table.value(one.id) for one in rows]


def length(row: Published, table: Table) -> float:
    """Tokens a round from the printed survival vector; servers count rounds that drafted, so every round matches."""
    acceptance = {"kind": "survival", "vector": _vector(row, table)}
    if "ngram" in row.model:
        return Ngram(3, 1.0, acceptance).expected_tokens
    return Speculative(gamma=3, acceptance=acceptance).expected_tokens


def third(row: Published, table: Table) -> float:
    """Survival to position 3 of the Beta mixture through the first two: s1 = mean, s2/s1 = (mean M + 1)/(M + 1)."""
    first, second, _ = _vector(row, table)
    hazard = second / first
    beta = {"kind": "beta", "mean": first, "concentration": (1 - hazard) / (hazard - first)}
    return float(Ngram(3, 1.0, beta).survival[2])


def third_iid(row: Published, table: Table) -> float:
    """The same with one acceptance for both positions: kept over judged drafts."""
    first, second, _ = _vector(row, table)
    return float(Ngram(3, 1.0, (first + second) / (1 + first)).survival[2])
