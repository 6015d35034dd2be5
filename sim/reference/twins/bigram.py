"""Table drafts: tokens proposed from counts of single tokens or of pairs in a text. No draft model, nothing computed.

Leviathan et al. (arXiv 2211.17192) section 4.2. Lossless at every temperature: the table is a distribution like a
model's, tempered and judged like one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sim.reference.decoding import Session, Tokens
from sim.reference.sampling import Floats, Sampler, draw, stream
from sim.reference.twins._chain import ChainSession, Context, Draft
from sim.reference.twins._corpus import corpus

if TYPE_CHECKING:
    from sim.reference.transformer import Transformer


@dataclass(frozen=True)
class Twin:
    """``order`` 1: token frequencies, 2: what follows a token; ``text``: what is counted, by default the family's own.

    Raises ValueError for gamma below 1, another order, or a text with tokens that the target does not have.
    """

    gamma: int = 3
    order: int = 2
    text: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse options that draft nothing."""
        if self.gamma < 1:
            raise ValueError(f"policy bigram: gamma is {self.gamma!r}; allowed: an integer >= 1")
        if self.order not in (1, 2):
            raise ValueError(f"policy bigram: order is {self.order!r}; allowed: 1 or 2")

    def begin(self, target: Transformer, prompts: Sequence[Tokens], sampler: Sampler, seed: int) -> Session:
        """Count the text; draft as the target samples."""
        text = corpus() if self.text is None else np.array(self.text, dtype=np.int64)
        table = sampler.probabilities(np.log(counted(text, target.shape.vocab, self.order)))
        return ChainSession(target, prompts, sampler, seed, _Table(table, self.gamma, len(prompts), seed))


def counted(text: Tokens, vocab: int, order: int) -> Floats:
    """P(next token | the one before), [V, V]: pair counts plus one shared out by token frequency, itself one added.

    ``order`` 1: all rows alike. Raises ValueError for tokens outside the vocabulary.
    """
    if len(text) and not 0 <= text.min() <= text.max() < vocab:
        raise ValueError(f"policy bigram: text has tokens {text.min()} to {text.max()}; allowed: 0 to {vocab - 1}")
    single = np.bincount(text, minlength=vocab) + 1.0
    single /= single.sum()
    pairs = np.zeros((vocab, vocab)) if order == 1 else _pairs(text, vocab)
    table = pairs + single
    return np.asarray(table / table.sum(axis=1, keepdims=True))


def _pairs(text: Tokens, vocab: int) -> Floats:
    flat = np.bincount(text[:-1] * vocab + text[1:], minlength=vocab * vocab)
    return np.asarray(flat.reshape(vocab, vocab), dtype=np.float64)


class _Table:
    """The drafter: a table [V, V] of what to draw after each token."""

    def __init__(self, table: Floats, gamma: int, sequences: int, seed: int) -> None:
        self.table, self.gamma = table, gamma
        self.luck = [stream(seed, "draft", i) for i in range(sequences)]

    def prefill(self, prompts: Sequence[Tokens]) -> None:
        """Nothing to read."""

    def propose(self, contexts: Sequence[Context], active: Sequence[int]) -> list[Draft]:
        """gamma tokens, each from the row of the one before."""
        return [self._chain(contexts[s][-1], s) for s in active]

    def _chain(self, last: int, sequence: int) -> Draft:
        tokens = [last]
        for _ in range(self.gamma):
            tokens.append(draw(self.table[tokens[-1]], self.luck[sequence].random()))
        return Draft(tuple(tokens[1:]), self.table[tokens[:-1]])

    def settle(self, sequence: int, context: Context) -> None:
        """Nothing to forget."""
