"""REST: a tree of what followed the context's end elsewhere in a store of texts. No draft model, no device time.

He et al. (arXiv 2311.08252). Lossless at every temperature by construction: at each node of the tree the target draws
its token as it would alone, and the walk goes on for as long as that token is a child of the node.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sim.reference.batch import TreeMask
from sim.reference.decoding import Round, Session, Tokens
from sim.reference.sampling import Floats, Sampler, draw, stream
from sim.reference.twins._corpus import corpus

if TYPE_CHECKING:
    from sim.reference.transformer import Transformer

MOST_PLACES = 512  # of a common end, spread evenly: what follows the rest of them hardly changes the tree
ROOT = 0


@dataclass(frozen=True)
class Twin:
    """Match at most ``longest`` tokens, take at most ``candidates`` nodes no deeper than ``depth``; ``text``: the
    store, by default the family's training text. Raises ValueError unless all are at least 1.
    """

    candidates: int = 64
    depth: int = 10
    longest: int = 16
    text: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse options that find nothing."""
        for key in ("candidates", "depth", "longest"):
            if getattr(self, key) < 1:
                raise ValueError(f"policy retrieval: {key} is {getattr(self, key)!r}; allowed: an integer >= 1")

    def begin(self, target: Transformer, prompts: Sequence[Tokens], sampler: Sampler, seed: int) -> Session:
        """A session that draws from the target alone and looks ahead in the store."""
        text = tuple(corpus().tolist()) if self.text is None else self.text
        return TreeSession(self, store(text, self.longest), target, prompts, sampler, seed)


class Store:
    """A text and its suffix array: places sorted by the ``longest`` tokens that stand there."""

    def __init__(self, text: Tokens, longest: int) -> None:
        self.text, self.longest = text, longest
        padded = np.concatenate([text, np.full(longest, -1)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, longest)[: len(text)]
        self.order = np.lexsort(windows.T[::-1])

    def places(self, end: Sequence[int]) -> NDArray[np.int64]:
        """Where the tokens ``end`` are followed by something: the places behind them, at most ``MOST_PLACES``."""
        n, wanted = len(end), list(end)

        def key(place: int) -> list[int]:
            return list(map(int, self.text[place : place + n]))

        low, high = bisect_left(self.order, wanted, key=key), bisect_right(self.order, wanted, key=key)
        found = self.order[low:high] + n
        found = found[found < len(self.text)]
        step = -(-len(found) // MOST_PLACES)
        return found[:: max(1, step)]

    def continuations(self, context: Sequence[int], depth: int) -> list[tuple[int, ...]]:
        """Up to ``depth`` tokens from every place that follows the longest end of the context that occurs at all."""
        for n in range(min(self.longest, len(context)), 0, -1):
            places = self.places(context[-n:])
            if len(places):
                return [tuple(self.text[p : p + depth].tolist()) for p in places]
        return []


@cache
def store(text: tuple[int, ...], longest: int) -> Store:
    """The store of a text, sorted once."""
    return Store(np.array(text, dtype=np.int64), longest)


@dataclass(frozen=True)
class Tree:
    """Nodes behind the last token: ``tokens`` [n], ``parents`` [n] (-1: the last token), parents before children."""

    tokens: tuple[int, ...]
    parents: tuple[int, ...]

    @staticmethod
    def of(continuations: Sequence[tuple[int, ...]], candidates: int) -> Tree:
        """The most frequent prefixes; a prefix is never rarer than one that it begins, so that it comes first."""
        seen = Counter(one[: k + 1] for one in continuations for k in range(len(one)))
        best = sorted(seen, key=lambda prefix: (-seen[prefix], len(prefix), prefix))[:candidates]
        best.sort(key=lambda prefix: (len(prefix), prefix))
        number = {prefix: i for i, prefix in enumerate(best)}
        return Tree(tuple(p[-1] for p in best), tuple(number.get(p[:-1], -1) for p in best))

    @property
    def mask(self) -> TreeMask:
        """With the last token as the root."""
        return TreeMask((-1, *(parent + 1 for parent in self.parents)))

    @property
    def widths(self) -> tuple[int, ...]:
        """Nodes at depth 1, 2, ..."""
        counts = Counter(self.mask.depths.tolist())
        return tuple(counts[k] for k in range(1, max(counts) + 1))


class TreeSession:
    """Rounds of look-up, one target pass over every sequence's tree, and a walk down each; ``trees`` keeps them."""

    def __init__(
        self, options: Twin, source: Store, target: Transformer, prompts: Sequence[Tokens], sampler: Sampler, seed: int
    ) -> None:
        """The cache holds each context without its last token, the root of the next tree."""
        self.options, self.source, self.target, self.sampler = options, source, target, sampler
        self.prompts = prompts
        self.contexts = [list(map(int, prompt)) for prompt in prompts]
        self.cache = target.new_cache(len(prompts))
        self.luck = [stream(seed, "verify", i) for i in range(len(prompts))]
        self.trees: list[list[Tree]] = [[] for _ in prompts]

    def prefill(self) -> list[Round]:
        """One pass over the prompts; the target's first token for each."""
        everyone = range(len(self.prompts))
        p = self._drawn_from(self.target.forward(self.prompts, self.cache, everyone, rows="last"))
        rounds = [Round((), 0, (draw(p[i], self.luck[i].random()),)) for i in everyone]
        for sequence, r in enumerate(rounds):
            self.contexts[sequence].extend(r.emitted)
        return rounds

    def round(self, active: Sequence[int]) -> list[Round]:
        """Look up, verify all trees in one pass, keep the branch that the target takes."""
        o = self.options
        trees = [Tree.of(self.source.continuations(self.contexts[s], o.depth), o.candidates) for s in active]
        feeds = [np.array([self.contexts[s][-1], *t.tokens]) for s, t in zip(active, trees, strict=True)]
        masks = [t.mask for t in trees]
        p = self._drawn_from(self.target.forward(feeds, self.cache, active, rows="all", tree=masks))
        parts = np.split(p, np.cumsum([len(feed) for feed in feeds])[:-1])
        return [self._commit(s, t, *self._walk(s, t, rows)) for s, t, rows in zip(active, trees, parts, strict=True)]

    def _drawn_from(self, logits: Floats) -> Floats:
        self.target.meter.sample(logits)
        return self.sampler.probabilities(logits)

    def _walk(self, sequence: int, tree: Tree, p: Floats) -> tuple[list[int], int]:
        """-> (rows of the pass on the branch taken, the root left out; the target's last token)."""
        edges = zip(tree.parents, tree.tokens, strict=True)
        children = {(parent + 1, token): row for row, (parent, token) in enumerate(edges, 1)}
        branch: list[int] = []
        at = ROOT
        while True:
            token = draw(p[at], self.luck[sequence].random())
            if (at, token) not in children:
                return branch, token
            at = children[at, token]
            branch.append(at)

    def _commit(self, sequence: int, tree: Tree, branch: list[int], own: int) -> Round:
        emitted = (*(tree.tokens[row - 1] for row in branch), own)
        self.contexts[sequence].extend(emitted)
        self.cache.keep(sequence, [ROOT, *branch])
        self.trees[sequence].append(tree)
        return Round(tree.tokens, len(branch), emitted)
