"""Speculative sampling: a small model drafts gamma tokens, the target judges them in one pass.

Leviathan et al. (arXiv 2211.17192) algorithm 1, Chen et al. (arXiv 2302.01318) algorithm 2. Lossless at lenience 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sim.reference.checkpoint import load
from sim.reference.decoding import Session, Tokens
from sim.reference.sampling import Sampler
from sim.reference.twins._chain import ChainSession, ModelDrafter
from sim.reference.twins._shared_draft import SharedDrafter, SharedSession

if TYPE_CHECKING:
    from sim.reference.transformer import Transformer


@dataclass(frozen=True)
class Twin:
    """``draft``: a model or the name of one; ``gamma`` drafts a round; ``lenience`` 1 is lossless, below 1 biased.

    ``shared``: the draft is a slice of the target and works on the target's cache (see ``_shared_draft.py``). Raises
    ValueError for gamma below 1, lenience outside (0, 1], or a draft with another vocabulary than the target.
    """

    draft: Transformer | str = "drafter"
    gamma: int = 4
    lenience: float = 1.0
    shared: bool = False

    def __post_init__(self) -> None:
        """Refuse options that draft nothing or accept everything."""
        if isinstance(self.gamma, bool) or not isinstance(self.gamma, int) or self.gamma < 1:
            raise ValueError(f"policy speculative: gamma is {self.gamma!r}; allowed: an integer >= 1")
        if not 0 < self.lenience <= 1:
            raise ValueError(f"policy speculative: lenience is {self.lenience!r}; allowed: a number in (0, 1]")

    def begin(self, target: Transformer, prompts: Sequence[Tokens], sampler: Sampler, seed: int) -> Session:
        """Both models see the prompts; the draft samples exactly as the target does."""
        draft = self._model()
        if draft.shape.vocab != target.shape.vocab:
            raise ValueError(
                f"policy speculative: draft {draft.shape.name} has vocabulary {draft.shape.vocab}, the target "
                f"{target.shape.name} {target.shape.vocab}; allowed: one vocabulary"
            )
        if self.shared:
            shared = SharedDrafter(draft, self.gamma, sampler, len(prompts), seed)
            return SharedSession(target, prompts, sampler, seed, shared, self.lenience)
        drafter = ModelDrafter(draft, self.gamma, sampler, len(prompts), seed)
        return ChainSession(target, prompts, sampler, seed, drafter, self.lenience)

    def _model(self) -> Transformer:
        return load(self.draft) if isinstance(self.draft, str) else self.draft
