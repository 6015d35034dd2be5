"""Several samples of one prompt: the prompt is read once, its cache forked, and the samples decoded side by side.

Autoregressively, or with a draft model (batched speculation). No policy of its own: every policy takes ``samples``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sim.reference.decoding import Round, Session, Tokens
from sim.reference.sampling import Sampler, draw
from sim.reference.twins._chain import ChainSession, ModelDrafter, NoDrafter

if TYPE_CHECKING:
    from sim.reference.transformer import Transformer


@dataclass(frozen=True)
class Samples:
    """A twin for prompts that are all the same one. ``draft`` None: autoregressive; else ``gamma`` drafts a round."""

    draft: Transformer | None = None
    gamma: int = 4

    def begin(self, target: Transformer, prompts: Sequence[Tokens], sampler: Sampler, seed: int) -> Session:
        """One prefill for all. Raises ValueError for prompts that differ."""
        if any(not np.array_equal(prompt, prompts[0]) for prompt in prompts):
            raise ValueError("samples: the prompts differ; allowed: the same prompt for every sample")
        drafter: NoDrafter | ModelDrafter = NoDrafter(target.shape.vocab)
        if self.draft is not None:
            drafter = ModelDrafter(self.draft, self.gamma, sampler, len(prompts), seed)
            drafter.cache = self.draft.new_cache(1)
        return _Group(target, prompts, sampler, seed, drafter)


class _Group(ChainSession):
    """Sequences that begin as one."""

    def prefill(self) -> list[Round]:
        """One pass over one prompt, then as many caches as samples; each draws its own first token."""
        self.cache = self.target.new_cache(1)
        logits = self.target.forward(self.prompts[:1], self.cache, rows="last")  # [1, V]
        self.drafter.prefill(self.prompts[:1])
        more = len(self.prompts) - 1
        for cache in (self.cache, *([self.drafter.cache] if isinstance(self.drafter, ModelDrafter) else [])):
            cache.fork(0, more)
        self.target.meter.sample(np.repeat(logits, more + 1, axis=0))
        p = self.sampler.probabilities(logits)[0]
        rounds = [Round((), 0, (draw(p, luck.random()),)) for luck in self.luck]
        for context, r in zip(self.contexts, rounds, strict=True):
            context.extend(r.emitted)
        return rounds
