"""Adaptive drafts along a measured text: acceptance token by token, and what a rule saw there, or would have seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.policies.acceptance import MOST_TOKENS, walk
from sim.policies.checks import probability
from sim.policies.predicted import KEY, Rule, Stopping
from workloads.errors import shown

__all__ = ["Guided"]


@dataclass(frozen=True, eq=False)
class Guided:
    """``betas``: P(the draft of this place is kept); ``go``: P(the rule goes on after it); rings of one length.

    A round that starts at place t drafts t, t + 1, ... while the rule goes on, and keeps them until one is lost; the
    next one starts after the target's own token. What is kept is exact for text drawn from the target (see
    acceptance.py), as the rule has seen nothing but kept tokens up to the first one lost; how long a draft goes on
    after that is taken from the text, although it left the text there.
    """

    betas: tuple[float, ...]
    go: tuple[float, ...]
    rule: Rule

    @classmethod
    def of(cls, spec: Mapping[str, Any], rule: Rule) -> Guided:
        """From ``{kind: empirical, betas}`` and perhaps ``predicted``, what the rule compares with the threshold, a
        list as long as the text; else it sees betas, with its skill. Raises ValueError.
        """
        seen = spec.get("predicted")
        rest = {key: value for key, value in spec.items() if key != "predicted"}
        if set(rest) != {"kind", "betas"}:
            raise ValueError(f"{KEY}: kind empirical takes betas, predicted, got {shown(sorted(map(str, rest)))}")
        along = walk(rest, rule.most, KEY)
        assert along is not None
        betas = np.array(along.betas, dtype=np.float64)
        if seen is None:
            above = betas >= rule.threshold
            go = rule.skill * above + rule.go(float(above.mean()))
        else:
            go = np.array([value >= rule.threshold for value in _predicted(seen, len(betas))], dtype=np.float64)
        return cls(tuple(betas.tolist()), tuple(go.tolist()), rule)

    @property
    def tokens(self) -> int:
        """Tokens of the text."""
        return len(self.betas)

    def rounds(self, offset: int, coins: Sequence[float], lengths: Sequence[float]) -> tuple[list[int], list[int]]:
        """(kept, offered) of each round from place ``offset`` on, two uniforms a round."""
        betas, go = self._rings
        most, dropped, tokens, at = self.rule.most, self.rule.dropped, self.tokens, offset
        kept, offered = [], []
        for coin, length in zip(coins, lengths, strict=True):
            stop, on = 1, go[at]
            while stop <= most and length < on:
                on *= go[at + stop]
                stop += 1
            draft = stop - 1 if dropped else min(stop, most)
            held, alive = 0, betas[at]
            while held < draft and coin < alive:
                held += 1
                alive *= betas[at + held]
            kept.append(held)
            offered.append(draft)
            at = (at + held + 1) % tokens
        return kept, offered

    @cached_property
    def _rings(self) -> tuple[list[float], list[float]]:
        """The text once more beyond its end, so that a round never has to look back to the start."""
        laps = 1 + -(-(self.rule.most + 1) // self.tokens)
        length = self.tokens + self.rule.most + 1
        return (list(self.betas) * laps)[:length], (list(self.go) * laps)[:length]

    @cached_property
    def stopping(self) -> Stopping:
        """The law of a round, over rounds of long sequences that start anywhere; ``keep`` clipped at the draft's end.

        Every place weighs as often as a round starts there; the weights are carried along the ring once, after as many
        places as it takes to forget the start.
        """
        go, alive = self._both()
        stops = -np.diff(go, axis=1, prepend=1.0, append=0.0)  # [tokens, most + 1]
        weight = self._starts(stops, alive)
        reached = weight @ stops
        joint = np.einsum("t,ts,tk->sk", weight, stops, alive)
        keep = np.divide(joint, reached[:, None], out=np.zeros_like(joint), where=reached[:, None] > 0)
        return Stopping((weight @ go) / weight.sum(), np.minimum(keep, 1.0))

    def _both(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """P(the rule goes on after tokens 1..j) and P(at least j kept of an endless draft) by place, [tokens, most]."""
        betas, go = self._rings
        windows = [np.lib.stride_tricks.sliding_window_view(np.array(r), self.rule.most) for r in (go, betas)]
        on, alive = (np.cumprod(w[: self.tokens], axis=1) for w in windows)
        return on, alive

    def _starts(self, stops: NDArray[np.float64], alive: NDArray[np.float64]) -> NDArray[np.float64]:
        """How often a round starts at each place; shape [tokens]."""
        most, s = self.rule.most, np.arange(1, self.rule.most + 2)
        offered = s - 1 if self.rule.dropped else np.minimum(s, most)
        longer = np.array([[float(d >= k) for k in range(1, most + 1)] for d in offered])
        at_least = (stops @ longer) * alive  # P(at least k are offered and kept), [tokens, most]
        ends = -np.diff(at_least, axis=1, prepend=1.0, append=0.0)
        settle = 64 * (most + 1)
        weight = np.zeros(settle + self.tokens + most + 1)
        weight[: most + 1] = 1.0
        for t in range(settle + self.tokens):
            weight[t + 1 : t + most + 2] += weight[t] * ends[(t - settle) % self.tokens]
        return weight[settle : settle + self.tokens]


def _predicted(seen: Any, tokens: int) -> list[float]:
    if not isinstance(seen, list | tuple) or len(seen) != tokens or tokens > MOST_TOKENS:
        raise ValueError(f"{KEY}.predicted: {shown(seen)} is not a list of {tokens} numbers, one a token of betas")
    return [probability(value, f"{KEY}.predicted[{i}]") for i, value in enumerate(seen)]
