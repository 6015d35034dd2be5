"""Shapes of token trees, and which of them to draft: greedy, Sequoia's dynamic program, the best size for a device.

A tree is a tuple of paths, as in Medusa's choices: (0, 2) is the third best child of the best child of the last token,
the root, which is no node itself. Node (.., j) is accepted with the product of the chances along its path, so that
a round emits E = 1 + sum over nodes of that product (Cai et al. 2024, arXiv 2401.10774, section 2.3; Chen et al. 2024,
arXiv 2402.12374, proposition 3.4).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ranks", "Tree", "best_size", "grow", "sequoia"]

Path = tuple[int, ...]
Floats = NDArray[np.float64]
MOST_NODES, MOST_DEPTH = 1024, 64


@dataclass(frozen=True)
class Ranks:
    """``by_depth``: P(the child of rank 0, 1, ... of an accepted node is the one accepted), by depth from 1 on.

    Beyond the last depth its row holds on; a rank that has no entry is never accepted.
    """

    by_depth: tuple[tuple[float, ...], ...]

    def at(self, depth: int, rank: int) -> float:
        """Of a child at ``depth`` (1: of the root) with ``rank`` from 0."""
        row = self.by_depth[min(depth, len(self.by_depth)) - 1]
        return row[rank] if rank < len(row) else 0.0

    def width(self, depth: int) -> int:
        """Ranks that have a chance at ``depth``."""
        return len(self.by_depth[min(depth, len(self.by_depth)) - 1])

    def of(self, path: Path) -> float:
        """P(the whole path is accepted): the product of its ranks' chances."""
        chance = 1.0
        for depth, rank in enumerate(path, 1):
            chance *= self.at(depth, rank)
        return chance


