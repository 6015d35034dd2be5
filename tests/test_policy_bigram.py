"""Table drafts: closed forms and published numbers, luck by confidence interval, counts and text from a real table."""

from __future__ import annotations

from typing import Any

import pytest
from policy_checks import SHAPES, chatty, clash, greedy_differs, near, refusal

from sim import theory
from sim.analytic.model import ModelShape
from sim.policies.bigram import Bigram
from sim.reference.acceptance import kept_survival, tokens_per_round
from sim.reference.checkpoint import SHIPPED, load
from sim.reference.decoding import decode
from sim.reference.sampling import Sampler, stream
from sim.reference.twins import bigram
from sim.serving.luck import Luck
from sim.speedup import Ratio, curve
from sim.validation.stand_in import dense, stand_in
from sim.validation.tokens import held_out

TEXT = tuple(stream(0, "text").integers(0, 12, 300).tolist())


def test_the_published_bigram() -> None:
    """Acceptance 0.20, gamma 3, no cost: 1.25x, as arXiv 2211.17192 says after its table 3; a unigram keeps less."""
    policy = Bigram()
    assert policy.expected_tokens == pytest.approx(1.248)
    assert theory.wall_time_factor(policy.survival, 3, 0.0) == pytest.approx(1.25, abs=0.005)
    assert Bigram(1).expected_tokens == pytest.approx(1 + 0.08 + 0.0064 + 0.000512)
    assert policy.drafts == () and policy.tokens_per_round == 4


def test_the_published_speedup_through_a_scenario() -> None:
    """The same through a scenario's own policy with costs by decree."""
    from sim import Scenario

    said = Scenario.load("chat_h100", ["policy={name: bigram}"])
    assert curve(said, ratio=Ratio(0.0)).row(0)["speedup"] == pytest.approx(1.25, abs=0.005)


def test_kept_by_frequency() -> None:
    """Every round drafts gamma tokens and keeps at least k with the survival vector's probability."""
    policy = Bigram(2, 4, {"kind": "beta", "mean": 0.5, "concentration": 2.0})
    future = policy.future(Luck(1).of(0), 0, 60_000)
    assert set(future.drafted.tolist()) == {4}
    for k, want in enumerate(policy.survival, 1):
        assert near(future.kept[:-1] >= k, want)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 3}, "policy.order: 3 has no published acceptance; give policy.acceptance"),
        ({"order": 0}, "policy.order: 0 is not a whole number from 1 to 8"),
        ({"gamma": True}, "policy.gamma: True is not a whole number from 1 to 64"),
        ({"lookup_us": -1}, "policy.lookup_us: -1 is not a number from 0 to 1e+06"),
        ({"acceptance": {"kind": "empirical", "betas": [0.5]}}, "policy.acceptance.kind: 'empirical' is not one of"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    """One line with key, value and what is allowed."""
    assert refusal(lambda: Bigram(**options)).startswith(message)


def test_looking_up_takes_the_hosts_time() -> None:
    """So much for each sequence, nothing for the round."""
    assert Bigram(lookup_us=30).host_s == (0.0, pytest.approx(3e-5))


# --- tables really counted


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_counts_are_exact(shape: ModelShape, order: int) -> None:
    """FLOPs and bytes of every op of a ragged batch: the policy's passes and the meter's readings are equal."""
    found, runs = clash(Bigram(order, 3, 0.5), bigram.Twin(3, order, TEXT), chatty(shape))
    assert found == [] and {len(r.drafted) for g in runs for r in g.rounds[1:]} == {3}


@pytest.mark.slow
def test_tokens_a_round_of_the_trained_model() -> None:
    """Acceptance of a bigram counted on the training text, measured on text A, against tokens a round on text B.

    Sampled: greedy text runs in circles, and 32 prompts of it differ by more than their bootstrap says.
    """
    target, runs = load(SHIPPED / "primary"), {}
    for part in "ab":
        runs[part] = decode(bigram.Twin(3), target, held_out(part, 64), 96, seed=3)
    policy = Bigram(2, 3, {"kind": "survival", "vector": kept_survival(runs["a"], 3).tolist()})
    first, second = (tokens_per_round(runs[part], 3) for part in "ab")
    half = 2.576 * (first.sd**2 + second.sd**2) ** 0.5
    assert half < 0.15 * second.mean and abs(policy.expected_tokens - second.mean) < half


def test_greedy_output_is_the_targets_own() -> None:
    """Not one of 40 random prompts ends differently, and drafts are kept."""
    target = stand_in(dense(16, 2, 2, 1, 32, 24), 21, sharpness=4.0)
    prompts = [stream(s, "prompts").integers(0, 24, 8) for s in range(40)]
    text = decode(bigram.Twin(1, 1, tuple(range(24))), target, prompts[:4], 200, sampler=Sampler(0.3))
    said = tuple(token for g in text for token in g.tokens)
    runs = greedy_differs(bigram.Twin(4, 2, said), target, prompts)
    assert sum(r.accepted for g in runs for r in g.rounds) > 40
