"""Acceptance of drafted tokens as a survival vector: s_k = P(at least k of the drafted tokens are kept).

A number or ``{kind: iid, alpha}``: s_k = alpha^k (Leviathan et al. 2023, section 3.1). ``{kind: survival, vector}``:
measured, as vLLM prints it by position. ``{kind: beta, mean, concentration}``: all positions of a round share one
acceptance rate drawn from a Beta distribution, so that s_k = prod (mean*c + i)/(c + i), i < k, and hazards rise.
``{kind: empirical, betas}``: measured token by token along a text (a CSV file, a shipped pair such as
``primary--drafter``, or a list): a sequence starts somewhere in it and walks along as its own tokens come out, keeping
draft t with probability beta_t; easy and hard places follow each other as they did in the text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workloads import acceptance as measured

MOST_TOKENS = 200_000


def survival_vector(spec: Any, gamma: int) -> NDArray[np.float64]:
    """Shape [gamma]. Raises ValueError naming ``policy.acceptance`` and what is allowed."""
    if not isinstance(spec, Mapping):
        spec = {"kind": "iid", "alpha": spec}
    kinds = {
        "iid": (_iid, {"alpha"}),
        "survival": (_measured, {"vector"}),
        "beta": (_beta, {"mean", "concentration"}),
        "empirical": (_empirical, {"betas"}),
    }
    kind = spec.get("kind", "iid")
    if kind not in kinds:
        raise ValueError(f"policy.acceptance.kind: {kind!r} is not one of {', '.join(kinds)}")
    build, keys = kinds[kind]
    if set(spec) - {"kind"} != keys:
        given = sorted(set(spec) - {"kind"})
        raise ValueError(f"policy.acceptance: kind {kind} takes {', '.join(sorted(keys))}, got {given}")
    return build(spec, gamma)


def _probability(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
        raise ValueError(f"policy.acceptance.{key}: {value!r} is not a probability from 0 to 1")
    return float(value)


def _iid(spec: Mapping[str, Any], gamma: int) -> NDArray[np.float64]:
    return np.cumprod(np.full(gamma, _probability(spec["alpha"], "alpha")))


def _measured(spec: Mapping[str, Any], gamma: int) -> NDArray[np.float64]:
    vector = spec["vector"]
    if not isinstance(vector, list | tuple) or len(vector) < gamma:
        wanted = f"a list of at least gamma = {gamma} probabilities"
        raise ValueError(f"policy.acceptance.vector: needs {wanted}, got {vector!r}")
    values = np.array([_probability(v, f"vector[{i}]") for i, v in enumerate(vector)])
    if np.any(np.diff(values) > 0):
        raise ValueError(f"policy.acceptance.vector: {vector!r} rises; P(at least k kept) cannot")
    return values[:gamma]


def _beta(spec: Mapping[str, Any], gamma: int) -> NDArray[np.float64]:
    mean, weight = _probability(spec["mean"], "mean"), spec["concentration"]
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0.0 < weight < float("inf"):
        raise ValueError(f"policy.acceptance.concentration: {weight!r} is not a positive number")
    i = np.arange(gamma)
    return np.asarray(np.cumprod((mean * weight + i) / (weight + i)), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Walk:
    """A text's acceptance probabilities, laid in a ring; its length is ``tokens``.

    A round that starts at place t keeps draft k = 0, 1, ... with probability beta at t + k, until one is lost; the next
    round starts after the kept drafts and the target's own token. On text drawn from the target this reproduces
    speculative sampling (exact acceptance replay: sim/reference/replay.py gives the derivation).
    """

    betas: Sequence[float]
    gamma: int
    _ring: list[float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Lay the text out once more beyond its end, so that a round never has to look back to the start."""
        laps = 1 + -(-self.gamma // len(self.betas))
        object.__setattr__(self, "_ring", (list(self.betas) * laps)[: len(self.betas) + self.gamma])

    @property
    def tokens(self) -> int:
        """Tokens of the text."""
        return len(self.betas)

    def kept(self, offset: int, coins: Sequence[float]) -> list[int]:
        """Drafts kept in each round from place ``offset`` on, one uniform a round against the survival there."""
        ring, gamma, tokens = self._ring, self.gamma, len(self.betas)
        at, out = offset, []
        for coin in coins:
            kept, survival = 0, 1.0
            while kept < gamma:
                survival *= ring[at + kept]
                if coin >= survival:
                    break
                kept += 1
            out.append(kept)
            at = (at + kept + 1) % tokens
        return out

    def survival(self) -> NDArray[np.float64]:
        """P(at least k kept), k = 1..gamma, over rounds of long sequences that start anywhere; shape [gamma].

        Every place weighs as often as a round starts there; the weights are carried along the ring once, after as many
        places as it takes to forget the start.
        """
        windows = np.lib.stride_tricks.sliding_window_view(np.array(self._ring), self.gamma)[: self.tokens]
        alive = np.cumprod(windows, axis=1)
        ends = -np.diff(alive, axis=1, prepend=1.0, append=0.0)  # P(keep exactly k), k = 0..gamma
        settle = 64 * (self.gamma + 1)
        weight = np.zeros(settle + self.tokens + self.gamma + 1)
        weight[: self.gamma + 1] = 1.0
        for t in range(settle + self.tokens):
            weight[t + 1 : t + self.gamma + 2] += weight[t] * ends[(t - settle) % self.tokens]
        starts = weight[settle : settle + self.tokens]
        return np.asarray(np.minimum.accumulate((starts @ alive) / starts.sum()))


def walk(spec: Any, gamma: int) -> Walk | None:
    """The walk of an ``empirical`` acceptance; None for kinds that are the same everywhere. Raises ValueError."""
    if not isinstance(spec, Mapping) or spec.get("kind") != "empirical":
        return None
    said = spec["betas"]
    if isinstance(said, str):
        try:
            betas = measured.load(said).tolist()
        except ValueError as error:
            raise ValueError(f"policy.acceptance.betas: {error}") from None
    elif isinstance(said, list | tuple):
        betas = [_probability(value, f"betas[{i}]") for i, value in enumerate(said[: MOST_TOKENS + 1])]
    else:
        raise ValueError(f"policy.acceptance.betas: {said!r} is not a CSV file, a measured pair or a list")
    if not 1 <= len(betas) <= MOST_TOKENS:
        raise ValueError(f"policy.acceptance.betas: {len(betas)} tokens; allowed: 1 to {MOST_TOKENS}")
    return Walk(betas, gamma)


def _empirical(spec: Mapping[str, Any], gamma: int) -> NDArray[np.float64]:
    along = walk(spec, gamma)
    assert along is not None
    return along.survival()
