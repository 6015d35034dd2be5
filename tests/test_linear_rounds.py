"""Rounds costed as one matrix product have the bits of the same rounds costed pass by pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest

from sim import Scenario
from sim.build import Built, build_scenario
from sim.policies.autoregressive import Autoregressive
from sim.serving.rounds import Rounds

SPECULATIVE = "{name: speculative, draft: auto, gamma: %d, acceptance: 0.8}"
CASES = [
    ("llama-3.1-8b", "h100-sxm", "autoregressive"),
    ("llama-3.2-1b", "tpu-v5e", "autoregressive"),
    ("llama-3.1-8b", "h100-sxm", SPECULATIVE % 4),
    ("llama-3.1-8b", "mi300x", SPECULATIVE % 9),
    ("gemma-3-4b", "h100-sxm", "autoregressive"),
    ("gemma-3-4b", "a100-sxm-80gb", SPECULATIVE % 1),
]


def built(model: str, hardware: str, policy: str) -> Built:
    said = [f"model={model}", f"hardware={hardware}", f"policy={policy}"]
    return build_scenario(Scenario.load("bench_autoregressive", said))


def with_host(rounds: Rounds) -> Rounds:
    """The same with host time a round and a sequence."""
    return replace(rounds, engine=replace(rounds.engine, step_s=1.3e-3, sequence_s=7.7e-6))


def window(case: Built, seats: int, rounds: int) -> Any:
    """Seats that become fewer, then channels that the policy's own rows add up to; shape [1 + channels, rounds]."""
    policy, windows = case.policy, case.setup.windows
    totals = np.zeros((1 + policy.channels(windows), rounds), dtype=np.int64)
    totals[0] = np.linspace(seats, 1, rounds).astype(np.int64)
    for i in range(3):
        rows = policy.rows(policy.future(case.setup.luck.of(i), 0, 600), 1 + 700 * i, windows)
        totals[1:] += seats * np.array([row[:rounds] for row in rows])
    return totals


@pytest.mark.parametrize(("model", "hardware", "policy"), CASES)
def test_one_product_has_the_bits_of_the_passes(model: str, hardware: str, policy: str) -> None:
    """Seconds and nanoseconds are the same for one round and many, few seats and many."""
    case = built(model, hardware, policy)
    rounds = with_host(case.setup.rounds)
    linear = rounds._linear
    assert linear is not None, "these are costed as a product"
    for seats, count in ((1, 1), (1, 40), (7, 3), (60, 40), (200, 17), (3, 2)):
        totals = window(case, seats, count)
        assert linear.serves(seats)
        apart = rounds.seconds(totals[0], totals[1:], None, totals[0])
        assert linear.seconds(totals, rounds.host_s(totals[0])).tobytes() == apart.tobytes()
        assert (rounds.decode_ns(seats, totals) == rounds.ns(totals[0], totals[1:], None, totals[0])).all()


def test_what_spills_is_left_to_the_passes() -> None:
    """Where activations of a pass may leave the chip, the product steps aside."""
    case = built(*CASES[2])
    linear = case.setup.rounds._linear
    assert linear is not None and linear.serves(1)
    seats = int(linear.spill_from) // case.policy.tokens_per_round + 1
    assert not linear.serves(seats)
    totals = window(case, seats, 5)
    rounds = case.setup.rounds
    assert (rounds.decode_ns(seats, totals) == rounds.ns(totals[0], totals[1:], None, totals[0])).all()


class Silent(Autoregressive):
    """A policy that does not say that it is linear."""

    linear: ClassVar[bool] = False


def test_a_policy_that_does_not_say_so_is_left_to_the_passes() -> None:
    """Additivity of a policy's passes is never guessed."""
    rounds = built(*CASES[0]).setup.rounds
    assert rounds._linear is not None
    assert replace(rounds, policy=Silent())._linear is None
