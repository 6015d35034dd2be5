"""A slice of the target drafts on the target's own cache: it reads verified keys and values, and owns none.

Shared attention cache of MatFormer (arXiv 2310.07707, section 3.4), and early exit. Drafts write their keys and values
where the target will write its own; verification overwrites them in place, so no cache is filled twice, no prompt is
read twice, and the draft is never a token behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sim.reference.decoding import Tokens
from sim.reference.sampling import Sampler
from sim.reference.twins._chain import ChainSession, Context, Draft, ModelDrafter

if TYPE_CHECKING:
    from sim.reference.transformer import Transformer


class SharedDrafter(ModelDrafter):
    """Drafts ``gamma`` tokens into the cache that its session lends it, and hands the cache back as it found it."""

    def prefill(self, prompts: Sequence[Tokens]) -> None:
        """The target has read them."""

    def propose(self, contexts: Sequence[Context], active: Sequence[int]) -> list[Draft]:
        """``gamma`` passes of the slice over verified keys and values, then its own."""
        drafts = super().propose(contexts, active)
        for sequence in active:
            self.cache.truncate(sequence, len(contexts[sequence]) - 1)
        return drafts

    def settle(self, sequence: int, context: Context) -> None:
        """The session has cut the cache back."""


class SharedSession(ChainSession):
    """A chain session whose drafter works on its cache."""

    def __init__(
        self,
        target: Transformer,
        prompts: Sequence[Tokens],
        sampler: Sampler,
        seed: int,
        drafter: SharedDrafter,
        lenience: float = 1.0,
    ) -> None:
        """Raise ValueError where the draft's layers keep other keys and values than the target's."""
        mine, its = target.shape.layers, drafter.model.shape.layers
        if len(its) > len(mine) or any(a.attention != b.attention for a, b in zip(mine, its, strict=False)):
            said = f"draft {drafter.model.shape.name} of {len(its)} layers, target of {len(mine)}"
            raise ValueError(f"policy speculative: shared: {said}; allowed: a slice or a prefix of the target")
        super().__init__(target, prompts, sampler, seed, drafter, lenience)
        drafter.cache = self.cache
