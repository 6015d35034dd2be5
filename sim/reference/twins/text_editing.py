"""Text editing on a real encoder-decoder: tags and an order out of the encoder's states, insertions out of the decoder.

EdiT5 (arXiv 2205.12209). Positions to insert at are named by the last tokens of the vocabulary, as T5 names its extra
ids: token V - 1 - i stands for "after source token i". The heads are untrained, so that what a text says means nothing;
that only what is new is decoded, and what it costs, is real. :func:`edit` gives whole texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim.reference.decoding import Generation, Round, Session, Tokens, decode
from sim.reference.sampling import Sampler, draw, stream

if TYPE_CHECKING:
    from sim.reference.transformer import Transformer

Array = NDArray[Any]
TAGS = 2  # delete, keep


@dataclass(frozen=True)
class Plan:
    """What the encoder decided for one source: positions of it that are kept, in the order in which they come."""

    kept: tuple[int, ...]


@dataclass(frozen=True)
class Twin:
    """``pointer``: kept tokens are put in a new order, else they stay in theirs; ``start``: the decoder's first input.

    ``planned`` collects a :class:`Plan` for each source that :meth:`begin` sees. Raises ValueError for a model without
    an encoder.
    """

    pointer: bool = True
    start: int = 0
    planned: list[Plan] = field(default_factory=list, compare=False)

    def begin(self, target: Transformer, prompts: Sequence[Tokens], sampler: Sampler, seed: int) -> Session:
        """Prompts are sources of the encoder."""
        if not target.shape.encoder:
            raise ValueError(f"policy text_editing: {target.shape.name} has no encoder; allowed: encoder-decoders")
        return _EditSession(self, target, prompts, sampler, seed)


class _EditSession:
    """One encoder pass with the heads; then a decoder token a round."""

    def __init__(self, twin: Twin, target: Transformer, prompts: Sequence[Tokens], sampler: Sampler, seed: int) -> None:
        self.twin, self.target, self.prompts, self.sampler = twin, target, prompts, sampler
        self.cache = target.new_cache(len(prompts))
        self.luck = [stream(seed, "sequence", i) for i in range(len(prompts))]
        self.last = [twin.start] * len(prompts)
        d, luck = target.shape.d_model, stream(seed, "edit heads")
        self.tag = (luck.standard_normal((d, TAGS)) / d**0.5).astype(target.dtype)
        self.point = (luck.standard_normal((d, 2 * d)) / d**0.5).astype(target.dtype)

    def prefill(self) -> list[Round]:
        """Read the sources, tag and order them, write the first token."""
        states = self.target.encode(self.prompts, self.cache)
        with self.target.meter.prefix("draft."):
            self.twin.planned[:] = self._plans(states)
        return self.round(range(len(self.prompts)))

    def round(self, active: Sequence[int]) -> list[Round]:
        """A token of each, each reading its source across."""
        logits = self.target.forward([np.array([self.last[s]]) for s in active], self.cache, active)
        self.target.meter.sample(logits)
        rows = self.sampler.probabilities(logits)
        for s, row in zip(active, rows, strict=True):
            self.last[s] = draw(row, self.luck[s].random())
        return [Round((), 0, (self.last[s],)) for s in active]

    def _plans(self, states: Sequence[Array]) -> list[Plan]:
        """Tags and pointers of all sources at once; scores are those of a source's own tokens."""
        meter, exact, together = self.target.meter, self.target.exact, np.concatenate(list(states))
        ends = np.cumsum([len(one) for one in states])[:-1]
        tags = np.split(meter.linear("edit.tag", together, self.tag, exact=exact).argmax(axis=-1), ends)
        if not self.twin.pointer:
            return [Plan(tuple(np.flatnonzero(one).tolist())) for one in tags]
        pointed = np.split(meter.linear("edit.point", together, self.point, exact=exact), ends)
        return [
            Plan(_ordered(np.flatnonzero(one), self._scores(both))) for one, both in zip(tags, pointed, strict=True)
        ]

    def _scores(self, both: Array) -> Array:
        """[n, 2d] -> [n, n]: how well token j comes after token i."""
        query, key = np.split(both, 2, axis=-1)
        return self.target.meter.matmul("edit.point.scores", query, key.T, activations=both.nbytes)


def _ordered(kept: NDArray[np.int64], scores: Array) -> tuple[int, ...]:
    """From the first kept token on, always to the best-scored one that has not come yet."""
    left, order = kept.tolist(), list[int]()
    while left:
        follow = left[0] if not order else max(left, key=lambda j: float(scores[order[-1], j]))
        left.remove(follow)
        order.append(follow)
    return tuple(order)


def edit(
    twin: Twin, target: Transformer, sources: Sequence[Tokens], steps: int | Sequence[int], *,
    sampler: Sampler | None = None, seed: int = 0, end: int = 1,
) -> list[tuple[Generation, tuple[int, ...]]]:  # fmt: skip
    """Edit every source: what was decoded, in at most ``steps`` steps or to the token ``end``, and its text."""
    done = decode(twin, target, sources, steps, sampler=sampler, seed=seed, stop=frozenset({end}))
    vocab = target.shape.vocab
    return [
        (one, realised(source.tolist(), plan, one.tokens, vocab, end))
        for one, source, plan in zip(done, sources, twin.planned, strict=True)
    ]


def realised(source: Sequence[int], plan: Plan, decoded: Sequence[int], vocab: int, end: int = 1) -> tuple[int, ...]:
    """The text that an edit makes: kept tokens in their order, after each of them what was decoded for its position.

    Position marks are tokens V - n .. V - 1 for a source of n. Words for a token that is not kept come after the
    nearest kept one before it; where there is none, and before the first mark, they come to the front.
    """
    inserted: dict[int, list[int]] = {}
    at = -1
    for token in decoded:
        if token == end:
            break
        if token >= vocab - len(source):
            at = vocab - 1 - token
        else:
            inserted.setdefault(at, []).append(token)
    after: dict[int, list[int]] = {}
    for at in sorted(inserted):
        after.setdefault(max((k for k in plan.kept if k <= at), default=-1), []).extend(inserted[at])
    kept = (token for position in plan.kept for token in (source[position], *after.get(position, [])))
    return (*after.get(-1, []), *kept)
