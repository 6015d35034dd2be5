"""Token trees: several continuations at each place, verified in one pass of the target under a tree mask.

Medusa (Cai et al. 2024, arXiv 2401.10774), EAGLE-1/2/3 (arXiv 2401.15077, 2406.16858, 2503.01840), Hydra (2402.05109),
SpecInfer (2305.09781), Sequoia (2402.12374), multi-token prediction (2404.19737, 2412.19437). A round drafts a tree,
runs the target over the last token and all nodes (a node sees what is cached, its ancestors and itself), keeps the
accepted path and adds one token of the target's own: E = 1 + sum over nodes of the chances along their paths. Keys and
values of the accepted path are moved together, which is free here: at most ``depth`` tokens of them a round.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.analytic.work import Work
from sim.plugin import suggest
from sim.policies import NO_PROMPTS, Draws, Future, IntArray, Model, Pass, Prompts, Totals, Windows
from sim.policies.acceptance import SAME, by_context, kept_under, survival_vector
from sim.policies.by_context import ByContext
from sim.policies.checks import number
from sim.policies.one_pass import clipped, walked
from sim.policies.tree_chances import States, states_of
from sim.policies.tree_draft import Drafting, Level, drafting
from sim.policies.tree_plan import Plan, plan_of
from sim.policies.tree_shapes import Tree as Shape
from sim.policies.tree_work import DraftWork, TargetWork
from sim.quality import LOSSLESS, Quality
from workloads.errors import shown

if TYPE_CHECKING:
    from sim.analytic.cost import PassCost

VERIFICATIONS = ("greedy", "specinfer", "sequoia", "typical")
TYPICAL = Quality(
    0.55, "MT-Bench score of Medusa-2, joint training included, mean of four models", "arXiv 2401.10774, table 1"
)


class _Course(NamedTuple):
    """Rounds of neighbouring requests, unclipped; each of shape [requests, rounds]."""

    kept: IntArray
    total: IntArray


@dataclass(frozen=True)
class Tree:
    """``tree``: a published one by name, paths such as [[0], [1], [0, 0]], or how to build one (tree_plan.py).

    ``ranks``: chances of children (tree_chances.py); ``acceptance``: measured for this very tree instead, kinds of
    acceptance.py but ``empirical``. ``drafter``: see tree_draft.py. ``verification``: greedy (lossless at any
    temperature), specinfer, sequoia, or typical (lossy). ``host_us``: host time of a round for mask and bookkeeping.
    """

    name: ClassVar[str] = "tree"
    linear: ClassVar[bool] = True
    tree: Any = "medusa-63"
    ranks: Any = "medusa-vicuna-7b"
    drafter: Any = "heads"
    verification: str = "greedy"
    acceptance: Any = None
    host_us: float = 0.0

    def __post_init__(self) -> None:
        if self.verification not in VERIFICATIONS:
            hint = suggest(str(self.verification), VERIFICATIONS)
            allowed = ", ".join(VERIFICATIONS)
            raise ValueError(f"policy.verification: {shown(self.verification)} is not one of {allowed}{hint}")
        number(self.host_us, "policy.host_us", 0.0, 1e6)
        _ = self.survival, self.drafting

    # -- what the options say

    @cached_property
    def states(self) -> States:
        """(share of rounds, chances of children) of each state; one unless trees follow the drafter's confidence."""
        return states_of(self.ranks, self.verification)

    @cached_property
    def plan(self) -> Plan:
        """The tree asked for, and how it is grown."""
        return plan_of(self.tree, self.states)

    @cached_property
    def shape(self) -> Shape:
        """The tree; of dynamic ones the one for the mean chances, by which pairs among nodes are counted."""
        return self.plan.shape

    @cached_property
    def survival(self) -> NDArray[np.float64]:
        """P(at least k nodes of a path are kept), k = 1..depth; shape [depth], not increasing."""
        if self.acceptance is None:
            return self.plan.survival(self.states)
        return survival_vector(self.acceptance, self.plan.depth, kinds=(*SAME, "context"))

    @cached_property
    def by_context(self) -> ByContext | None:
        """Where acceptance falls or rises with the context: how; else None."""
        return by_context(self.acceptance, self.plan.depth)

    @cached_property
    def drafting(self) -> Drafting:
        """The passes that draft the tree."""
        return drafting(self.drafter, self._level)

    @property
    def _level(self) -> Level:
        if self.plan.dynamic:
            return Level.dynamic(self.plan.depth, self.plan.width)
        return Level.of(self.shape, self.plan.most_depth)

    @property
    def tokens_per_round(self) -> int:
        """The target runs the last token and every node; their keys and values need room until it has decided."""
        return self.plan.nodes + 1

    @property
    def drafts(self) -> tuple[str | Model, ...]:
        """Heads, layers or a model of its own."""
        return self.drafting.models

    @property
    def expected_tokens(self) -> float:
        """Tokens a round, E = 1 + sum of the survival vector = 1 + sum over nodes of their paths' chances."""
        return 1.0 + float(self.survival.sum())

    @property
    def host_s(self) -> tuple[float, float]:
        """Host seconds of a round, and of each sequence in it."""
        return self.host_us * 1e-6, 0.0

    @property
    def quality(self) -> Quality:
        """Lossless, but for typical acceptance."""
        return TYPICAL if self.verification == "typical" else LOSSLESS

    def settled(self, context: int) -> Tree:
        """The same with the acceptance of this context."""
        if self.by_context is None:
            return self
        return replace(self, acceptance={"kind": "survival", "vector": self.by_context.at(context).tolist()})

    def fitted(self, costs: Sequence[PassCost]) -> Tree:
        """Where the tree is to be fitted to the hardware: with the most tokens a second on these costs, target first.

        At the plan's batch and context; what the drafter catches up is its mean, rounded.
        """
        if not self.plan.hardware:
            return self
        return max(self._candidates(), key=lambda one: one.expected_tokens / one._round_s(costs, self.plan))

    def _candidates(self) -> Iterator[Tree]:
        options = dict(self.drafter) if isinstance(self.drafter, Mapping) else {"kind": self.drafter}
        if options["kind"] in ("heads", "layers"):
            options.setdefault("count", self.plan.most_depth)
        for shape in self.plan.sizes(self.states):
            paths = [list(path) for path in shape.paths]
            said = {"paths": paths, "most_depth": self.plan.most_depth}
            yield replace(self, tree=said, drafter=options)

    def _round_s(self, costs: Sequence[PassCost], plan: Plan) -> float:
        windows = tuple(cost.shape.windows for cost in costs)
        kept = np.full(2, round(self.expected_tokens - 1.0), dtype=np.int64)
        future = Future(kept + 1, np.zeros(2, dtype=np.int64), kept, kept)
        totals = [plan.batch * int(row[1]) for row in self.rows(future, plan.context, windows)]
        passes = self.passes(plan.batch, totals, None, windows)
        return self.host_s[0] + sum(float(costs[one.model].seconds(one.work)) for one in passes)

    # -- what the engine asks

    def future(self, draws: Draws, start: int, remaining: int) -> Future:
        """One uniform a round against the survival vector; the last gain is clipped to what is left."""
        if self.by_context is not None:
            return walked(lambda count: self._along(draws, count), start, remaining, self.expected_tokens)
        course, row, _ = draws.from_tile("acceptance", self._course)
        if start or course.total[row, -1] < remaining:
            row, course = 0, self._long_course(draws, start, remaining)
        kept = course.kept[row, : int(course.total[row].searchsorted(remaining)) + 1]
        return clipped(kept, np.full_like(kept, self.plan.nodes), remaining)

    def _course(self, u: NDArray[np.float64]) -> _Course:
        """What every round would keep, and the running total of gains; shapes [requests, rounds] like the draws."""
        kept = kept_under(self.survival, u)
        return _Course(kept, (kept + 1).cumsum(axis=1))

    def _long_course(self, draws: Draws, start: int, remaining: int) -> _Course:
        guess = min(max(8, int(1.3 * remaining / self.expected_tokens)), remaining)
        while True:
            course = self._course(draws.uniforms("acceptance", start, guess)[None, :])
            if course.total[0, -1] >= remaining:
                return course
            guess = min(2 * guess, remaining)

    def _along(self, draws: Draws, count: int) -> tuple[IntArray, IntArray]:
        """(kept, drafted) of the first ``count`` rounds of a sequence whose acceptance follows its context."""
        law = self.by_context
        assert law is not None
        kept = np.array(law.kept(law.first(draws), draws.uniforms("acceptance", 0, count).tolist()), dtype=np.int64)
        return kept, np.full_like(kept, self.plan.nodes)

    def channels(self, windows: tuple[Windows, ...]) -> int:
        """Context, then what the drafter catches up, and for windows what depends on each one's own length."""
        return 1 + self._target(windows).channels + self._draft(windows).channels

    def rows(self, future: Future, context: int, windows: tuple[Windows, ...]) -> tuple[IntArray, ...]:
        """Context before each round, and the channels of target and drafter."""
        before = future.offsets + context
        return (before, *self._target(windows).rows(before), *self._draft(windows).rows(before, future.kept))

    def passes(
        self, seats: Any, totals: Totals | None, prompts: Prompts | None, windows: tuple[Windows, ...]
    ) -> Iterable[Pass]:
        """The drafter's passes, then verification; heads read no prompts, drafters with layers do."""
        target, draft = self._target(windows), self._draft(windows)
        split = 1 + target.channels
        yield from draft.passes(seats, None if totals is None else (totals[0], *totals[split:]), prompts)
        part = prompts.part(windows[0]) if prompts else NO_PROMPTS
        new = seats * self.tokens_per_round
        pairs, reads = (None, None) if totals is None else target.attention(seats, totals[0], totals[1:split])
        yield Pass(0, Work(part.tokens + new, part.rows + new, pairs, reads, part.pairs, part.reads, part.tokens))

    def _target(self, windows: tuple[Windows, ...]) -> TargetWork:
        return TargetWork(self.plan.widths, windows[0])

    def _draft(self, windows: tuple[Windows, ...]) -> DraftWork:
        return DraftWork(self.drafting, self.plan.depth, windows)
