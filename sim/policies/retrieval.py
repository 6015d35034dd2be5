"""Retrieval drafts (REST): a tree of what followed the last tokens elsewhere, in a store of other texts. No model.

He et al. 2023 (arXiv 2311.08252). The longest end of the context that occurs in the store (a suffix array on the host)
yields continuations; the most frequent prefixes of them form a tree of ``candidates`` tokens, verified in one target
pass with tree attention. Each node is compared with the token that the target itself draws there: the output is the
target's at every temperature. What is kept grows with the logarithm of the store.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sim.analytic.work import reads_of
from sim.policies import Draws, Future, IntArray, Pass, Prompts, Totals, Windows, one_pass
from sim.policies.acceptance import SAME, kept_under, survival_vector
from sim.policies.checks import number, probability, whole

HELD: tuple[float, ...] = (0.62, 0.40, 0.25, 0.16, 0.09, 0.06, 0.04, 0.02, 0.01, 0.0)
"""Shape of the default survival: an assumption whose sum is the paper's 1.65 tokens kept (HumanEval, 27 GB)."""


@dataclass(frozen=True)
class Retrieval:
    """``candidates``: tokens of the tree; ``depth``: of its longest branch; ``match``: P(a round finds anything);
    ``acceptance``: P(a branch of at least k tokens is kept | a match), any kind that is the same in every round, of
    ``depth`` entries; ``lookup_us``: host time of a search, for each decoding sequence.
    """

    name: ClassVar[str] = "retrieval"
    drafts: ClassVar[tuple[str, ...]] = ()
    linear: ClassVar[bool] = True
    candidates: int = 64
    depth: int = 10
    match: float = 1.0
    acceptance: Any = None
    lookup_us: float = 700.0

    def __post_init__(self) -> None:
        whole(self.depth, "policy.depth", 1, 64)
        whole(self.candidates, "policy.candidates", self.depth, 1024)
        probability(self.match, "policy.match")
        number(self.lookup_us, "policy.lookup_us", 0, 1e6)
        _ = self.survival

    @cached_property
    def survival(self) -> NDArray[np.float64]:
        """P(at least k tokens of a branch are kept | a match), k = 1..depth; shape [depth], not increasing."""
        if self.acceptance is None:
            return np.array([*HELD, *[0.0] * self.depth])[: self.depth]
        return survival_vector(self.acceptance, self.depth, kinds=SAME)

    @cached_property
    def widths(self) -> IntArray:
        """Nodes of the tree at depth 1, 2, ...: as even as they can be, what is over nearest to the root; [depth].

        Only sliding windows and the pairs inside the tree depend on it, a share of candidates/context of the work.
        """
        each, over = divmod(self.candidates, self.depth)
        return each + (np.arange(self.depth) < over).astype(np.int64)

    @property
    def tokens_per_round(self) -> int:
        """Rows of the target pass: the tree and the last token."""
        return self.candidates + 1

    @property
    def host_s(self) -> tuple[float, float]:
        """Seconds that the host takes in a round, and for each sequence: a search, fruitful or not."""
        return 0.0, self.lookup_us * 1e-6

    # -- closed forms

    @property
    def expected_tokens(self) -> float:
        """Tokens a round, E = 1 + m * sum of the survival vector."""
        return 1.0 + self.match * float(self.survival.sum())

    def wall_time_factor(self, verify: float = 1.0, lookup: float = 0.0) -> float:
        """Speedup of one sequence alone: E / (1 - m + m * verify + lookup), costs in autoregressive steps."""
        return self.expected_tokens / (1.0 - self.match + self.match * verify + lookup)

    # -- what the engine asks

    def future(self, draws: Draws, start: int, remaining: int) -> Future:
        """A draw for the match and one for the branch, each round; the last gain is clipped to what is left."""
        if start == 0:
            matched, row, rounds = draws.from_tile("match", self._matched)
            kept = draws.from_tile("acceptance", self._branch)[0][row] * matched[row]
            if rounds + int(kept.sum()) >= remaining:
                return one_pass.clipped(kept, matched[row] * self.candidates, remaining)
        return one_pass.walked(lambda count: self._first(draws, count), start, remaining, self.expected_tokens)

    def _first(self, draws: Draws, count: int) -> tuple[IntArray, IntArray]:
        matched = self._matched(draws.uniforms("match", 0, count))
        return self._branch(draws.uniforms("acceptance", 0, count)) * matched, matched * self.candidates

    def _matched(self, u: NDArray[np.float64]) -> IntArray:
        return (u < self.match).astype(np.int64)

    def _branch(self, u: NDArray[np.float64]) -> IntArray:
        return kept_under(self.survival, u)

    def channels(self, windows: tuple[Windows, ...]) -> int:
        """Drafted tokens, then reads and pairs by attention kind."""
        return one_pass.channels(windows)

    def rows(self, future: Future, context: int, windows: tuple[Windows, ...]) -> tuple[IntArray, ...]:
        """Pairs that the tree's mask lets through: a node sees what is cached, its ancestors and itself.

        ``noted`` of a future may hold the nodes by depth that each round really had, shape [rounds, deepest].
        """
        before = future.offsets + context
        nodes = future.noted if future.noted is not None else (future.drafted > 0)[:, None] * self.widths
        found: list[IntArray] = [future.drafted]
        for window in windows[0]:
            found += [reads_of(before, window), _tree_pairs(before, nodes, window)]
        return tuple(found)

    def passes(
        self, seats: Any, totals: Totals | None, prompts: Prompts | None, windows: tuple[Windows, ...]
    ) -> Iterable[Pass]:
        """One target pass: a token of each sequence and the trees of those that matched, all of them to the head."""
        return one_pass.passes(seats, totals, prompts, windows)


def _tree_pairs(before: IntArray, nodes: IntArray, window: int | None) -> IntArray:
    """Pairs of the last token and of ``nodes`` [rounds, deepest] at depth 1, 2, ... after ``before`` cached tokens."""
    sees = before[:, None] + np.arange(1, nodes.shape[1] + 2)
    if window is not None:
        sees = np.minimum(sees, window)
    pairs: IntArray = sees[:, 0] + (sees[:, 1:] * nodes).sum(axis=1)
    return pairs
