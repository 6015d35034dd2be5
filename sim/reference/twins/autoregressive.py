"""One token a target pass: the baseline that every speed-up is measured against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sim.reference.decoding import Session, Tokens
from sim.reference.sampling import Sampler
from sim.reference.twins._chain import ChainSession, NoDrafter

if TYPE_CHECKING:
    from sim.reference.transformer import Transformer


@dataclass(frozen=True)
class Twin:
    """Autoregressive decoding; no options."""

    def begin(self, target: Transformer, prompts: Sequence[Tokens], sampler: Sampler, seed: int) -> Session:
        """A chain session that is never offered a draft."""
        return ChainSession(target, prompts, sampler, seed, NoDrafter(target.shape.vocab))
