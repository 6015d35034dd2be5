"""Retrieval drafts: closed forms, luck by confidence interval, pairs of trees counted key by key, and real trees."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from policy_checks import GREEDY, SHAPES, chatty, greedy_differs, near, ragged_prompts, refusal

from sim.analytic.model import ModelShape
from sim.policies import Future
from sim.policies.retrieval import Retrieval
from sim.reference.batch import TreeMask
from sim.reference.cache import KVCache
from sim.reference.checkpoint import SHIPPED, load
from sim.reference.decoding import Generation, Session, decode
from sim.reference.sampling import Sampler, stream
from sim.reference.twins import retrieval
from sim.reference.twins.retrieval import TreeSession
from sim.serving.luck import Luck
from sim.validation import counts
from sim.validation.counts import decoded, measured, mismatches, simulated
from sim.validation.stand_in import dense, stand_in
from sim.validation.tokens import held_out

TEXT = tuple(stream(0, "store").integers(0, 12, 200).tolist())


# --- closed forms and luck


def test_expected_tokens_by_hand() -> None:
    """m = 1/2, survival 1/2 and 1/4: E = 1 + 0.375, and the speedup that follows with a pass of 1.2 steps."""
    policy = Retrieval(6, 2, 0.5, 0.5, 0)
    assert policy.expected_tokens == 1.375 and policy.tokens_per_round == 7
    assert policy.wall_time_factor(verify=1.2, lookup=0.1) == pytest.approx(1.375 / (0.5 + 0.6 + 0.1))
    assert policy.host_s == (0.0, 0.0) and Retrieval().host_s == (0.0, pytest.approx(7e-4))


def test_the_default_keeps_what_the_paper_says() -> None:
    """2.65 tokens a round: HumanEval with the store of 27 GB (arXiv 2311.08252, table 2)."""
    assert Retrieval().expected_tokens == pytest.approx(2.65)


def test_matches_and_branches_by_frequency() -> None:
    """The share of rounds that draft is m; of those at least k tokens are kept as the survival vector says."""
    policy = Retrieval(9, 3, 0.7, {"kind": "decaying", "first": 0.8, "decay": 0.7})
    future = policy.future(Luck(1).of(0), 0, 60_000)
    drafted, kept = future.drafted[:-1], future.kept[:-1]
    assert set(drafted.tolist()) == {0, 9} and near(drafted > 0, 0.7)
    for k, want in enumerate(policy.survival, 1):
        assert near(kept[drafted > 0] >= k, want)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidates": 5}, "policy.candidates: 5 is not a whole number from 10 to 1024"),
        ({"depth": 0}, "policy.depth: 0 is not a whole number from 1 to 64"),
        ({"match": -0.1}, "policy.match: -0.1 is not a probability from 0 to 1"),
        ({"acceptance": {"kind": "survival", "vector": [0.5]}}, "policy.acceptance.vector: needs a list of at least"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    """One line with key, value and what is allowed."""
    assert refusal(lambda: Retrieval(**options)).startswith(message)


# --- work


def attended(tree: TreeMask, cached: int, window: int | None) -> int:
    """Pairs of a tree behind ``cached`` tokens, key by key: a key is seen if it is no further back than the window."""
    pairs = 0
    for node, depth in enumerate(tree.depths.tolist()):
        position = cached + depth
        keys = [*range(cached), *(cached + tree.depths[k] for k in np.flatnonzero(tree.sees[node]))]
        pairs += sum(window is None or key > position - window for key in keys)
    return pairs


@pytest.mark.parametrize("window", [None, 7, 3])
def test_pairs_of_a_tree_by_hand(window: int | None) -> None:
    """Two nodes at depth 1, three at depth 2, one at depth 3, whatever hangs where."""
    policy, before = Retrieval(6, 3, 1.0, 0.5), 9
    noted = np.array([[2, 3, 1]])
    future = Future(np.ones(1, int), np.zeros(1, int), np.zeros(1, int), np.array([6]), noted)
    for parents in ((-1, 0, 0, 1, 1, 2, 3), (-1, 0, 0, 1, 2, 2, 5)):
        drafted, reads, pairs = policy.rows(future, before, ((window,),))
        assert drafted[0] == 6 and reads[0] == (before if window is None else min(before, window - 1))
        assert pairs[0] == attended(TreeMask(parents), before, window)


def test_the_tree_of_a_run_is_even() -> None:
    """64 nodes over ten depths: what is over lies nearest to the root."""
    assert Retrieval().widths.tolist() == [7, 7, 7, 7, 6, 6, 6, 6, 6, 6]


# --- trees really verified


class Noting:
    """A twin that remembers its session."""

    def __init__(self, twin: retrieval.Twin) -> None:
        self.twin, self.session = twin, None

    def begin(self, *given: Any) -> Session:
        self.session = self.twin.begin(*given)
        return self.session


def with_trees(runs: list[Generation], session: TreeSession) -> dict[Generation, Any]:
    """Nodes by depth of every decode round of each run."""
    deepest = max(len(tree.widths) for trees in session.trees for tree in trees)
    return {
        run: np.array([[*t.widths, *[0] * (deepest - len(t.widths))] for t in trees[: len(run.rounds) - 1]])
        for run, trees in zip(runs, session.trees, strict=True)
    }


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_counts_are_exact(shape: ModelShape, monkeypatch: pytest.MonkeyPatch) -> None:
    """FLOPs and bytes of every op of a ragged batch, given the trees that were verified."""
    target, twin = chatty(shape), Noting(retrieval.Twin(7, 3, 4, TEXT))
    target.meter.reset()
    prompts, tokens = ragged_prompts(12)
    runs = decode(twin, target, prompts, tokens, seed=1)
    trees = with_trees(runs, twin.session)  # type: ignore[arg-type]
    happened = counts.happened
    monkeypatch.setattr(counts, "happened", lambda g: happened(g)._replace(noted=trees[g]))
    works = [work for _, work in decoded(Retrieval(7, 3, 1.0, 0.5), runs, (target.shape.windows,))]
    assert mismatches(simulated(target.shape, works), measured(target.meter)) == []
    assert len({tuple(w) for found in trees.values() for w in found.tolist()}) > 3
    assert sum(r.accepted for g in runs for r in g.rounds) > 5


def test_greedy_output_is_the_targets_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one of 40 random prompts ends differently, and branches are kept; keys of another branch left in place of the
    kept one's are caught."""
    target = stand_in(dense(16, 2, 2, 1, 32, 24), 21, sharpness=4.0)
    prompts = [stream(s, "prompts").integers(0, 24, 8) for s in range(40)]
    said = decode(retrieval.Twin(1, 1, 1, (0,)), target, prompts[:6], 60, sampler=Sampler(0.3))
    text = tuple(token for g in said for token in g.tokens)
    runs = greedy_differs(retrieval.Twin(8, 3, 4, text), target, prompts)
    assert sum(r.accepted for g in runs for r in g.rounds) > 100
    monkeypatch.setattr(KVCache, "keep", lambda c, s, rows: c.truncate(s, int(c.bases[s]) + len(rows)))
    with pytest.raises(AssertionError):
        greedy_differs(retrieval.Twin(8, 3, 4, text), target, prompts)


def branches(part: str, count: int = 24) -> Counter[int]:
    """Tokens kept in each whole round of greedy answers of the trained model, from the family's training text."""
    runs = decode(retrieval.Twin(32, 5), load(SHIPPED / "primary"), held_out(part, count), 64, sampler=GREEDY)
    return Counter(r.accepted for g in runs for r in g.rounds[1:-1])


@pytest.mark.slow
def test_tokens_a_round_of_the_trained_model() -> None:
    """Survival of branches measured on text A against tokens a round on text B, within a 99 % interval of both."""
    first, second = branches("a"), branches("b")
    kept, other = (np.array(sorted(c.elements())) for c in (first, second))
    survival = [(kept >= k).mean() for k in range(1, 6)]
    policy = Retrieval(32, 5, 1.0, {"kind": "survival", "vector": survival})
    spread = 2.576 * float(np.hypot(kept.std() / len(kept) ** 0.5, other.std() / len(other) ** 0.5))
    assert spread < 0.15 and abs(policy.expected_tokens - 1 - other.mean()) < spread
