"""Input copy: closed forms by hand and by recursion, the walk of alignment, counts and texts that really are copied."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from policy_checks import SHAPES, chatty, clash, near, refusal

from sim import Scenario, simulate
from sim.analytic.model import ModelShape
from sim.policies.input_copy import InputCopy
from sim.reference.acceptance import bootstrap_sums
from sim.reference.checkpoint import SHIPPED, load
from sim.reference.decoding import Generation, decode
from sim.reference.sampling import Sampler, stream
from sim.reference.twins import autoregressive, input_copy
from sim.reference.twins.input_copy import copied_survival, realigned
from sim.serving.luck import Luck
from sim.validation.tokens import held_out

HALF = InputCopy(2, 0.25, 0.5, "endless")


# --- closed forms


def test_aligned_share_by_hand() -> None:
    """Two copies are kept with probability 1/4, a place found with 1/4: r / (1 - s + r s) = 0.25 / (0.75 + 0.0625)."""
    assert HALF.aligned_share == pytest.approx(0.25 / 0.8125)
    assert HALF.expected_tokens == pytest.approx(1 + 0.25 / 0.8125 * 0.75)
    assert InputCopy(4, 0.0, 1.0, "endless").aligned_share == 1.0
    assert InputCopy(4, 0.0, 0.5, "endless").aligned_share == 0.0


def test_expected_rounds_by_hand() -> None:
    """An input that is copied whole takes a round for every gamma + 1 tokens; one that ends leaves plain steps."""
    sure = InputCopy(4, 0.0, 1.0)
    assert sure.expected_rounds(21, 1000) == 4.0
    assert sure.expected_rounds(21, 5) == 1 + 15  # 4 copies and a token, then nothing to copy
    assert InputCopy(4, 0.5, 0.0).expected_rounds(21, 1000) == pytest.approx(20)
    assert sure.expected_rounds(1, 9) == 0.0
    one = InputCopy(1, 1.0, 0.5)  # a copy is kept half of the time, and the place is never lost for long
    assert one.expected_rounds(3, 100) == 1.5


def test_what_a_speedup_asks_is_amid_copying() -> None:
    """At one context: the endless policy, whose tokens a round have a closed form."""
    policy = InputCopy(4, 0.3, 0.8)
    assert policy.settled(100) == InputCopy(4, 0.3, 0.8, "endless")
    endless = policy.settled(100)
    assert endless.settled(5) is endless and policy.expected_tokens == 1.0


# --- luck


def test_drafts_by_frequency() -> None:
    """The share of rounds that draft is the closed form's, and of those the survival vector is kept."""
    policy = InputCopy(3, 0.3, {"kind": "beta", "mean": 0.8, "concentration": 3}, "endless")
    future = policy.future(Luck(1).of(0), 0, 120_000)
    drafted, kept = future.drafted[:-1], future.kept[:-1]
    assert near(drafted > 0, policy.aligned_share, 0.01)
    for k, want in enumerate(policy.survival, 1):
        assert near(kept[drafted > 0] >= k, want)


@pytest.mark.parametrize(("output", "source"), [(30, 40), (60, 20), (5, 1000)])
def test_rounds_of_an_answer(output: int, source: int) -> None:
    """The mean number of rounds over 4,000 requests is the recursion's; the prompt is the input, nothing is copied
    beyond its end."""
    policy, luck = InputCopy(6, 0.4, 0.85), Luck(2)
    futures = [policy.future(luck.of(i, 0, source), 0, output - 1) for i in range(4000)]
    assert near([len(f.gains) for f in futures], policy.expected_rounds(output, source), 0.02 * output)
    for f in futures[:200]:
        assert (f.drafted <= np.maximum(0, source - 1 - f.offsets)).all()


def test_a_lost_place_is_found_again() -> None:
    """After a difference rounds draft with probability ``realign``, after a stretch kept whole always."""
    policy = InputCopy(3, 0.2, 0.7, "endless")
    future = policy.future(Luck(3).of(0), 0, 100_000)
    drafted, kept = future.drafted[:-1], future.kept[:-1]
    whole = (drafted[:-1] > 0) & (kept[:-1] == drafted[:-1])
    assert (drafted[1:][whole] > 0).all() and near(drafted[1:][~whole] > 0, 0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 300}, "policy.gamma: 300 is not a whole number from 1 to 256"),
        ({"realign": 2}, "policy.realign: 2 is not a probability from 0 to 1"),
        ({"input": "text"}, "policy.input: 'text' is not prompt, endless or a number of tokens"),
        ({"input": -1}, "policy.input: -1 is not a whole number from 0 to 1000000"),
        ({"acceptance": {"kind": "context", "points": {1: 0.5}}}, "policy.acceptance.kind: 'context' is not one of"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    """One line with key, value and what is allowed."""
    assert refusal(lambda: InputCopy(**options)).startswith(message)


def test_a_run_gains_what_the_recursion_says() -> None:
    """Rounds of a served trace whose answers are as long as their prompts."""
    said = ["policy={name: input_copy, gamma: 8, realign: 0.4, acceptance: 0.9}",
            "workload={rate: 8, prompt: 64, output: 64, requests: 500}"]  # fmt: skip
    requests = simulate(Scenario.load("chat_h100", said)).requests
    assert near(requests["rounds"], InputCopy(8, 0.4, 0.9).expected_rounds(64, 64), 0.5)


# --- copies really made


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_counts_are_exact(shape: ModelShape) -> None:
    """FLOPs and bytes of every op of a ragged batch, drafts of all lengths up to gamma and to the input's end."""
    found, runs = clash(InputCopy(5), input_copy.Twin(5, suffix=1), chatty(shape))
    assert found == []
    assert len({len(r.drafted) for g in runs for r in g.rounds[1:]}) >= 3


EDITED, GAMMA, OUTPUT = 0.06, 16, 96


def edited(part: str, count: int = 96) -> list[Generation]:
    """Greedy answers of the trained model, decoded anew from copies of themselves in which some tokens are changed."""
    target, prompts = load(SHIPPED / "primary"), held_out(part, count)
    own = decode(autoregressive.Twin(), target, prompts, OUTPUT, sampler=Sampler(0))
    sources = []
    for i, run in enumerate(own):
        luck, text = stream(7, part, i), np.array(run.tokens)
        changed = luck.random(OUTPUT) < EDITED
        changed[0] = False
        sources.append(tuple(np.where(changed, luck.integers(0, 1024, OUTPUT), text).tolist()))
    fast = decode(input_copy.Twin(GAMMA, 2, tuple(sources)), target, prompts, OUTPUT, sampler=Sampler(0))
    assert np.mean([g.tokens == f.tokens for g, f in zip(own, fast, strict=True)]) > 0.95  # but for ties of floats
    return fast


@pytest.mark.slow
def test_rounds_of_edited_texts() -> None:
    """Copies and alignment measured on text A say how many rounds text B takes, within a 99 % interval of both."""
    first, second = edited("a"), edited("b")
    survival = {"kind": "survival", "vector": copied_survival(first, GAMMA).tolist()}
    policy = InputCopy(GAMMA, realigned(first), survival)
    rounds = [np.array([len(g.rounds) - 1.0 for g in runs]) for runs in (first, second)]
    spread = [bootstrap_sums(r[:, None], 1000, 0).std() / len(r) for r in rounds]
    half, mean = 2.576 * float(np.hypot(*spread)), float(rounds[1].mean())
    assert mean < OUTPUT / 3 and half < 0.25 * mean
    assert abs(policy.expected_rounds(OUTPUT, OUTPUT) - mean) < half
