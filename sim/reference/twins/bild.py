"""BiLD: a small model writes greedily until it is unsure, the large one looks it over and may roll it back. Lossy.

Kim et al. (arXiv 2302.07863) section 3: fallback where the small model's likeliest probability is below a threshold,
rollback where -ln p of the large model for a written token is above another. :func:`sim.reference.agreement.agreement`
says what it costs in the large model's own terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import TYPE_CHECKING

import numpy as np

from sim.reference.checkpoint import load
from sim.reference.decoding import Session, Tokens
from sim.reference.sampling import Floats, Sampler, one_hot, softmax
from sim.reference.twins._chain import ChainSession, Context, Draft, ModelDrafter

if TYPE_CHECKING:
    from sim.reference.transformer import Transformer


@dataclass(frozen=True)
class Twin:
    """``draft``: a model or the name of one; ``gamma``: most tokens it writes; ``fallback``: least probability that it
    needs; ``rollback``: most -ln p of the large model that stands (its own argmax always does; 0 is lossless).

    Raises ValueError for gamma below 1, fallback outside [0, 1] or rollback below 0; begin() for sampling.
    """

    draft: Transformer | str = "drafter"
    gamma: int = 10
    fallback: float = 0.5
    rollback: float = 3.0

    def __post_init__(self) -> None:
        """Refuse options that write nothing."""
        if isinstance(self.gamma, bool) or not isinstance(self.gamma, int) or self.gamma < 1:
            raise ValueError(f"policy bild: gamma is {self.gamma!r}; allowed: an integer >= 1")
        if not 0 <= self.fallback <= 1:
            raise ValueError(f"policy bild: fallback is {self.fallback!r}; allowed: a probability")
        if not self.rollback >= 0:
            raise ValueError(f"policy bild: rollback is {self.rollback!r}; allowed: a number >= 0")

    def begin(self, target: Transformer, prompts: Sequence[Tokens], sampler: Sampler, seed: int) -> Session:
        """Both models see the prompts; greedy decoding only, as in the paper."""
        if not sampler.greedy:
            raise ValueError(f"policy bild: temperature is {sampler.temperature!r}; allowed: 0, it is greedy")
        model = load(self.draft) if isinstance(self.draft, str) else self.draft
        drafter = _Unsure(model, self.gamma, sampler, len(prompts), seed, self.fallback)
        return _Rolling(target, prompts, sampler, seed, drafter, self.rollback)


class _Unsure(ModelDrafter):
    """Writes the likeliest tokens while they are likely enough; the pass that is not trusted has been run."""

    def __init__(
        self, model: Transformer, gamma: int, sampler: Sampler, sequences: int, seed: int, fallback: float
    ) -> None:
        super().__init__(model, gamma, sampler, sequences, seed)
        self.fallback = fallback

    def propose(self, contexts: Sequence[Context], active: Sequence[int]) -> list[Draft]:
        """Passes over whoever still writes."""
        chains: dict[int, list[int]] = {s: [] for s in active}
        feeds = {s: self.unread(s, contexts[s]) for s in active}
        while writing := [s for s in feeds if len(chains[s]) < self.gamma]:
            soft = self._soft([feeds[s] for s in writing], writing)
            feeds = {}
            for row, s in zip(soft, writing, strict=True):
                if row.max() >= self.fallback:
                    chains[s].append(int(row.argmax()))
                    feeds[s] = np.array(chains[s][-1:], dtype=np.int64)
        vocab = self.model.shape.vocab
        return [Draft(tuple(c), one_hot(np.array(c, dtype=np.int64), vocab)) for c in chains.values()]

    def _soft(self, feeds: Sequence[Tokens], active: Sequence[int]) -> Floats:
        with self.model.meter.prefix("draft."):
            logits = self.model.forward(feeds, self.cache, active, rows="last")  # [b, V]
            self.model.meter.sample(logits)
        return softmax(logits)


class _Rolling(ChainSession):
    """Verification that lets a token stand unless the large model finds it too unlikely."""

    def __init__(
        self, target: Transformer, prompts: Sequence[Tokens], sampler: Sampler, seed: int, drafter: _Unsure,
        rollback: float,
    ) -> None:  # fmt: skip
        super().__init__(target, prompts, sampler, seed, drafter)
        self.least = exp(-rollback)

    def _distributions(self, logits: Floats) -> tuple[Floats, Floats]:
        self.target.meter.sample(logits)
        p, soft = self.sampler.probabilities(logits), softmax(logits)
        return p, np.asarray((soft >= self.least) | (p > 0), dtype=np.float64)
