"""A tandem that really runs: a secondary writes blocks out of the primary's states, the primary reads or judges them.

Tandem Transformers (arXiv 2402.08644). After every pass of the primary the projections of what it read take the place
of the secondary's own keys and values. Speculative mode is lossless; standalone mode keeps whatever was written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.reference.decoding import Round, Session, Tokens
from sim.reference.sampling import Floats, Sampler, draw, softmax
from sim.reference.twins._chain import ChainSession, Context, Draft, ModelDrafter
from sim.reference.twins._secondary import Secondary, load_secondary

if TYPE_CHECKING:
    from sim.reference.transformer import Transformer

MODES = ("speculative", "standalone")


@dataclass(frozen=True)
class Twin:
    """``draft``: a secondary or the name of one; ``gamma`` tokens of it a block; see the policy of the same name.

    ``stop``: a block ends once the secondary's likeliest next token has less probability than this (0: never); the
    token is drafted still. Raises ValueError for options that name nothing, or a secondary of another primary.
    """

    draft: Secondary | str = "tandem"
    gamma: int = 4
    mode: str = "speculative"
    free_token: bool = True
    stop: float = 0.0

    def __post_init__(self) -> None:
        """Refuse blocks of nothing and modes that do not exist."""
        if isinstance(self.gamma, bool) or not isinstance(self.gamma, int) or self.gamma < 1:
            raise ValueError(f"policy tandem: gamma is {self.gamma!r}; allowed: an integer >= 1")
        if self.mode not in MODES:
            raise ValueError(f"policy tandem: mode is {self.mode!r}; allowed: {', '.join(MODES)}")
        if self.mode == "speculative" and not self.free_token:
            raise ValueError("policy tandem: free_token is False; allowed in mode standalone only")
        if not 0 <= self.stop <= 1 or (self.stop and self.mode == "standalone"):
            raise ValueError(f"policy tandem: stop is {self.stop!r}; allowed: 0 to 1, in mode speculative")

    def begin(self, target: Transformer, prompts: Sequence[Tokens], sampler: Sampler, seed: int) -> Session:
        """The primary reads the prompts; the secondary sees them through it."""
        model = load_secondary(self.draft, exact=target.exact) if isinstance(self.draft, str) else self.draft
        widths = {w.shape[0] for w in model.projections}
        if widths != {target.shape.d_model} or max(model.layer_map) > len(target.shape.layers):
            raise ValueError(f"policy tandem: {model.shape.name} is no secondary of {target.shape.name}")
        writer = Writer(model, self.gamma, sampler, len(prompts), seed, self.stop)
        if self.mode == "speculative":
            return Judged(target, prompts, sampler, seed, writer)
        return Standalone(target, prompts, sampler, seed, writer, self.free_token)


class Writer(ModelDrafter):
    """The secondary: writes chains, and takes its cache from the primary's states."""

    model: Secondary

    def __init__(
        self, model: Secondary, gamma: int, sampler: Sampler, sequences: int, seed: int, stop: float = 0.0
    ) -> None:
        """``stop``: see :class:`Twin`."""
        super().__init__(model, gamma, sampler, sequences, seed)
        self.stop = stop

    def prefill(self, prompts: Sequence[Tokens]) -> None:
        """Nothing: prompts come as the primary's states."""

    def propose(self, contexts: Sequence[Context], active: Sequence[int]) -> list[Draft]:
        """A chain for each: all of one length, or as long as the secondary stays confident."""
        if not self.stop:
            return super().propose(contexts, active)
        live, feeds = list(active), {s: self.unread(s, contexts[s]) for s in active}
        chains: dict[int, list[int]] = {s: [] for s in active}
        rows: dict[int, list[Floats]] = {s: [] for s in active}
        while live:
            logits = self._logits([feeds[s] for s in live], live)
            for s, q in zip(live, self.sampler.probabilities(logits), strict=True):
                chains[s].append(draw(q, self.luck[s].random()))
                rows[s].append(q)
                feeds[s] = np.array(chains[s][-1:], dtype=np.int64)
            sure = softmax(logits).max(axis=-1) >= self.stop  # of any token, not of the one drawn: lossless
            live = [s for s, on in zip(live, sure, strict=True) if on and len(chains[s]) < self.gamma]
        return [Draft(tuple(chains[s]), np.array(rows[s])) for s in active]

    def _logits(self, feeds: Sequence[Tokens], live: Sequence[int]) -> Floats:
        with self.model.meter.prefix("draft."):
            logits: Floats = self.model.forward(feeds, self.cache, live, rows="last")  # [b, V]
            self.model.meter.sample(logits)
        return logits

    def renew(self, states: Any, sequences: Sequence[int], starts: Sequence[int], feeds: Sequence[Tokens]) -> None:
        """Projections of what the primary read, ``feeds[i]`` from place ``starts[i]`` of sequence i on."""
        self.model.renew(states, self.cache, sequences, starts, [len(feed) for feed in feeds])


