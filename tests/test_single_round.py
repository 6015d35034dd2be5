"""A single round costed without making its passes has their bits, prompts, idle passes and host included."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sim import Scenario
from sim.build import Built, build_scenario
from sim.policies import Chunk, Chunks, Future
from sim.policies.speculative import Speculative
from sim.serving.single import SingleRound

POLICIES = (
    "{name: speculative, draft: auto, gamma: 4}",
    "{name: adaptive, draft: auto, gamma: 7}",
    "{name: adaptive, draft: auto, gamma: 5, last: dropped}",
    "{name: load_adaptive, draft: auto, tiers: [{batch: 1, gamma: 6}, {batch: 4, gamma: 0}], off: idle}",
)
PLACES = (("llama-3.1-8b", "h100-sxm"), ("gemma-3-4b", "a100-sxm-80gb"), ("llama-3.1-8b", "mi300x"))


def built(model: str, hardware: str, policy: str) -> Built:
    said = [f"model={model}", f"hardware={hardware}", f"policy={policy}"]
    return build_scenario(Scenario.load("bench_autoregressive", said))


def columns(case: Built, seats: int) -> list[list[int]]:
    """The channels of some rounds of ``seats`` sequences with contexts and luck of their own."""
    policy, windows = case.policy, case.setup.windows
    rows = []
    for i in range(seats):
        tier = (i % 2,) if hasattr(policy, "tier_future") else ()
        draw = policy.tier_future if tier else policy.future
        future = draw(*tier, case.setup.luck.of(i), 0, 400)
        rows.append(np.array([row[:9] for row in policy.rows(future, 1 + 310 * i, windows)]))
    columns: list[list[int]] = np.sum(rows, axis=0).T.tolist()
    return columns


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("model", "hardware"), PLACES)
@pytest.mark.parametrize("layer_s", [0.0, 2e-6])
def test_a_single_round_has_the_bits_of_its_passes(model: str, hardware: str, policy: str, layer_s: float) -> None:
    """With and without prompts; short, long and several chunks; the host's launches of the passes that have work."""
    case = built(model, hardware, policy)
    engine = replace(case.engine, step_s=1.3e-3, sequence_s=7.7e-6, layer_s=layer_s)
    rounds = replace(case.setup.rounds, engine=engine)
    single = rounds._single(5)
    assert single is not None
    chunks = [None, Chunks([Chunk(0, 512, True)]), Chunks([Chunk(700, 3, False), Chunk(0, 1900, True)])]
    for seats in (1, 5):
        for column in columns(case, seats):
            for prompts in chunks:
                sequences = seats + (len(prompts.chunks) if prompts else 0)
                made = rounds.seconds(seats, column, prompts, sequences)
                assert rounds.ns(seats, column, prompts, sequences) == max(1, round(made * 1e9))
                layers = rounds.layers if layer_s else None
                host = lambda run, n=sequences, s=seats: rounds.host_s(n, s, run)  # noqa: E731
                assert single.seconds(seats, column, prompts, rounds.windows, host, layers) == made


@pytest.mark.parametrize("policy", POLICIES)
def test_idle_passes_launch_nothing(policy: str) -> None:
    """Leaps and passes agree about the host where draft passes come and go from round to round."""
    case = built("llama-3.1-8b", "h100-sxm", policy)
    rounds = replace(case.setup.rounds, engine=replace(case.engine, layer_s=3e-6))
    totals = np.array([[3] * 9, *np.array(columns(case, 3)).T])
    apart = [int(rounds.ns(3, totals[1:, i].tolist(), None, 3)[0]) for i in range(9)]
    assert rounds.decode_ns(3, totals).tolist() == apart
    assert rounds.ns(totals[0], totals[1:], None, totals[0]).tolist() == apart


@pytest.mark.parametrize("missed", [60, 700, 3000])
def test_a_draft_that_missed_much_is_costed_by_its_passes(missed: int) -> None:
    """Idle for long, three sequences catch up at once with more tokens than look-ups were laid out for."""
    case = built("llama-3.1-8b", "h100-sxm", POLICIES[3])
    policy, rounds, windows = case.policy, case.setup.rounds, case.setup.windows
    idle, back = (policy.tier_future(tier, case.setup.luck.of(0), 0, missed) for tier in (1, 0))
    joined = [np.concatenate(c) for c in zip(idle[:4], (back.gains, back.offsets + missed, *back[2:4]), strict=True)]
    rows = np.array(policy.rows(Future(*joined), 500, windows))[:, missed - 2 : missed + 5]
    totals = np.concatenate((np.ones_like(rows[:1]), rows)) * 3
    assert int(totals[1:].max()) > 3 * missed
    apart = [rounds.seconds(3, totals[1:, i].tolist(), None, 3) for i in range(7)]
    assert rounds.decode_ns(3, totals).tolist() == [max(1, round(s * 1e9)) for s in apart]
    assert [int(rounds.ns(3, totals[1:, i].tolist(), None, 3)[0]) for i in range(7)] == rounds.decode_ns(
        3, totals
    ).tolist()


class Odd(Speculative):
    """A policy whose prompts do something else than ride on its passes."""

    def passes(self, seats: Any, totals: Any, prompts: Any, windows: Any) -> Any:
        """A prompt adds a token that it does not have."""
        for one in super().passes(seats, totals, prompts, windows):
            more = int(prompts is not None and one.model == 0)
            yield one._replace(work=one.work._replace(tokens=one.work.tokens + more))


def test_odd_prompts_and_few_passes_are_left_alone() -> None:
    """Never guessed; and with few passes there is nothing to gain."""
    case = built(*PLACES[0], POLICIES[0])
    linear = case.setup.rounds._linear
    assert linear is not None and isinstance(linear.single, SingleRound)
    for policy in (Odd("auto", 4, 0.8), Speculative("auto", 1, 0.8)):
        other = replace(case.setup.rounds, policy=policy)._linear
        assert other is not None and other.single is None
