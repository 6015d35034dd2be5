"""Which tree a scenario asks for: published, spelled out, or built for chances and, where asked, for a device.

``{nodes, depth, by}``: ``greedy`` adds the likeliest path until there are so many, ``sequoia`` finds the best tree by
dynamic programming (one vector of chances), ``dynamic`` draws a tree for each round's state: every level grows
``width`` nodes and the best ``nodes`` of all are verified (EAGLE-2, arXiv 2406.16858), ``hardware`` takes the greedy
tree of at most so many nodes with the most tokens a second at ``batch`` and ``context``. ``width``: children a node
may have at most, 1 for a chain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.plugin import suggest
from sim.policies.checks import whole
from sim.policies.tree_chances import States
from sim.policies.tree_data import TREES
from sim.policies.tree_shapes import MOST_DEPTH, Ranks, Tree, grow, sequoia
from workloads.errors import shown

__all__ = ["Plan", "plan_of"]

KEY = "policy.tree"
WAYS = ("greedy", "sequoia", "dynamic", "hardware")
TAKES = ("nodes", "depth", "by", "width", "batch", "context")
MOST_DRAFTED, USUAL_WIDTH = 512, 10


@dataclass(frozen=True)
class Plan:
    """``shape``: the tree, or what stands for all of them; ``nodes`` that the target verifies.

    ``most_depth``: levels that a drafter must be able to draft; ``dynamic``: another tree each round; ``hardware``: to
    be fitted to a device at ``batch`` and ``context``.
    """

    shape: Tree
    nodes: int
    most_depth: int
    width: int = USUAL_WIDTH
    dynamic: bool = False
    hardware: bool = False
    batch: int = 1
    context: int = 1024

    @property
    def depth(self) -> int:
        """Most tokens that a round can keep."""
        return self.most_depth if self.dynamic else self.shape.depth

    @property
    def widths(self) -> tuple[int, ...]:
        """Nodes that the target verifies at depth 0 (the root), 1, ...; of dynamic trees those of the mean chances."""
        return (*self.shape.widths[:-1], self.shape.widths[-1] + self.nodes - self.shape.nodes)

    def survival(self, states: States) -> NDArray[np.float64]:
        """P(at least k kept) over all states, each with its own tree where trees are dynamic; shape [depth]."""
        total = np.zeros(self.depth)
        for share, ranks in states:
            tree = self.grown(ranks) if self.dynamic else self.shape
            alive = tree.survival(ranks)
            total[: len(alive)] += share * alive
        return np.minimum.accumulate(total)

    def grown(self, ranks: Ranks) -> Tree:
        """The best tree of these chances within nodes, depth and width."""
        return grow(ranks, self.nodes, self.most_depth, self.width)

    def sizes(self, states: States) -> Iterator[Tree]:
        """Greedy trees of all depths and of nodes that grow by about a third, up to those asked for."""
        ranks = mean_of(states)
        seen: set[Tree] = set()
        for depth in range(1, self.most_depth + 1):
            for nodes in _steps(self.nodes):
                tree = grow(ranks, nodes, depth, self.width)
                if tree not in seen:
                    seen.add(tree)
                    yield tree


def _steps(most: int) -> Iterator[int]:
    nodes = 1
    while nodes < most:
        yield nodes
        nodes += max(1, nodes // 3)
    yield most


def mean_of(states: States) -> Ranks:
    """Chances averaged over states."""
    depths = max(len(ranks.by_depth) for _, ranks in states)
    rows = []
    for depth in range(1, depths + 1):
        width = max(ranks.width(depth) for _, ranks in states)
        rows.append(tuple(sum(share * ranks.at(depth, j) for share, ranks in states) for j in range(width)))
    return Ranks(tuple(rows))


def plan_of(said: Any, states: States) -> Plan:
    """The plan that ``tree`` asks for. Raises ValueError naming key and value."""
    if isinstance(said, str):
        if said not in TREES:
            raise ValueError(f"{KEY}: {shown(said)} is not one of {', '.join(TREES)}{suggest(said, TREES)}")
        return _given(TREES[said])
    if isinstance(said, Mapping):
        return _fitted(said) if "paths" in said else _built(said, states)
    return _given(_paths(said))


def _given(paths: Any, most_depth: int = 0) -> Plan:
    try:
        tree = Tree(tuple(paths))
    except ValueError as error:
        raise ValueError(f"{KEY}: {error}") from None
    if tree.nodes > MOST_DRAFTED:
        raise ValueError(f"{KEY}: {tree.nodes} nodes; allowed: up to {MOST_DRAFTED}")
    return Plan(tree, tree.nodes, max(tree.depth, most_depth))


def _paths(said: Any) -> list[tuple[int, ...]]:
    if not isinstance(said, list | tuple) or not said or len(said) > MOST_DRAFTED:
        what = f"a name ({', '.join(TREES)}), a list of 1 to {MOST_DRAFTED} paths, or nodes, depth and by"
        raise ValueError(f"{KEY}: {shown(said)} is not {what}")
    return [_path(path, f"{KEY}[{i}]") for i, path in enumerate(said)]


def _path(said: Any, key: str) -> tuple[int, ...]:
    if not isinstance(said, list | tuple) or not 1 <= len(said) <= MOST_DEPTH:
        raise ValueError(f"{key}: {shown(said)} is not a list of 1 to {MOST_DEPTH} ranks")
    return tuple(whole(rank, f"{key}[{j}]", 0, MOST_DRAFTED) for j, rank in enumerate(said))


def _fitted(said: Mapping[str, Any]) -> Plan:
    """What a fit to the hardware found: its paths, and how deep the drafter was asked to go."""
    if set(said) != {"paths", "most_depth"}:
        raise ValueError(f"{KEY}: paths go with most_depth alone, got {shown(sorted(map(str, said)))}")
    return _given(_paths(said["paths"]), whole(said["most_depth"], f"{KEY}.most_depth", 1, MOST_DEPTH))


def _built(said: Mapping[str, Any], states: States) -> Plan:
    for option in said:
        if option not in TAKES:
            raise ValueError(f"{KEY}.{str(option)[:40]}: unknown; takes {', '.join(TAKES)}{suggest(option, TAKES)}")
    way = said.get("by", "greedy")
    if not isinstance(way, str) or way not in WAYS:
        raise ValueError(f"{KEY}.by: {shown(way)} is not one of {', '.join(WAYS)}{suggest(str(way), WAYS)}")
    nodes = whole(said.get("nodes"), f"{KEY}.nodes", 1, MOST_DRAFTED)
    depth = whole(said.get("depth", min(nodes, 8)), f"{KEY}.depth", 1, MOST_DEPTH)
    width = whole(said.get("width", USUAL_WIDTH), f"{KEY}.width", 1, MOST_DRAFTED)
    batch = whole(said.get("batch", 1), f"{KEY}.batch", 1, 1 << 16)
    context = whole(said.get("context", 1024), f"{KEY}.context", 0, 1 << 24)
    most = width + (depth - 1) * width * width
    if way == "dynamic" and nodes > most:
        raise ValueError(f"{KEY}.nodes: {nodes}: width {width} and depth {depth} grow {most} at most")
    tree = _tree(way, states, nodes, depth, width)
    verified = nodes if way == "dynamic" else tree.nodes
    return Plan(tree, verified, depth, width, way == "dynamic", way == "hardware", batch, context)


def _tree(way: str, states: States, nodes: int, depth: int, width: int) -> Tree:
    ranks = mean_of(states)
    if way != "sequoia":
        return grow(ranks, nodes, depth, width)
    if len(ranks.by_depth) > 1:
        raise ValueError(f"{KEY}.by: sequoia takes one list of chances for every depth, ranks have several; use greedy")
    return sequoia(ranks.by_depth[0][:width], nodes, depth)
