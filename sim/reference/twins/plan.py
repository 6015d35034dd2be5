"""Plan and write, really done: the primary writes the first tokens, its secondary the rest. Lossy, exploratory.

The secondary sees prompt and plan through projections of the primary's states (sim/reference/twins/_secondary.py) and
what it wrote itself through keys and values of its own: a tandem block that never ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sim.reference.decoding import Round, Session, Tokens
from sim.reference.sampling import Sampler, draw
from sim.reference.twins._secondary import Secondary, load_secondary
from sim.reference.twins.tandem import Judged, Writer

if TYPE_CHECKING:
    from sim.reference.transformer import Transformer


@dataclass(frozen=True)
class Twin:
    """``draft``: a secondary or the name of one; ``tokens`` of the plan. Raises ValueError for a plan of none."""

    draft: Secondary | str = "tandem"
    tokens: int = 8

    def __post_init__(self) -> None:
        """Refuse a plan of nothing."""
        if isinstance(self.tokens, bool) or not isinstance(self.tokens, int) or self.tokens < 1:
            raise ValueError(f"policy plan: tokens is {self.tokens!r}; allowed: an integer >= 1")

    def begin(self, target: Transformer, prompts: Sequence[Tokens], sampler: Sampler, seed: int) -> Session:
        """The primary reads the prompts; the secondary sees them through it."""
        model = load_secondary(self.draft, exact=target.exact) if isinstance(self.draft, str) else self.draft
        return _Session(target, prompts, sampler, seed, Writer(model, 1, sampler, len(prompts), seed), self.tokens)


class _Session(Judged):
    """Sequences still planning take a step of the primary, the others one of the secondary, in the same round."""

    def __init__(
        self, target: Transformer, prompts: Sequence[Tokens], sampler: Sampler, seed: int, writer: Writer, tokens: int
    ) -> None:
        super().__init__(target, prompts, sampler, seed, writer)
        self.tokens = tokens

    def round(self, active: Sequence[int]) -> list[Round]:
        """One token each; a token of the secondary is noted as drafted, though nobody judges it."""
        planning = [s for s in active if len(self.contexts[s]) - len(self.prompts[s]) < self.tokens]
        writing = [s for s in active if s not in planning]
        rounds: dict[int, Round] = {}
        if writing:
            for s, draft in zip(writing, self.drafter.propose(self.contexts, writing), strict=True):
                rounds[s] = Round(draft.tokens, 0, draft.tokens)
        if planning:
            p, _ = self._distributions(self.read([np.array(self.contexts[s][-1:]) for s in planning], planning, "last"))
            for i, s in enumerate(planning):
                rounds[s] = Round((), 0, (draw(p[i], self.luck[s].random()),))
        for s in active:
            self.contexts[s].extend(rounds[s].emitted)
        return [rounds[s] for s in active]
