"""Draft a tree, verify it in one pass, keep one path: the session of every tree-drafting twin, and how it judges.

Nodes are numbered by depth, then by rank; in a pass the root (the last token) is row 0 and node n row n + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sim.reference.batch import TreeMask
from sim.reference.decoding import Round, Tokens, accepts, residual
from sim.reference.sampling import Floats, Sampler, draw, stream

if TYPE_CHECKING:
    from sim.reference.transformer import Transformer

Context = list[int]
Path = tuple[int, ...]
Array = NDArray[Any]


@dataclass(frozen=True)
class Shape:
    """A tree by the paths of its nodes, (0, 2) being the third child of the first; by depth, then by rank."""

    paths: tuple[Path, ...]

    def __post_init__(self) -> None:
        """Raise ValueError where a node's parent or better sibling is missing."""
        known = {(), *self.paths}
        for path in self.paths:
            if not path or path[:-1] not in known or (path[-1] and (*path[:-1], path[-1] - 1) not in known):
                raise ValueError(f"policy tree: tree has {list(path)}; allowed: nodes whose parent and siblings it has")
        object.__setattr__(self, "paths", tuple(sorted(set(self.paths), key=lambda p: (len(p), p))))

    @cached_property
    def mask(self) -> TreeMask:
        """Who follows whom, the root first."""
        rows = {(): 0, **{path: n + 1 for n, path in enumerate(self.paths)}}
        return TreeMask((-1, *(rows[path[:-1]] for path in self.paths)))

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """Rows of the children of each row, best first."""
        parents = self.mask.parents
        return tuple(tuple(r for r, parent in enumerate(parents) if parent == row) for row in range(len(parents)))

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Depth of each row, 0 for the root."""
        return (0, *map(len, self.paths))

    @property
    def depth(self) -> int:
        """Of the longest path."""
        return self.depths[-1]

    def rows_at(self, depth: int, inner: bool) -> tuple[int, ...]:
        """Rows of a depth; ``inner``: those with children only."""
        return tuple(r for r, d in enumerate(self.depths) if d == depth and (self.children[r] or not inner))


@dataclass(frozen=True)
class Draft:
    """A drafted tree: ``tokens`` by node, and ``q`` [rows, V], what the children of each row were drawn from.

    ``q`` is None where children are the drafter's best ones and nothing was drawn.
    """

    tokens: tuple[int, ...]
    q: Floats | None = None


class TreeDrafter(Protocol):
    """Proposes trees. ``layers``: after which of the target's layers it wants to see the states."""

    layers: tuple[int, ...]

    def prefill(self, prompts: Sequence[Tokens], states: Sequence[Array]) -> None:
        """The prompts were read; ``states``: [prompt tokens, wanted layers, d] of each."""
        ...

    def propose(self, contexts: Sequence[Context], active: Sequence[int]) -> list[Draft]:
        """A tree to follow the context of each active sequence."""
        ...

    def settle(self, sequence: int, context: Context, path: Sequence[int], states: Array) -> None:
        """The rows of ``path`` were kept; ``states`` [1 + kept, wanted layers, d]: the target's at root and path."""
        ...


# -- judging a tree


@dataclass(frozen=True)
class Judge:
    """How a tree is verified: ``way`` greedy, specinfer, sequoia or typical (``epsilon``, ``delta``)."""

    way: str = "greedy"
    epsilon: float = 0.09
    delta: float = 0.3

    def __call__(self, shape: Shape, draft: Draft, p: Floats, luck: np.random.Generator) -> tuple[list[int], int]:
        """(rows of the accepted path, the target's own next token); ``p`` [rows, V]: the target's distributions."""
        if self.way == "typical":
            return self._typical(shape, draft, p, luck)
        row, path = 0, list[int]()
        while True:
            step = self._follow if self.way == "greedy" else self._try_each
            chosen, own = step(shape.children[row], draft, row, p[row], luck)
            if chosen is None:
                return path, own
            path.append(chosen)
            row = chosen

    def _follow(
        self, children: Sequence[int], draft: Draft, row: int, p: Floats, luck: np.random.Generator
    ) -> tuple[int | None, int]:
        """The target chooses a token; a child that is it goes on. Exact at any temperature, whatever was drafted."""
        own = draw(p, luck.random())
        return next((child for child in children if draft.tokens[child - 1] == own), None), own

    def _try_each(
        self, children: Sequence[int], draft: Draft, row: int, p: Floats, luck: np.random.Generator
    ) -> tuple[int | None, int]:
        """SpecInfer's and Sequoia's rule: judge child after child, what is rejected leaves p, and Sequoia's q too."""
        assert draft.q is not None, "children that were drawn come with what they were drawn from"
        q = draft.q[row]
        for child in children:
            token = draft.tokens[child - 1]
            if accepts(p, q, token, luck.random()):
                return child, -1
            p = residual(p, q)
            q = without(q, token) if self.way == "sequoia" else q
        return None, draw(p, luck.random())

    def _typical(self, shape: Shape, draft: Draft, p: Floats, luck: np.random.Generator) -> tuple[list[int], int]:
        """The longest path of typical tokens, the likeliest of equally long ones; then a typical token."""
        bars, parents = self.bars(p), shape.mask.parents
        alive, likely = [True], [0.0]
        for row in range(1, len(parents)):
            chance = float(p[parents[row], draft.tokens[row - 1]])
            alive.append(alive[parents[row]] and chance > bars[parents[row]])
            likely.append(likely[parents[row]] + float(np.log(max(chance, 1e-300))))
        best = max((r for r, a in enumerate(alive) if a), key=lambda r: (shape.depths[r], likely[r]))
        path, row = [], best
        while row:
            path.append(row)
            row = parents[row]
        return path[::-1], draw(self.truncated(p[best], bars[best]), luck.random())

    def bars(self, p: Floats) -> Floats:
        """min(epsilon, delta exp(-entropy)) of each distribution, [rows, V] -> [rows] (arXiv 2401.10774, 2.3.1)."""
        entropy = -(p * np.log(np.maximum(p, 1e-300))).sum(axis=-1)
        return np.asarray(np.minimum(self.epsilon, self.delta * np.exp(-entropy)))

    @staticmethod
    def truncated(p: Floats, bar: float) -> Floats:
        """The typical tokens of a distribution [V], not normalised; the likeliest one is always among them."""
        return np.where((p > bar) | (p >= p.max()), p, 0.0)


