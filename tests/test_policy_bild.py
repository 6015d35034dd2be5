"""BiLD: closed forms, luck by confidence interval, passes by hand, counts and texts of real models, and the loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from policy_checks import GREEDY, SHAPES, chatty, clash, near, refusal

from sim.analytic.model import ModelShape
from sim.policies.bild import Bild
from sim.policies.speculative import Speculative
from sim.reference.agreement import agreement
from sim.reference.checkpoint import SHIPPED, load
from sim.reference.decoding import Generation, decode
from sim.reference.twins import autoregressive, bild
from sim.serving.luck import Luck
from sim.validation.stand_in import dense, stand_in
from sim.validation.tokens import held_out


def test_expected_tokens_by_hand() -> None:
    """Goes on with 1/2, stands with 1/2: one token with 1/4, two with 1/16; passes of the small model 1 + 1/2."""
    policy = Bild("d", 2, 0.5, 0.5)
    assert policy.expected_tokens == pytest.approx(1 + 1 / 4 + 1 / 16)
    assert policy.expected_draft_passes == 1.5
    assert policy.wall_time_factor(0.1, 1.2) == pytest.approx(1.3125 / 1.35)
    assert policy.quality.loss_percent is None


def test_certain_confidence_is_speculative_decoding() -> None:
    """A small model that never doubts drafts gamma tokens a round, under the same luck."""
    sure, chain = Bild("d", 4, 1.0, 0.7), Speculative("d", 4, 0.7)
    futures = [policy.future(Luck(1).of(3), 0, 200) for policy in (sure, chain)]
    assert all((a == b).all() for a, b in zip(futures[0][:4], futures[1][:4], strict=True))
    assert sure.expected_tokens == pytest.approx(chain.expected_tokens) and sure.expected_draft_passes == 4


def test_lengths_and_what_stands_by_frequency() -> None:
    """Written lengths follow the confidence, and of rounds that wrote k tokens or more k stand with the acceptance."""
    policy = Bild("d", 4, {"kind": "decaying", "first": 0.9, "decay": 0.8}, 0.85)
    future = policy.future(Luck(2).of(0), 0, 80_000)
    drafted, kept = future.drafted[:-1], future.kept[:-1]
    for k, (written, stands) in enumerate(zip(policy.written, policy.survival, strict=True), 1):
        assert near(drafted >= k, written) and near(kept[drafted >= k] >= k, stands)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 0}, "policy.gamma: 0 is not a whole number from 1 to 64"),
        ({"confidence": 2}, "policy.confidence.alpha: 2 is not a probability from 0 to 1"),
        ({"confidence": {"kind": "context", "points": {1: 1}}}, "policy.confidence.kind: 'context' is not one of iid"),
        ({"acceptance": {"kind": "empirical", "betas": [1.0]}}, "policy.acceptance.kind: 'empirical' is not one of"),
        ({"draft": 3}, "policy.draft: 3 is not the name or path of a model"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    """One line with key, value and what is allowed."""
    assert refusal(lambda: Bild(**{"draft": "d", **options})).startswith(message)


def test_passes_by_hand() -> None:
    """Three sequences that write 0, 1 and 3 tokens with gamma 3: two more passes follow the first, each over fewer,
    and the large model reads what was written."""
    policy, windows = Bild("d", 3, 0.6, 0.8), ((None,), (None,))
    drafted = [0, 1, 3]
    rows = [
        np.array(policy.rows(one_round(n), context, windows))[:, 0]
        for n, context in zip(drafted, (5, 7, 11), strict=True)
    ]
    passes = list(policy.passes(3, sum(rows).tolist(), None, windows))
    assert [(p.model, int(p.work.tokens)) for p in passes] == [(1, 3), (1, 2), (1, 1), (0, 3 + 4)]
    assert [int(p.work.decode_reads[0]) for p in passes] == [23, 8 + 12, 13, 23]  # type: ignore[index]
    assert int(passes[-1].work.decode_pairs[0]) == 6 + (8 + 9) + (12 + 13 + 14 + 15)  # type: ignore[index]


def one_round(drafted: int) -> Any:
    """A future of one round that writes so much and keeps nothing."""
    from sim.policies import Future

    return Future(np.ones(1, int), np.zeros(1, int), np.zeros(1, int), np.array([drafted]))


# --- two real models


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("gamma", [1, 4])
def test_counts_are_exact(shape: ModelShape, gamma: int) -> None:
    """FLOPs and bytes of every op of a ragged batch that writes, doubts, stands and rolls back."""
    target, small = chatty(shape), stand_in(dense(8, 1, 2, 1, 16, 12), 4, sharpness=2.0)
    twin = bild.Twin(small, gamma, fallback=0.35, rollback=2.0)
    found, runs = clash(Bild("d", gamma), twin, target, (small,), GREEDY)
    assert found == []
    assert {len(r.drafted) for g in runs for r in g.rounds[1:]} >= {0, gamma}
    assert {r.accepted < len(r.drafted) for g in runs for r in g.rounds[1:]} == {True, False}


def writes(part: str, fallback: float = 0.2, rollback: float = 3.0) -> list[Generation]:
    """Answers of the trained pair."""
    twin = bild.Twin("drafter", 4, fallback, rollback)
    return decode(twin, load(SHIPPED / "primary"), held_out(part, 48), 96, sampler=GREEDY)


def laws(runs: list[Generation]) -> tuple[list[float], list[float]]:
    """Confidence and acceptance vectors of what was written, last rounds left out."""
    rounds = [(len(r.drafted), r.accepted) for g in runs for r in g.rounds[1:-1]]
    drafted, kept = np.array(rounds).T
    stands = [float((kept[drafted >= k] >= k).mean()) for k in range(1, 5)]
    return [float((drafted >= k).mean()) for k in range(1, 5)], np.minimum.accumulate(stands).tolist()


@pytest.mark.slow
def test_tokens_a_round_and_loss_of_the_trained_pair() -> None:
    """Confidence and acceptance measured on text A give tokens a round on text B within a 99 % interval of both; the
    looser the rollback the more is kept, and the less of it the large model would have written."""
    target, first, second = load(SHIPPED / "primary"), writes("a"), writes("b")
    confidence, acceptance = laws(first)
    policy = Bild("drafter", 4, {"kind": "survival", "vector": confidence}, {"kind": "survival", "vector": acceptance})
    means = [np.array([r.accepted + 1 for g in runs for r in g.rounds[1:-1]]) for runs in (first, second)]
    half = 2.576 * float(np.hypot(*(m.std() / len(m) ** 0.5 for m in means)))
    assert half < 0.1 and abs(policy.expected_tokens - means[1].mean()) < half
    strict, loose = (writes("b", rollback=nats) for nats in (0.0, 6.0))
    plain = decode(autoregressive.Twin(), target, held_out("b", 48), 96, sampler=GREEDY)
    kept = [np.mean([g.tokens_per_round for g in runs]) for runs in (strict, second, loose)]
    same = [agreement(target, runs).argmax for runs in (strict, second, loose)]
    assert kept == sorted(kept) and same == sorted(same, reverse=True) and same[0] > 0.999
    assert np.mean([a.tokens == b.tokens for a, b in zip(strict, plain, strict=True)]) > 0.9
    assert 0.9 < same[1] < 0.999
