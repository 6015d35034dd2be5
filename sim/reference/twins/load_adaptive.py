"""Speculative sampling whose gamma follows how many sequences decode: long drafts for few, short ones or none for many.

While gamma is 0 the drafter is ``fed`` what is emitted, one pass a round without logits, or stays ``idle`` and reads
all that it has missed in its first pass when drafts come back. Lossless in every tier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sim.reference.checkpoint import load
from sim.reference.decoding import Session, Tokens
from sim.reference.sampling import Sampler
from sim.reference.twins._chain import ChainSession, Context, Draft, ModelDrafter

if TYPE_CHECKING:
    from sim.reference.transformer import Transformer

OFF = ("fed", "idle")


@dataclass(frozen=True)
class Twin:
    """``draft``: a model or the name of one; ``tiers``: pairs (batch, gamma), rising from batch 1; ``hysteresis``:
    sequences by which a batch must fall below a tier's before it is left; ``off``: what the drafter does at gamma 0.

    Raises ValueError for tiers that do not rise from batch 1, or a draft with another vocabulary than the target.
    """

    draft: Transformer | str = "drafter"
    tiers: tuple[tuple[int, int], ...] = ((1, 4), (8, 0))
    hysteresis: int = 0
    off: str = "fed"

    def __post_init__(self) -> None:
        """Refuse tiers that leave a batch without a gamma."""
        batches = [batch for batch, _ in self.tiers]
        if not batches or batches[0] != 1 or batches != sorted(set(batches)):
            raise ValueError(f"policy load_adaptive: tiers begin at batches {batches}; allowed: rising ones, from 1")
        if self.off not in OFF:
            raise ValueError(f"policy load_adaptive: off is {self.off!r}; allowed: {', '.join(OFF)}")

    def begin(self, target: Transformer, prompts: Sequence[Tokens], sampler: Sampler, seed: int) -> Session:
        """A chain session whose drafter counts the sequences of a round."""
        draft = load(self.draft) if isinstance(self.draft, str) else self.draft
        if draft.shape.vocab != target.shape.vocab:
            raise ValueError(
                f"policy load_adaptive: draft vocabulary is {draft.shape.vocab}, the target's is {target.shape.vocab}"
            )
        drafter = TieredDrafter(draft, 0, sampler, len(prompts), seed)
        drafter.options = self
        return ChainSession(target, prompts, sampler, seed, drafter)

    def tier(self, before: int, active: int) -> int:
        """The tier of a round with so many sequences after one of tier ``before``."""
        up = [i for i, (batch, _) in enumerate(self.tiers) if active >= batch]
        down = [i for i, (batch, _) in enumerate(self.tiers) if i == 0 or active >= batch - self.hysteresis]
        return max(up[-1], min(before, down[-1]))


class TieredDrafter(ModelDrafter):
    """A model drafter with another ``gamma`` in every tier."""

    options: Twin
    number = 0

    def propose(self, contexts: Sequence[Context], active: Sequence[int]) -> list[Draft]:
        """As many passes as the tier of this batch has; at gamma 0 one that only reads, or none."""
        self.number = self.options.tier(self.number, len(active))
        self.gamma = self.options.tiers[self.number][1]
        if self.gamma:
            return super().propose(contexts, active)
        if self.options.off == "fed":
            with self.model.meter.prefix("draft."):
                self.model.forward([self.unread(s, contexts[s]) for s in active], self.cache, active, rows="none")
        return [Draft((), np.zeros((0, self.model.shape.vocab))) for _ in active]
