"""Adaptive draft length: a small model drafts while a rule trusts what it would draw from, at most ``gamma`` tokens.

The rule looks at the drafter's distribution, before and whatever is drawn: its largest probability (``confidence``,
arXiv 2405.04304 and Hugging Face's assisted generation), or 1 - sqrt(weight * entropy) (``entropy``, the form of
AdaEDL's bound, arXiv 2410.18351). So the draft stays a draw from q, and the output exact, even where the last token is
dropped: dropping a token because *it* was unlikely would not be (a test plants that).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sim.reference.checkpoint import load
from sim.reference.decoding import Session, Tokens
from sim.reference.sampling import Floats, Sampler, draw, softmax
from sim.reference.twins._chain import ChainSession, Context, Draft, ModelDrafter

if TYPE_CHECKING:
    from sim.reference.transformer import Transformer

RULES = ("confidence", "entropy")
LAST = ("kept", "dropped")
WEIGHT = 0.2


@dataclass(frozen=True)
class Twin:
    """``draft``: a model or the name of one; ``gamma``: the longest draft; it stops where ``rule`` says less than
    ``threshold``, and that token is ``kept`` for the target to judge, or ``dropped``.

    Raises ValueError for gamma below 1, a threshold outside [0, 1], an unknown rule or another vocabulary.
    """

    draft: Transformer | str = "drafter"
    gamma: int = 10
    threshold: float = 0.5
    rule: str = "confidence"
    last: str = "kept"

    def __post_init__(self) -> None:
        """Refuse options that draft nothing or name no rule."""
        if self.gamma < 1:
            raise ValueError(f"policy adaptive: gamma is {self.gamma!r}; allowed: an integer >= 1")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"policy adaptive: threshold is {self.threshold!r}; allowed: a number from 0 to 1")
        for key, value, allowed in (("rule", self.rule, RULES), ("last", self.last, LAST)):
            if value not in allowed:
                raise ValueError(f"policy adaptive: {key} is {value!r}; allowed: {', '.join(allowed)}")

    def begin(self, target: Transformer, prompts: Sequence[Tokens], sampler: Sampler, seed: int) -> Session:
        """A chain session whose drafter stops of itself."""
        draft = load(self.draft) if isinstance(self.draft, str) else self.draft
        if draft.shape.vocab != target.shape.vocab:
            raise ValueError(
                f"policy adaptive: draft vocabulary is {draft.shape.vocab}, the target's is {target.shape.vocab}"
            )
        drafter = RuledDrafter(draft, self.gamma, sampler, len(prompts), seed)
        drafter.goes_on, drafter.dropped = self.goes_on, self.last == "dropped"
        return ChainSession(target, prompts, sampler, seed, drafter)

    def goes_on(self, soft: Floats) -> bool:
        """Whether the draft goes on after a token drawn from ``soft`` [V]."""
        return bool(seen(self.rule, soft[None])[0] >= self.threshold)


def seen(rule: str, soft: Floats) -> Floats:
    """What a rule reads off distributions at temperature 1, [n, V] -> [n], at most 1: more is surer."""
    if rule == "confidence":
        return np.asarray(soft.max(axis=-1))
    logs = np.log(np.where(soft > 0, soft, 1.0))
    return np.asarray(1.0 - np.sqrt(WEIGHT * -(soft * logs).sum(axis=-1)))


class RuledDrafter(ModelDrafter):
    """Pass j runs over the sequences that still draft."""

    goes_on: Callable[[Floats], bool]
    dropped: bool

    def propose(self, contexts: Sequence[Context], active: Sequence[int]) -> list[Draft]:
        """Up to ``gamma`` passes; chains of different length, with the last token dropped empty ones too."""
        feeds = {s: self.unread(s, contexts[s]) for s in active}
        chains: dict[int, list[tuple[int, Floats]]] = {s: [] for s in active}
        going = list(active)
        for _ in range(self.gamma):
            q, soft = self._look([feeds[s] for s in going], going)
            on = [s for s, row in zip(going, soft, strict=True) if self.goes_on(row)]
            for s, row in zip(going, q, strict=True):
                token = draw(row, self.luck[s].random())
                feeds[s] = np.array([token], dtype=np.int64)
                if s in on or not self.dropped:
                    chains[s].append((token, row))
            if not (going := on):
                break
        return [self._draft(chains[s]) for s in active]

    def _draft(self, chain: list[tuple[int, Floats]]) -> Draft:
        rows = [row for _, row in chain]
        return Draft(tuple(token for token, _ in chain), np.array(rows).reshape(len(rows), self.model.shape.vocab))

    def _look(self, feeds: Sequence[Tokens], active: Sequence[int]) -> tuple[Floats, Floats]:
        """What tokens are drawn from, and the same at temperature 1; [b, V] each."""
        with self.model.meter.prefix("draft."):
            logits = self.model.forward(feeds, self.cache, active, rows="last")
            self.model.meter.sample(logits)
        return self.sampler.probabilities(logits), softmax(logits)
