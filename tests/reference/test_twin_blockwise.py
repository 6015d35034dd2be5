"""Heads that propose: the target's own greedy text, every round judged by hand, and what is refused."""

from __future__ import annotations

import pytest
from policy_checks import GREEDY, greedy_differs, refusal

from sim.reference.checkpoint import SHIPPED, load
from sim.reference.decoding import decode
from sim.reference.sampling import stream
from sim.reference.twins import blockwise
from sim.reference.twins.blockwise import _BlockSession, trained
from sim.validation.distribution import PROMPT, tiny_pair
from sim.validation.stand_in import dense, stand_in
from sim.validation.tokens import held_out


def test_greedy_output_is_the_targets_own() -> None:
    """Untrained heads over few tokens are right by chance now and then; the text is the target's."""
    target = stand_in(dense(16, 2, 2, 1, 32, 6), 21, sharpness=4.0)
    prompts = [stream(s, "prompts").integers(0, 6, 8) for s in range(30)]
    runs = greedy_differs(blockwise.Twin(4, "untrained"), target, prompts)
    assert sum(r.accepted for g in runs for r in g.rounds) > 40


def test_trained_heads_on_the_trained_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The primary's own greedy text; heads that read the state of the wrong row keep less."""
    target = load(SHIPPED / "primary", exact=True)
    prompts = held_out("a", 6)
    runs = greedy_differs(blockwise.Twin(3), target, prompts, 40)
    right = sum(r.accepted for g in runs for r in g.rounds)
    propose = _BlockSession._propose
    monkeypatch.setattr(_BlockSession, "_propose", lambda self, a, s, p: propose(self, a, s, 0 * p))
    wrong = sum(r.accepted for g in decode(blockwise.Twin(3), target, prompts, 40, sampler=GREEDY) for r in g.rounds)
    assert right > 30 and wrong < 0.8 * right


def test_everywhere_and_once_propose_the_same() -> None:
    """Where the heads run changes the work and not the text, round by round."""
    target = load(SHIPPED / "primary", exact=True)
    first, second = (
        decode(blockwise.Twin(3, everywhere=everywhere), target, held_out("b", 3), 30, sampler=GREEDY)
        for everywhere in (True, False)
    )
    assert first == second


def test_what_is_refused() -> None:
    """Options, sampling, more heads than were trained, and heads of another width."""
    target, _ = tiny_pair()
    assert refusal(lambda: blockwise.Twin(1)) == "policy blockwise: block is 1; allowed: an integer >= 2"
    assert refusal(lambda: blockwise.Twin(2, "new")) == "policy blockwise: heads is 'new'; allowed: medusa, untrained"
    sampled = refusal(lambda: decode(blockwise.Twin(2, "untrained"), target, [PROMPT], 4))
    assert sampled == "policy blockwise: temperature is 1.0; allowed: 0, it is greedy"
    assert "at most 5 with the trained heads" in refusal(lambda: trained(load(SHIPPED / "primary"), 5))
    assert "do not fit" in refusal(lambda: trained(target, 1))
