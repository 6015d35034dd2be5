"""Tables counted by hand, and sampled output with the target's own distribution."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from policy_checks import excess, refusal

from sim.reference import decoding
from sim.reference.decoding import decode
from sim.reference.sampling import Sampler
from sim.reference.twins import bigram
from sim.reference.twins.bigram import counted
from sim.validation.distribution import PROMPT, tiny_pair

TEXT = (0, 1, 0, 1, 2, 3, 0, 1, 1, 0)


def test_tables_by_hand() -> None:
    """Token 0 is followed by 1 three times; one more count is shared out by frequency, each token's with one added."""
    single = np.array([5, 5, 2, 2]) / 14
    assert counted(np.array(TEXT), 4, 1)[2] == pytest.approx(single)
    assert counted(np.array(TEXT), 4, 2)[0] == pytest.approx((np.array([0, 3, 0, 0]) + single) / 4)
    assert counted(np.array(TEXT), 4, 2).sum(axis=1) == pytest.approx(np.ones(4))


def test_greedy_drafts_are_the_likeliest_successors() -> None:
    """0 -> 1 -> 0 -> 1 and so on: ties go to the token that the target's greedy choice would take, the lowest."""
    target, _ = tiny_pair()
    [run] = decode(bigram.Twin(3, 2, TEXT), target, [PROMPT], 12, sampler=Sampler(0))
    chains = {r.drafted for r in run.rounds[1:]}
    best = counted(np.array(TEXT), 4, 2).argmax(axis=1)
    assert all(best[a] == b for chain in chains for a, b in pairwise(chain))


def test_sampled_output_has_the_targets_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    """All 256 continuations of four tokens, by chi-square; resampling from p instead of the residual is caught."""
    target, _ = tiny_pair()
    got, likely = excess(bigram.Twin(2, 2, TEXT), target)
    assert got < likely
    monkeypatch.setattr(decoding, "residual", lambda p, q, lenience=1.0: p)
    got, likely = excess(bigram.Twin(2, 2, TEXT), target)
    assert got > 3 * likely


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 0}, "policy bigram: gamma is 0; allowed: an integer >= 1"),
        ({"order": 3}, "policy bigram: order is 3; allowed: 1 or 2"),
        ({"text": (0, 9)}, "policy bigram: text has tokens 0 to 9; allowed: 0 to 3"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    """One line with key, value and what is allowed."""
    target, _ = tiny_pair()
    assert refusal(lambda: decode(bigram.Twin(**options), target, [PROMPT], 4)).startswith(message)  # type: ignore[arg-type]