@dataclass(frozen=True)
class Tree:
    """``paths`` by depth, then by rank; every node's parent and better siblings are nodes too.

    Raises ValueError, one line without a key, where they are not, or for an empty or too large tree.
    """

    paths: tuple[Path, ...]

    def __post_init__(self) -> None:
        known = set(self.paths)
        if not 1 <= len(known) <= MOST_NODES or len(known) < len(self.paths):
            raise ValueError(f"a tree has 1 to {MOST_NODES} different nodes, got {len(self.paths)}")
        for path in self.paths:
            if not 1 <= len(path) <= MOST_DEPTH:
                raise ValueError(f"{list(path)[:8]}: a path has 1 to {MOST_DEPTH} ranks")
            if len(path) > 1 and path[:-1] not in known:
                raise ValueError(f"{list(path)}: its parent {list(path[:-1])} is not in the tree")
            if path[-1] > 0 and (*path[:-1], path[-1] - 1) not in known:
                raise ValueError(f"{list(path)}: its better sibling {[*path[:-1], path[-1] - 1]} is not in the tree")
        object.__setattr__(self, "paths", tuple(sorted(known, key=lambda path: (len(path), path))))

    @classmethod
    def chain(cls, length: int) -> Tree:
        """What plain speculative decoding drafts."""
        return cls(tuple((0,) * depth for depth in range(1, length + 1)))

    @property
    def nodes(self) -> int:
        """Drafted tokens, the root left out."""
        return len(self.paths)

    @property
    def depth(self) -> int:
        """Tokens of the longest path."""
        return len(self.paths[-1])

    @cached_property
    def parents(self) -> tuple[int, ...]:
        """For each node the number of its parent, -1 for the root."""
        place = {path: number for number, path in enumerate(self.paths)}
        return tuple(place.get(path[:-1], -1) for path in self.paths)

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Nodes at depth 0 (the root), 1, ..., depth."""
        return (1, *(sum(len(path) == d for path in self.paths) for d in range(1, self.depth + 1)))

    @cached_property
    def inner(self) -> tuple[int, ...]:
        """Nodes that have children, at depth 0, 1, ..., depth - 1."""
        parents = {path[:-1] for path in self.paths}
        return tuple(sum(len(path) == d for path in parents) for d in range(self.depth))

    def survival(self, ranks: Ranks) -> Floats:
        """P(at least k nodes of a path are accepted), k = 1..depth; shape [depth]."""
        alive = np.zeros(self.depth)
        for path in self.paths:
            alive[len(path) - 1] += ranks.of(path)
        return np.minimum.accumulate(np.minimum(alive, 1.0))

    def expected_tokens(self, ranks: Ranks) -> float:
        """E = 1 + sum over nodes of the products of chances along their paths."""
        return 1.0 + sum(ranks.of(path) for path in self.paths)


def grow(ranks: Ranks, nodes: int, depth: int, width: int = MOST_NODES) -> Tree:
    """The tree of the ``nodes`` likeliest paths, grown by adding the likeliest one that fits (Medusa, section 2.3).

    The best tree of its size where chances fall with rank. Paths without a chance are not drafted, so that the tree may
    be smaller than asked for. ``width``: children a node may have.
    """
    found: list[Path] = []
    first = ranks.at(1, 0)
    heap: list[tuple[float, int, Path]] = [(-first, 1, (0,))]
    while heap and len(found) < nodes:
        negative, _, path = heapq.heappop(heap)
        if negative == 0.0 and found:
            break
        found.append(path)
        parent, rank = path[:-1], path[-1]
        above = ranks.of(parent)
        if rank + 1 < min(width, ranks.width(len(path))):
            sibling = (*parent, rank + 1)
            heapq.heappush(heap, (-above * ranks.at(len(path), rank + 1), len(path), sibling))
        if len(path) < depth:
            heapq.heappush(heap, (negative * ranks.at(len(path) + 1, 0), len(path) + 1, (*path, 0)))
    return Tree(tuple(found))


def sequoia(chances: Sequence[float], nodes: int, depth: int) -> Tree:
    """The tree of at most ``nodes`` nodes and ``depth`` levels with the most expected tokens, by dynamic programming.

    ``chances``: P(child j is accepted), the same at every depth, in any order. With T(m, l, b) the most expected tokens
    of m nodes, root included, with l levels below it and exactly b children (arXiv 2402.12374, section 3.1.2):
    ``T(m, l, b) = max over y of T(m - y, l, b - 1) + p_b max over b' of T(y, l - 1, b')``.
    """
    m = nodes + 1
    levels = [_Level(np.concatenate(([0.0], np.ones(m))), np.zeros((1, m + 1), dtype=np.int64), [0] * (m + 1))]
    for _ in range(min(depth, nodes)):
        levels.append(_level(levels[-1].best, chances, m))
    return Tree(tuple(_paths(levels, len(levels) - 1, m, ())))


class _Level(NamedTuple):
    """By nodes n, root included: ``best`` tokens, and with how many ``children``; ``split``[b, n]: nodes of child b."""

    best: Floats
    split: NDArray[np.int64]
    children: Sequence[int]


def _level(below: Floats, chances: Sequence[float], m: int) -> _Level:
    """One more level: child by child, every split of the nodes between the new child and its better siblings."""
    exact = np.full((len(chances) + 1, m + 1), -np.inf)
    exact[0, 1] = 1.0
    split = np.zeros((len(chances) + 1, m + 1), dtype=np.int64)
    for b, chance in enumerate(chances, 1):
        for n in range(b + 1, m + 1):  # the node itself and its better children take at least one each
            options = exact[b - 1, n - 1 : b - 1 : -1] + chance * below[1 : n - b + 1]
            y = int(options.argmax()) + 1
            exact[b, n], split[b, n] = options[y - 1], y
    children = exact.argmax(axis=0)
    best: Floats = exact.max(axis=0)
    best[0] = 0.0
    return _Level(best, split, children.tolist())


def _paths(levels: Sequence[_Level], level: int, n: int, above: Path) -> Iterable[Path]:
    """Walk the choices back, from the last child to the first."""
    for b in range(levels[level].children[n], 0, -1):
        y = int(levels[level].split[b, n])
        here = (*above, b - 1)
        yield here
        yield from _paths(levels, level - 1, y, here)
        n -= y


def best_size(trees: Iterable[Tree], ranks: Ranks, round_s: Callable[[Tree], float]) -> Tree:
    """The tree with the most expected tokens a second; of equal ones the first.

    ``round_s``: seconds of a round that drafts and verifies a tree, at one batch and context on one device (Sequoia's
    hardware-aware sizing, arXiv 2402.12374, section 3.3: most tokens a second, not most tokens).
    """
    return max(trees, key=lambda tree: tree.expected_tokens(ranks) / round_s(tree))
