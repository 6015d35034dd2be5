"""Aggressive decoding: the draft is the rest of the input; after a difference, from where the output's end recurs.

Sun et al. (arXiv 2106.04970); Ge et al. (arXiv 2205.10350). Lossless at every temperature: copies are certain.
:func:`realigned` counts what the simulator's policy takes as ``realign``; what copies are worth is counted by
:func:`copied_survival`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from sim.reference.decoding import Generation, Session, Tokens
from sim.reference.sampling import Floats, Sampler, one_hot
from sim.reference.twins._chain import ChainSession, Context, Draft

if TYPE_CHECKING:
    from sim.reference.transformer import Transformer


@dataclass(frozen=True)
class Twin:
    """Verify up to ``gamma`` tokens of the input at once; find the last ``suffix`` output tokens again in it.

    ``sources``: the text to copy of each sequence, by default its prompt. Raises ValueError for gamma or suffix below
    1, or sources that are not one for each prompt.
    """

    gamma: int = 32
    suffix: int = 2
    sources: tuple[tuple[int, ...], ...] | None = None

    def __post_init__(self) -> None:
        """Refuse options that copy nothing."""
        for key in ("gamma", "suffix"):
            if getattr(self, key) < 1:
                raise ValueError(f"policy input_copy: {key} is {getattr(self, key)!r}; allowed: an integer >= 1")

    def begin(self, target: Transformer, prompts: Sequence[Tokens], sampler: Sampler, seed: int) -> Session:
        """A chain session whose drafter reads the sources and the output."""
        sources = [tuple(map(int, p)) for p in prompts] if self.sources is None else list(self.sources)
        if len(sources) != len(prompts):
            raise ValueError(f"policy input_copy: {len(sources)} sources for {len(prompts)} prompts; allowed: one each")
        copier = _Copier(self, sources, [len(p) for p in prompts], target.shape.vocab)
        return ChainSession(target, prompts, sampler, seed, copier)


class _Copier:
    """Where each sequence stands in its source: the place of its next token, None where it is lost."""

    def __init__(self, options: Twin, sources: list[tuple[int, ...]], prompts: list[int], vocab: int) -> None:
        self.options, self.sources, self.prompts, self.vocab = options, sources, prompts, vocab
        self.places: list[int | None] = [1 for _ in sources]  # the prefill's token stands for the source's first
        self.chains: list[tuple[int, ...]] = [() for _ in sources]
        self.lengths = [n + 1 for n in prompts]

    def prefill(self, prompts: Sequence[Tokens]) -> None:
        """Nothing to read ahead."""

    def propose(self, contexts: Sequence[Context], active: Sequence[int]) -> list[Draft]:
        """The rest of the source, or nothing."""
        for s in active:
            if self.places[s] is None:
                self.places[s] = self._found(s, contexts[s])
            place = self.places[s]
            self.chains[s] = () if place is None else self.sources[s][place : place + self.options.gamma]
        chains = [self.chains[s] for s in active]
        return [Draft(chain, one_hot(np.array(chain, dtype=np.int64), self.vocab)) for chain in chains]

    def settle(self, sequence: int, context: Context) -> None:
        """Go on behind what was kept, the target's own token taken for the source's; a difference loses the place."""
        kept = len(context) - self.lengths[sequence] - 1
        place, chain = self.places[sequence], self.chains[sequence]
        self.places[sequence] = None if place is None or kept < len(chain) else place + kept + 1
        self.lengths[sequence] = len(context)

    def _found(self, sequence: int, context: Context) -> int | None:
        """Behind the occurrence of the output's end that lies nearest to where the output is."""
        source, n = np.array(self.sources[sequence]), self.options.suffix
        output = context[self.prompts[sequence] :]
        if len(source) < n or len(output) < n:
            return None
        windows = np.lib.stride_tricks.sliding_window_view(source, n)
        ends = np.flatnonzero((windows == output[-n:]).all(axis=1)) + n
        return int(ends[np.abs(ends - len(output)).argmin()]) if len(ends) else None


def realigned(runs: Sequence[Generation]) -> float:
    """Share of rounds without a place that found one again; nan where none was ever lost."""
    found = []
    for run in runs:
        lost = False
        for before, after in pairwise(run.rounds):
            lost = before.accepted < len(before.drafted) or (lost and not before.drafted)
            if lost:
                found.append(bool(after.drafted))
    return float(np.mean(found)) if found else float("nan")


def copied_survival(runs: Sequence[Generation], gamma: int) -> Floats:
    """P(at least k copies kept), k = 1..gamma, of drafts that may end with the source before gamma; shape [gamma].

    Kaplan and Meier's estimate: a draft that is kept to its end says nothing of what would have followed.
    """
    rounds = [(r.accepted, len(r.drafted)) for run in runs for r in run.rounds if r.drafted and r.own]
    kept, drafted = (np.array(column) for column in zip(*rounds, strict=True))
    k = np.arange(1, gamma + 1)[:, None]
    judged = ((kept >= k - 1) & (drafted >= k)).sum(axis=1)
    held = ((kept >= k) & (drafted >= k)).sum(axis=1)
    return np.asarray(np.cumprod(held / np.maximum(judged, 1)))
