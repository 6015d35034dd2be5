"""Chances of a tree's children: as options say them, or from a target's and a drafter's distributions by enumeration.

One child is tried after the other. ``specinfer`` (Miao et al. 2024, arXiv 2305.09781, algorithm 2) draws children
independently: child x is accepted with probability min(1, P(x)/Q(x)), and each rejection turns P into
norm(max(0, P - Q)). ``sequoia`` (Chen et al. 2024, arXiv 2402.12374, algorithm 2) draws them without replacement: a
rejected token also leaves Q, which is normalised again, so that no chance is spent twice. ``greedy`` follows the
target's own token where it is among the drafter's best ones, at any temperature. All three leave the target's
distribution as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.plugin import suggest
from sim.policies.checks import number, probability
from sim.policies.tree_data import RANKS
from sim.policies.tree_shapes import MOST_DEPTH, Ranks
from workloads.errors import shown

__all__ = ["States", "child_chances", "states_of"]

Floats = NDArray[np.float64]
States = tuple[tuple[float, Ranks], ...]
MOST_RANKS, MOST_STATES, MOST_TOKENS, MOST_TRIED = 256, 64, 12, 4
KEY = "policy.ranks"


def child_chances(target: Sequence[float], draft: Sequence[float], children: int, verification: str) -> Floats:
    """P(child 1, 2, ... is the one accepted) under one pair of distributions [V]; shape [children].

    Exact: over every order in which children without replacement may come (V (V - 1) ... of them).
    """
    p, q = (np.asarray(x, dtype=np.float64) / np.sum(x) for x in (target, draft))
    chances = np.zeros(children)
    if verification == "specinfer":
        reached = 1.0
        for child in range(children):
            kept = float(np.minimum(p, q).sum())
            chances[child], reached = reached * kept, reached * (1.0 - kept)
            p = _residual(p, q)
    elif verification == "sequoia":
        _try_each(p, q, 1.0, chances)
    else:
        best = np.argsort(-q, kind="stable")[:children]
        chances[: len(best)] = p[best]
    return chances


def _try_each(p: Floats, q: Floats, reached: float, chances: Floats) -> None:
    """Add to ``chances`` what children from here on are accepted with, each token in turn rejected."""
    left = _residual(p, q)
    for token in np.flatnonzero(q) if len(chances) and reached > 0.0 else ():
        kept = min(1.0, p[token] / q[token])
        chances[0] += reached * q[token] * kept
        others = np.where(np.arange(len(q)) == token, 0.0, q)
        if others.sum() > 0.0:
            _try_each(left, others / others.sum(), reached * q[token] * (1.0 - kept), chances[1:])


def _residual(p: Floats, q: Floats) -> Floats:
    left = np.maximum(0.0, p - q)
    total = float(left.sum())
    return left / total if total > 0.0 else p


def states_of(said: Any, verification: str) -> States:
    """(share of rounds, chances) of each state that ``ranks`` names; one state unless it has ``states``.

    Raises ValueError naming key and value.
    """
    if not isinstance(said, Mapping) or "states" not in said:
        return ((1.0, _ranks(said, KEY, verification)),)
    entries = said["states"]
    if len(said) > 1 or not isinstance(entries, list | tuple) or not 1 <= len(entries) <= MOST_STATES:
        raise ValueError(f"{KEY}.states: {shown(entries)} is not a list of 1 to {MOST_STATES} {{share, ranks}}")
    found = []
    for i, entry in enumerate(entries):
        at = f"{KEY}.states[{i}]"
        if not isinstance(entry, Mapping) or set(entry) != {"share", "ranks"}:
            raise ValueError(f"{at}: {shown(entry)} has no share and ranks")
        found.append((probability(entry["share"], f"{at}.share"), _ranks(entry["ranks"], f"{at}.ranks", verification)))
    if abs(sum(share for share, _ in found) - 1.0) > 1e-9:
        raise ValueError(f"{KEY}.states: shares add up to {sum(share for share, _ in found):g}, not to 1")
    return tuple(found)


def _ranks(said: Any, key: str, verification: str) -> Ranks:
    """A name, one vector for every depth, a vector by depth, or ``{target, draft}`` distributions."""
    if isinstance(said, str):
        if said not in RANKS:
            raise ValueError(f"{key}: {shown(said)} is not one of {', '.join(RANKS)}{suggest(said, RANKS)}")
        return RANKS[said]
    if isinstance(said, Mapping):
        return _from_distributions(said, key, verification)
    if not isinstance(said, list | tuple) or not 1 <= len(said) <= MOST_RANKS:
        what = f"a name, a list of chances by rank, a list of such lists by depth, or target and draft ({MOST_RANKS})"
        raise ValueError(f"{key}: {shown(said)} is not {what}")
    rows = said if isinstance(said[0], list | tuple) else [said]
    if len(rows) > MOST_DEPTH:
        raise ValueError(f"{key}: {len(rows)} depths; allowed: up to {MOST_DEPTH}")
    return Ranks(tuple(_row(row, f"{key}[{i}]") for i, row in enumerate(rows)))


def _row(said: Any, key: str) -> tuple[float, ...]:
    if not isinstance(said, list | tuple) or not 1 <= len(said) <= MOST_RANKS:
        raise ValueError(f"{key}: {shown(said)} is not a list of 1 to {MOST_RANKS} probabilities")
    row = tuple(probability(chance, f"{key}[{j}]") for j, chance in enumerate(said))
    if sum(row) > 1.0 + 1e-9:
        raise ValueError(f"{key}: {shown(list(row))} adds up to {sum(row):g}; one child at most is accepted")
    return row


def _from_distributions(said: Mapping[str, Any], key: str, verification: str) -> Ranks:
    if set(said) != {"target", "draft"}:
        raise ValueError(f"{key}: takes target and draft, or states, got {shown(sorted(map(str, said)))}")
    p, q = (_distribution(said[side], f"{key}.{side}") for side in ("target", "draft"))
    if len(p) != len(q):
        raise ValueError(f"{key}.draft: {len(q)} tokens, the target has {len(p)}; must be the same")
    return Ranks((tuple(child_chances(p, q, min(len(p), MOST_TRIED), verification).tolist()),))


def _distribution(said: Any, key: str) -> list[float]:
    if not isinstance(said, list | tuple) or not 2 <= len(said) <= MOST_TOKENS:
        raise ValueError(f"{key}: {shown(said)} is not a list of 2 to {MOST_TOKENS} weights")
    weights = [number(w, f"{key}[{i}]", 0.0, 1e9) for i, w in enumerate(said)]
    if sum(weights) <= 0.0:
        raise ValueError(f"{key}: {shown(said)} has no weight above 0")
    return weights
