"""Where a copier stands, by hand; sampled output with the target's own distribution."""

from __future__ import annotations

import numpy as np
import pytest
from policy_checks import excess, refusal

from sim.reference import decoding
from sim.reference.decoding import Generation, Round, decode
from sim.reference.sampling import Sampler
from sim.reference.twins import autoregressive, input_copy
from sim.reference.twins.input_copy import copied_survival, realigned
from sim.validation.distribution import PROMPT, tiny_pair
from sim.validation.stand_in import dense, stand_in


def own_output(tokens: int = 40) -> tuple[object, tuple[int, ...]]:
    """A model and its greedy answer to the prompt."""
    target = stand_in(dense(16, 2, 2, 1, 32, 24), 21, sharpness=4.0)
    [run] = decode(autoregressive.Twin(), target, [PROMPT], tokens, sampler=Sampler(0))
    return target, run.tokens


def test_a_text_that_is_its_own_input() -> None:
    """Copied whole: each round takes gamma tokens and the next one."""
    target, text = own_output()
    [run] = decode(input_copy.Twin(9, 2, (text,)), target, [PROMPT], 40, sampler=Sampler(0))  # type: ignore[arg-type]
    assert run.tokens == text and [len(r.emitted) for r in run.rounds] == [1, 10, 10, 10, 9]


def test_an_edit_costs_a_round() -> None:
    """One token of the input is another: the copy is kept up to it, then found again behind it."""
    target, text = own_output()
    source = (*text[:20], (text[20] + 1) % 24, *text[21:])
    [run] = decode(input_copy.Twin(64, 2, (source,)), target, [PROMPT], 40, sampler=Sampler(0))  # type: ignore[arg-type]
    assert run.tokens == text and run.rounds[1].accepted == 19 and len(run.rounds) > 3
    assert run.rounds[2].drafted == () or run.rounds[2].drafted[0] in text


def test_counting_by_hand() -> None:
    """Of three rounds without a place one found it; a draft that ends with its text says nothing of what follows."""
    rounds = [Round((), 0, (1,)), Round((1, 2), 1, (1, 9)), Round((), 0, (3,)), Round((), 0, (4,)),
              Round((5, 6), 2, (5, 6, 7)), Round((8,), 1, (8, 2))]  # fmt: skip
    run = Generation((1,), tuple(rounds))
    assert realigned([run]) == pytest.approx(1 / 3)
    assert np.isnan(realigned([Generation((1,), tuple(rounds[:1]))]))
    assert copied_survival([run], 2) == pytest.approx([1.0, 0.5])


def test_sampled_output_has_the_targets_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    """All 256 continuations of four tokens, by chi-square; resampling from p instead of the residual is caught."""
    target, _ = tiny_pair()
    twin = input_copy.Twin(2, 1, ((1, 2, 3, 0, 1, 2),) * 2000)
    got, likely = excess(twin, target)
    assert got < likely
    monkeypatch.setattr(decoding, "residual", lambda p, q, lenience=1.0: p)
    got, likely = excess(twin, target)
    assert got > 3 * likely


def test_wrong_options_are_named() -> None:
    """One line with key, value and what is allowed."""
    target, _ = tiny_pair()
    assert refusal(lambda: input_copy.Twin(0)) == "policy input_copy: gamma is 0; allowed: an integer >= 1"
    assert refusal(lambda: input_copy.Twin(1, 0)) == "policy input_copy: suffix is 0; allowed: an integer >= 1"
    wrong = input_copy.Twin(1, 1, ((1,), (2,)))
    assert "2 sources for 1 prompts" in refusal(lambda: decode(wrong, target, [PROMPT], 4))
