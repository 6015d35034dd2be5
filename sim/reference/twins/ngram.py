"""Prompt lookup: the draft is copied from where the last few tokens occurred before. No draft model, no cost.

Saxena 2023 (prompt lookup decoding); the n-gram mode of vLLM. A sequence without a match gets a plain step.
:func:`matched` counts what the simulator's policy takes as its match probability; what the copies are worth is counted
by :func:`sim.reference.acceptance.kept_survival`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sim.reference.decoding import Generation, Session, Tokens
from sim.reference.sampling import Sampler, one_hot
from sim.reference.twins._chain import ChainSession, Context, Draft

if TYPE_CHECKING:
    from sim.reference.transformer import Transformer


@dataclass(frozen=True)
class Twin:
    """Match at most ``longest`` and at least ``shortest`` tokens; copy up to ``gamma`` of what followed.

    ``whole``: take the earliest place that all ``gamma`` tokens follow, as Saxena's code does, not the latest with any.
    Lossless at every temperature: the draft is a distribution that is certain. Raises ValueError unless gamma >= 1 and
    1 <= shortest <= longest.
    """

    gamma: int = 10
    longest: int = 3
    shortest: int = 1
    whole: bool = False

    def __post_init__(self) -> None:
        """Refuse options that never match or copy nothing."""
        if self.gamma < 1:
            raise ValueError(f"policy ngram: gamma is {self.gamma!r}; allowed: an integer >= 1")
        if not 1 <= self.shortest <= self.longest:
            raise ValueError(
                f"policy ngram: shortest is {self.shortest!r}; allowed: an integer from 1 to longest = {self.longest!r}"
            )

    def begin(self, target: Transformer, prompts: Sequence[Tokens], sampler: Sampler, seed: int) -> Session:
        """A chain session whose drafter reads the context only."""
        return ChainSession(target, prompts, sampler, seed, _Lookup(self, target.shape.vocab))


class _Lookup:
    """The drafter: stateless but for its options."""

    def __init__(self, options: Twin, vocab: int) -> None:
        self.options, self.vocab = options, vocab

    def prefill(self, prompts: Sequence[Tokens]) -> None:
        """Contexts are handed over each round; nothing to read ahead."""

    def propose(self, contexts: Sequence[Context], active: Sequence[int]) -> list[Draft]:
        """Copies, or nothing."""
        o = self.options
        chains = [copied(contexts[s], o.longest, o.shortest, o.gamma, o.whole) for s in active]
        return [Draft(chain, one_hot(np.array(chain, dtype=np.int64), self.vocab)) for chain in chains]

    def settle(self, sequence: int, context: Context) -> None:
        """Nothing to forget."""


def copied(
    context: Sequence[int], longest: int, shortest: int, gamma: int, whole: bool = False
) -> tuple[int, ...]:
    """Up to ``gamma`` tokens that followed the latest earlier occurrence of the longest matching end of a context.

    ``whole``: exactly ``gamma`` tokens, of the earliest occurrence that so many follow.
    """
    text = np.asarray(context)
    last = len(text) - gamma if whole else len(text) - 1  # a copy starts here at the latest
    for n in range(min(longest, len(text) - 1), shortest - 1, -1):
        windows = np.lib.stride_tricks.sliding_window_view(text[:-1], n)  # every n-gram but the last one
        starts = np.flatnonzero((windows == text[-n:]).all(axis=1)) + n
        starts = starts[starts <= last]
        if len(starts):
            start = int(starts[0 if whole else -1])
            return tuple(int(t) for t in text[start : start + gamma])
    return ()


def matched(runs: Sequence[Generation]) -> float:
    """Share of decode rounds that had something to copy: the match probability m. nan without a decode round."""
    rounds = [bool(r.drafted) for run in runs for r in run.rounds[1:]]
    return float(np.mean(rounds)) if rounds else float("nan")