class Judged(ChainSession):
    """Speculative mode: the pass that verifies the block also renews the projections."""

    drafter: Writer

    def prefill(self) -> list[Round]:
        """One pass of the primary over the prompts, its first token for each, and the projections."""
        everyone = range(len(self.prompts))
        logits = self.read(self.prompts, everyone, "last")  # [b, V]
        p, _ = self._distributions(logits)
        rounds = [Round((), 0, (draw(p[i], self.luck[i].random()),)) for i in everyone]
        for sequence, r in enumerate(rounds):
            self.contexts[sequence].extend(r.emitted)
        return rounds

    def round(self, active: Sequence[int]) -> list[Round]:
        """Write, verify, project, keep what is accepted."""
        drafts = self.drafter.propose(self.contexts, active)
        feeds = [np.array([self.contexts[s][-1], *d.tokens]) for s, d in zip(active, drafts, strict=True)]
        p, judge = self._distributions(self.read(feeds, active, "all"))  # [sum of g_i + 1, V]
        ends = np.cumsum([len(feed) for feed in feeds])[:-1]
        rows = zip(active, drafts, np.split(p, ends), np.split(judge, ends), strict=True)
        return [self._commit(s, d, *self._verify(s, d, p, judge)) for s, d, p, judge in rows]

    def read(self, feeds: Sequence[Tokens], sequences: Sequence[int], rows: Any) -> Any:
        """A pass of the primary, and of the projections behind it; -> logits."""
        starts = [int(self.cache.lengths[s]) for s in sequences]
        wanted = sorted(set(self.drafter.model.layer_map))
        logits, states = self.target.forward(feeds, self.cache, sequences, rows=rows, return_hidden=wanted)
        self.drafter.renew(states, sequences, starts, feeds)
        return logits


class Standalone(Judged):
    """Standalone mode: the block stays, and the primary, having read it, writes the next token if ``free``."""

    def __init__(
        self, target: Transformer, prompts: Sequence[Tokens], sampler: Sampler, seed: int, writer: Writer, free: bool
    ) -> None:
        """The first token of each answer is the primary's, free or not."""
        super().__init__(target, prompts, sampler, seed, writer)
        self.free = free

    def round(self, active: Sequence[int]) -> list[Round]:
        """Write, read what was written; nothing is judged, so that all of it counts as accepted."""
        drafts = self.drafter.propose(self.contexts, active)
        chains = [(self.contexts[s][-1], *d.tokens) for s, d in zip(active, drafts, strict=True)]
        feeds = [np.array(chain if self.free else chain[:-1]) for chain in chains]
        logits = self.read(feeds, active, "last" if self.free else "none")
        own = self._own(logits, active) if self.free else [()] * len(feeds)
        rounds = []
        for s, d, mine in zip(active, drafts, own, strict=True):
            rounds.append(Round(d.tokens, len(d.tokens), (*d.tokens, *mine)))
            self.contexts[s].extend(rounds[-1].emitted)
        return rounds

    def _own(self, logits: Any, active: Sequence[int]) -> list[tuple[int, ...]]:
        p, _ = self._distributions(logits)
        return [(draw(p[i], self.luck[s].random()),) for i, s in enumerate(active)]


def block_rows(
    primary: Transformer, secondary: Secondary, text: Tokens, gamma: int, sampler: Sampler, first: int = 0
) -> Floats:
    """What the secondary would sample from after each token of a text, cut into blocks of ``gamma``, [n] -> [n, V].

    ``first``: the index in its block of the first token. Every block sees projections of all tokens before it.
    """
    wanted = sorted(set(secondary.layer_map))
    _, states = primary.forward([text], primary.new_cache(1), rows="none", return_hidden=wanted)
    cache = secondary.new_cache(1)
    secondary.renew(states, cache, [0], [0], [len(text)])
    bounds = [0, *(t for t in range(1, len(text)) if (t + first) % gamma == 0), len(text)]
    if len(bounds) > 2:
        cache.fork(0, len(bounds) - 2)
    for block, start in enumerate(bounds[:-1]):
        cache.truncate(block, start)
    parts = [text[a:b] for a, b in pairwise(bounds)]
    return sampler.probabilities(secondary.forward(parts, cache, rows="all"))