def without(q: Floats, token: int) -> Floats:
    """What is left of a distribution [V] after one token was drawn from it, normalised; all zero after the last."""
    left = q.copy()
    left[token] = 0.0
    total = left.sum()
    return np.asarray(left / total) if total > 0 else left


def children_of(q: Floats, count: int, way: str, luck: np.random.Generator) -> list[int]:
    """Tokens of ``count`` children of a node, best first: the likeliest, or drawn from ``q`` [V] as ``way`` needs."""
    if way in ("greedy", "typical"):
        return [int(t) for t in np.argsort(-q, kind="stable")[:count]]
    out: list[int] = []
    for _ in range(count):
        out.append(draw(q, luck.random()))
        q = without(q, out[-1]) if way == "sequoia" else q
    return out


# -- the session


class TreeSession:
    """Rounds of a drafted tree, one target pass under its mask, one kept path, and the caches moved together."""

    def __init__(
        self,
        target: Transformer,
        prompts: Sequence[Tokens],
        sampler: Sampler,
        seed: int,
        drafter: TreeDrafter,
        shape: Shape,
        judge: Judge,
    ) -> None:
        """The target's cache holds each context without its last token, which the next pass feeds as the root."""
        self.target, self.sampler, self.drafter, self.shape, self.judge = target, sampler, drafter, shape, judge
        self.prompts = prompts
        self.contexts: list[Context] = [list(map(int, prompt)) for prompt in prompts]
        self.cache = target.new_cache(len(prompts))
        self.luck = [stream(seed, "verify", i) for i in range(len(prompts))]

    def prefill(self) -> list[Round]:
        """One pass over the prompts; the target's first token for each."""
        everyone, wanted = range(len(self.prompts)), self.drafter.layers
        logits, hidden = self.target.forward(self.prompts, self.cache, everyone, rows="last", return_hidden=wanted)
        self.target.meter.sample(logits)
        p = self.sampler.probabilities(logits)
        ends = np.cumsum([len(prompt) for prompt in self.prompts])[:-1]
        self.drafter.prefill(self.prompts, np.split(self._states(hidden, sum(map(len, self.prompts))), ends))
        rounds = [Round((), 0, (draw(p[i], self.luck[i].random()),)) for i in everyone]
        for sequence, r in enumerate(rounds):
            self.contexts[sequence].extend(r.emitted)
        return rounds

    def round(self, active: Sequence[int]) -> list[Round]:
        """Draft, verify all trees in one target pass, keep a path of each."""
        drafts = self.drafter.propose(self.contexts, active)
        feeds = [np.array([self.contexts[s][-1], *d.tokens]) for s, d in zip(active, drafts, strict=True)]
        logits, hidden = self.target.forward(
            feeds, self.cache, active, rows="all", tree=self.shape.mask, return_hidden=self.drafter.layers
        )
        self.target.meter.sample(logits)
        rows = len(self.shape.mask.parents)
        p = self.sampler.probabilities(logits).reshape(len(active), rows, -1)
        states = np.stack(np.split(self._states(hidden, len(active) * rows), len(active)))
        return [self._commit(s, d, p[i], states[i]) for i, (s, d) in enumerate(zip(active, drafts, strict=True))]

    def _states(self, hidden: dict[int, Array], rows: int) -> Array:
        """[rows, wanted layers, d] of a pass."""
        if not self.drafter.layers:
            return np.zeros((rows, 0, self.target.shape.d_model), self.target.dtype)
        return np.stack([hidden[layer] for layer in self.drafter.layers], axis=1)

    def _commit(self, sequence: int, draft: Draft, p: Floats, states: Array) -> Round:
        path, own = self.judge(self.shape, draft, p, self.luck[sequence])
        emitted = (*(draft.tokens[row - 1] for row in path), own)
        self.contexts[sequence].extend(emitted)
        self.keep(sequence, path)
        self.drafter.settle(sequence, self.contexts[sequence], path, states[[0, *path]])
        return Round(draft.tokens, len(path), emitted)

    def keep(self, sequence: int, path: Sequence[int]) -> None:
        """Move the keys and values of the root and the path together; the rest is forgotten."""
        self.cache.keep(sequence, [0, *path])
