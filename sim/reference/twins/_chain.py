"""Draft, verify, roll back: the session that every chain-drafting twin shares, and what it asks of a drafter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from sim.reference.decoding import Round, Tokens, lenient_greedy, verify
from sim.reference.sampling import Floats, Sampler, draw, softmax, stream

if TYPE_CHECKING:
    from sim.reference.transformer import Transformer

Context = list[int]
"""Prompt and output so far of one sequence, as token ids."""


@dataclass(frozen=True)
class Draft:
    """A chain proposed for one sequence: ``tokens`` [g] and the distributions ``q`` [g, V] they were drawn from."""

    tokens: tuple[int, ...]
    q: Floats


class Drafter(Protocol):
    """Proposes chains. Chains may be of different lengths, empty ones included."""

    def prefill(self, prompts: Sequence[Tokens]) -> None:
        """Read the prompts."""
        ...

    def propose(self, contexts: Sequence[Context], active: Sequence[int]) -> list[Draft]:
        """A chain to follow the context of each active sequence."""
        ...

    def settle(self, sequence: int, context: Context) -> None:
        """The round is judged: ``context`` is what the sequence now holds; forget what it does not."""
        ...


class NoDrafter:
    """Proposes nothing: chain decoding with it is autoregressive decoding."""

    def __init__(self, vocab: int) -> None:
        """``vocab`` sizes the empty distributions."""
        self.nothing = Draft((), np.zeros((0, vocab)))

    def prefill(self, prompts: Sequence[Tokens]) -> None:
        """Nothing to read."""

    def propose(self, contexts: Sequence[Context], active: Sequence[int]) -> list[Draft]:
        """An empty chain for everyone."""
        return [self.nothing for _ in active]

    def settle(self, sequence: int, context: Context) -> None:
        """Nothing to forget."""


class ModelDrafter:
    """A small model that drafts ``gamma`` tokens one after the other, with a KV cache of its own.

    Between rounds the cache holds at most the context without its last token. After a rejection it is cut back; after
    full acceptance it lacks the last draft too, which was emitted but never fed: the next round's first step then
    feeds two tokens (the catch-up position).
    """

    def __init__(self, model: Transformer, gamma: int, sampler: Sampler, sequences: int, seed: int) -> None:
        """``sampler`` must be the target's: speculative sampling compares like with like."""
        self.model, self.gamma, self.sampler = model, gamma, sampler
        self.cache = model.new_cache(sequences)
        self.luck = [stream(seed, "draft", i) for i in range(sequences)]

    def prefill(self, prompts: Sequence[Tokens]) -> None:
        """Fill the draft's cache with the prompts; no logits are needed."""
        with self.model.meter.prefix("draft."):
            self.model.forward(prompts, self.cache, range(len(prompts)), rows="none")

    def propose(self, contexts: Sequence[Context], active: Sequence[int]) -> list[Draft]:
        """``gamma`` passes of the draft model over the active batch."""
        feeds = [self.unread(s, contexts[s]) for s in active]
        columns, rows = [], []
        for _ in range(self.gamma):
            q = self._step(feeds, active)
            column = [draw(q[i], self.luck[s].random()) for i, s in enumerate(active)]
            feeds = [np.array([token], dtype=np.int64) for token in column]
            columns.append(column)
            rows.append(q)
        q_all = np.stack(rows, axis=1)  # [b, gamma, V]
        return [Draft(tokens, q_all[i]) for i, tokens in enumerate(zip(*columns, strict=True))]

    def unread(self, sequence: int, context: Context) -> Tokens:
        """What the draft has yet to read of a context: its last token, and after full acceptance the one before."""
        return np.array(context[int(self.cache.lengths[sequence]) :], dtype=np.int64)

    def settle(self, sequence: int, context: Context) -> None:
        """Cut the cache back to what is left of it in the context."""
        self.cache.truncate(sequence, min(int(self.cache.lengths[sequence]), len(context) - 1))

    def _step(self, feeds: Sequence[Tokens], active: Sequence[int]) -> Floats:
        with self.model.meter.prefix("draft."):
            logits = self.model.forward(feeds, self.cache, active, rows="last")  # [b, V]
            self.model.meter.sample(logits)
        return self.sampler.probabilities(logits)


class ChainSession:
    """Rounds of draft, one target pass over last token plus drafts, acceptance, and rollback of both caches."""

    def __init__(
        self,
        target: Transformer,
        prompts: Sequence[Tokens],
        sampler: Sampler,
        seed: int,
        drafter: Drafter,
        lenience: float = 1.0,
    ) -> None:
        """The target's cache holds each context without its last token, which the next pass feeds."""
        self.target, self.sampler, self.drafter, self.lenience = target, sampler, drafter, lenience
        self.prompts = prompts
        self.contexts: list[Context] = [list(map(int, prompt)) for prompt in prompts]
        self.cache = target.new_cache(len(prompts))
        self.luck = [stream(seed, "verify", i) for i in range(len(prompts))]

    def prefill(self) -> list[Round]:
        """One pass over the prompts; the target's first token for each."""
        everyone = range(len(self.prompts))
        logits = self.target.forward(self.prompts, self.cache, everyone, rows="last")  # [b, V]
        self.drafter.prefill(self.prompts)
        p, _ = self._distributions(logits)
        rounds = [Round((), 0, (draw(p[i], self.luck[i].random()),)) for i in everyone]
        for sequence, r in enumerate(rounds):
            self.contexts[sequence].extend(r.emitted)
        return rounds

    def round(self, active: Sequence[int]) -> list[Round]:
        """Draft, verify every sequence's chain in one target pass, keep what is accepted."""
        drafts = self.drafter.propose(self.contexts, active)
        feeds = [np.array([self.contexts[s][-1], *d.tokens]) for s, d in zip(active, drafts, strict=True)]
        logits = self.target.forward(feeds, self.cache, active, rows="all")  # [sum of g_i + 1, V]
        p_rows, judge_rows = self._distributions(logits)
        ends = np.cumsum([len(feed) for feed in feeds])[:-1]
        rows = zip(active, drafts, np.split(p_rows, ends), np.split(judge_rows, ends), strict=True)
        return [self._commit(s, d, *self._verify(s, d, p, judge)) for s, d, p, judge in rows]

    def _distributions(self, logits: Floats) -> tuple[Floats, Floats]:
        self.target.meter.sample(logits)
        p = self.sampler.probabilities(logits)
        if self.sampler.greedy and self.lenience < 1:
            return p, lenient_greedy(softmax(logits), self.lenience)
        return p, p

    def _verify(self, sequence: int, draft: Draft, p: Floats, judge: Floats) -> tuple[int, int]:
        coins = self.luck[sequence].random(len(draft.tokens) + 1)
        return verify(draft.tokens, p, draft.q, coins, lenience=self.lenience, judge=judge)

    def _commit(self, sequence: int, draft: Draft, accepted: int, own: int) -> Round:
        emitted = (*draft.tokens[:accepted], own)
        self.contexts[sequence].extend(emitted)
        self.cache.truncate(sequence, len(self.contexts[sequence]) - 1)
        self.drafter.settle(sequence, self.contexts[sequence])
        return Round(draft.tokens, accepted, emitted)
