"""Fallback and rollback by hand, and what agreement counts."""

from __future__ import annotations

import numpy as np
import pytest
from policy_checks import GREEDY, greedy_differs, refusal

from sim.reference.agreement import agreement
from sim.reference.decoding import decode
from sim.reference.sampling import softmax, stream
from sim.reference.twins import autoregressive, bild
from sim.validation.distribution import PROMPT, tiny_pair
from sim.validation.stand_in import dense, stand_in


def prompts(vocab: int, count: int = 20) -> list[np.ndarray]:  # type: ignore[type-arg]
    return [stream(s, "bild").integers(0, vocab, 6) for s in range(count)]


def test_rollback_at_nothing_is_lossless() -> None:
    """Only the large model's own argmax stands: its own greedy text."""
    target = stand_in(dense(16, 2, 2, 1, 32, 24), 21, sharpness=4.0)
    small = stand_in(dense(8, 1, 2, 1, 16, 24), 5, sharpness=3.0)
    runs = greedy_differs(bild.Twin(small, 4, 0.1, 0.0), target, prompts(24))
    assert any(r.accepted for g in runs for r in g.rounds)


def test_who_never_doubts_and_is_never_rolled_back_writes_all() -> None:
    """Every round: gamma tokens of the small model, one of the large."""
    target, small = tiny_pair()
    [run] = decode(bild.Twin(small, 3, 0.0, 99.0), target, [PROMPT], 25, sampler=GREEDY)
    assert [(len(r.drafted), r.accepted) for r in run.rounds[1:]] == [(3, 3)] * 6
    [alone] = decode(bild.Twin(small, 3, 1.0, 99.0), target, [PROMPT], 25, sampler=GREEDY)
    [plain] = decode(autoregressive.Twin(), target, [PROMPT], 25, sampler=GREEDY)
    assert alone.tokens == plain.tokens and {r.drafted for r in alone.rounds} == {()}


def test_every_round_by_its_thresholds() -> None:
    """Written tokens are the small model's likeliest and likely enough, the next one is not; tokens stand as long as
    -ln p of the large model is small enough."""
    target, small = tiny_pair()
    fallback, rollback = 0.4, 1.2
    for run in decode(bild.Twin(small, 5, fallback, rollback), target, prompts(4), 20, sampler=GREEDY):
        context = [*run.prompt, *run.rounds[0].emitted]
        for r in run.rounds[1:-1]:
            text = [*context, *r.drafted]
            soft, large = (softmax(m.forward([np.array(text)], m.new_cache(), rows="all")) for m in (small, target))
            at = np.arange(len(context) - 1, len(text))
            assert all(soft[i].argmax() == t and soft[i].max() >= fallback for i, t in zip(at, r.drafted, strict=False))
            assert len(r.drafted) == 5 or soft[at[-1]].max() < fallback
            judged = [(large[i], t) for i, t in zip(at, r.drafted, strict=False)]
            stands = [-np.log(p[t]) <= rollback or p.argmax() == t for p, t in judged]
            assert r.accepted == [*stands, False].index(False)
            context += r.emitted


def test_agreement_by_hand() -> None:
    """Greedy text agrees with its author and is the likeliest; another model's agrees less."""
    target, small = tiny_pair()
    own, others = (decode(autoregressive.Twin(), m, prompts(4), 20, sampler=GREEDY) for m in (target, small))
    mine, theirs = agreement(target, own), agreement(target, others)
    assert mine.argmax == 1.0 > theirs.argmax and mine.nll < theirs.nll


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 0}, "policy bild: gamma is 0; allowed: an integer >= 1"),
        ({"fallback": 1.5}, "policy bild: fallback is 1.5; allowed: a probability"),
        ({"rollback": float("nan")}, "policy bild: rollback is nan; allowed: a number >= 0"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    """One line with key, value and what is allowed; sampling is refused where it begins."""
    assert refusal(lambda: bild.Twin(**options)) == message  # type: ignore[arg-type]
    target, small = tiny_pair()
    assert "temperature is 1" in refusal(lambda: decode(bild.Twin(small), target, [PROMPT], 4))
