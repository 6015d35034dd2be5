"""A store searched by hand, trees of the most frequent prefixes, and sampled output with the target's distribution."""

from __future__ import annotations

import numpy as np
import pytest
from policy_checks import excess, refusal

from sim.reference.decoding import Round
from sim.reference.twins import retrieval
from sim.reference.twins.retrieval import Store, Tree, TreeSession, store
from sim.validation.distribution import tiny_pair

TEXT = (1, 2, 3, 1, 2, 4, 1, 2, 3, 5, 2, 3)


def test_places_by_hand() -> None:
    """Every place behind an occurrence that something follows."""
    found = Store(np.array(TEXT), 4)
    assert sorted(found.places([1, 2]).tolist()) == [2, 5, 8]
    assert sorted(found.places([2, 3]).tolist()) == [3, 9]  # the third one ends the text
    assert found.places([9]).tolist() == [] and found.places([5]).tolist() == [10]


def test_the_longest_end_decides() -> None:
    """(3, 1, 2) occurs once, so that only what follows it there is taken; of an unknown end a shorter one."""
    found = Store(np.array(TEXT), 4)
    assert found.continuations([3, 1, 2], 2) == [(4, 1)]
    assert sorted(found.continuations([7, 1, 2], 2)) == [(3, 1), (3, 5), (4, 1)]
    assert found.continuations([7], 2) == []


def test_the_tree_keeps_the_most_frequent_prefixes() -> None:
    """(3) twice, then once each; parents come before children, a prefix is never without what begins it."""
    tree = Tree.of([(3, 1), (3, 5), (4, 1)], 4)
    assert tree.tokens == (3, 4, 1, 5) and tree.parents == (-1, -1, 0, 0)
    assert tree.widths == (2, 2) and tree.mask.parents == (-1, 0, 0, 1, 1)
    assert Tree.of([(3, 1), (3, 5), (4, 1)], 1).tokens == (3,)
    assert Tree.of([], 5) == Tree((), ()) and Tree((), ()).widths == ()


def test_sampled_output_has_the_targets_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    """All 256 continuations of four tokens, by chi-square; a walk that takes what the target did not draw is caught."""
    target, _ = tiny_pair()
    twin = retrieval.Twin(6, 3, 2, (1, 2, 3, 0, 1, 3, 2, 2, 0, 3, 1, 1, 2, 0))
    got, likely = excess(twin, target)
    assert got < likely
    monkeypatch.setattr(TreeSession, "_walk", _greedy_child(TreeSession._walk))
    got, likely = excess(twin, target)
    assert got > 3 * likely


def _greedy_child(walk):  # type: ignore[no-untyped-def]
    def wrong(self, sequence, tree, p):  # type: ignore[no-untyped-def]
        branch, own = walk(self, sequence, tree, p)
        return (branch, own) if branch or not tree.tokens else ([1], int(p[1].argmax()))

    return wrong


def test_options_and_rounds() -> None:
    """Options are checked; a round keeps no more than the tree is deep."""
    assert refusal(lambda: retrieval.Twin(0)) == "policy retrieval: candidates is 0; allowed: an integer >= 1"
    assert refusal(lambda: retrieval.Twin(depth=0)) == "policy retrieval: depth is 0; allowed: an integer >= 1"
    assert Round((3, 4, 1, 5), 2, (3, 5, 9)).own == (9,)
    assert store(TEXT, 4) is store(TEXT, 4)
