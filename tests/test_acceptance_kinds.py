"""Kinds of acceptance: the vectors by hand, what serving engines mean by them, and sequences that move along."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_checks import near, refusal

from sim import Scenario, simulate
from sim.policies.acceptance import by_context, survival_vector
from sim.policies.speculative import Speculative
from sim.quality import LOSSLESS
from sim.reference.acceptance import kept_survival, tokens_per_round
from sim.reference.agreement import agreement
from sim.reference.checkpoint import SHIPPED, load
from sim.reference.decoding import decode
from sim.reference.sampling import Sampler
from sim.reference.twins import speculative as twins
from sim.serving.luck import Luck
from sim.validation.tokens import held_out

POINTS = {100: 0.9, 300: {"kind": "survival", "vector": [0.5, 0.1, 0.0]}}
MEASURED = [{"lenience": 1, "acceptance": 0.62}, {"lenience": 0.3, "acceptance": 0.76}]
LENIENT = {"kind": "lenient", "measured": MEASURED}


def decaying(**options: Any) -> Any:
    return {"kind": "decaying", **options}


# --- vectors


def test_decaying_by_hand() -> None:
    """Hazards 0.8, 0.4, 0.2."""
    assert survival_vector(decaying(first=0.8, decay=0.5), 3) == pytest.approx([0.8, 0.32, 0.064])


@pytest.mark.parametrize("mean", [0.0, 0.01, 0.3, 0.6, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("gamma", [1, 4, 9])
def test_a_mean_is_met_as_the_synthetic_sampler_meets_it(mean: float, gamma: int) -> None:
    """The mean of the vector is what was asked; hazards fall by 0.85 a position where that can be, else as little as
    they must, from a first one of 1."""
    vector = survival_vector(decaying(mean=mean), gamma)
    assert vector.mean() == pytest.approx(mean, abs=1e-9)
    if mean > 0 and gamma > 1:
        falls = vector[1] / vector[0] / vector[0]
        assert falls == pytest.approx(0.85) or (falls > 0.85 and vector[0] == pytest.approx(1.0))


def test_a_length_is_as_constant_as_it_can_be() -> None:
    """3.0 of 4 tokens: two drafts always and no third, as vLLM logs a length of 3; 2.3: one, and 0.3 of one."""
    assert survival_vector({"kind": "length", "tokens": 3}, 3).tolist() == [1, 1, 0]
    assert survival_vector({"kind": "length", "tokens": 2.3}, 3) == pytest.approx([1, 0.3, 0])
    assert set(Speculative("d", 3, {"kind": "length", "tokens": 3}).future(Luck(0).of(1), 0, 300).kept) == {2}


SPECS = st.one_of(
    st.floats(0, 1),
    st.builds(lambda a, d: decaying(first=a, decay=d), st.floats(0, 1), st.floats(0, 1)),
    st.builds(lambda m: decaying(mean=m), st.floats(0, 1)),
    st.builds(lambda t: {"kind": "length", "tokens": t}, st.floats(1, 6)),
    st.builds(lambda m, c: {"kind": "beta", "mean": m, "concentration": c}, st.floats(0, 1), st.floats(1e-3, 1e3)),
)


@given(SPECS, st.integers(5, 12))
def test_every_kind_is_a_survival_vector(spec: Any, gamma: int) -> None:
    """Probabilities that do not rise, as many as drafts."""
    vector = survival_vector(spec, gamma)
    assert vector.shape == (gamma,) and (vector >= 0).all() and (vector <= 1).all()
    assert (np.diff(vector) <= 1e-15).all()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"kind": "decayin"}, "policy.acceptance.kind: 'decayin' is not one of iid, survival, beta, decaying, length"),
        (decaying(decay=0.9), "policy.acceptance: kind decaying takes decay, first or decay, mean or mean, got"),
        (decaying(mean=0.9, decay=0.5), "policy.acceptance.mean: 0.9 is out of reach of decay 0.5; allowed: up to 0.5"),
        (decaying(first=1.5, decay=1), "policy.acceptance.first: 1.5 is not a probability"),
        ({"kind": "length", "tokens": 5}, "policy.acceptance.tokens: 5 is not a number from 1 to 4"),
        ({"kind": "length", "tokens": float("nan")}, "policy.acceptance.tokens: nan is not a number from 1 to 4"),
        ({"kind": "context", "points": {}}, "policy.acceptance.points: {} is not a mapping of 1 to 1000 contexts"),
        ({"kind": "context", "points": {"a": 1}}, "policy.acceptance.points: 'a' is not a whole number"),
        ({"kind": "context", "points": {1: 0.5, "1": 0.4}}, "policy.acceptance.points: ['1', '1'] names a context"),
        ({"kind": "context", "points": {7: 2}}, "policy.acceptance.points[7].alpha: 2 is not a probability"),
        ({"kind": "context", "points": {7: {"kind": "empirical"}}}, "policy.acceptance.points[7].kind: 'empirical'"),
        (LENIENT, "policy.acceptance.kind: 'lenient' is not one of iid"),
    ],
)
def test_wrong_kinds_are_named(spec: Any, message: str) -> None:
    """One line with key, value and what is allowed."""
    assert refusal(lambda: survival_vector(spec, 3)).startswith(message)


# --- acceptance by context


def test_between_two_contexts_vectors_are_mixed() -> None:
    """Flat outside the points, a straight line between them, entry by entry."""
    law = by_context({"kind": "context", "points": POINTS}, 3)
    assert law is not None
    first, last = np.array([0.9, 0.81, 0.729]), np.array([0.5, 0.1, 0.0])
    for context, share in ((0, 0.0), (100, 0.0), (150, 0.25), (299, 0.995), (300, 1.0), (10**6, 1.0)):
        assert law.at(context) == pytest.approx(first + share * (last - first))


def test_what_is_kept_follows_the_context() -> None:
    """Rounds that start at one context keep at least k drafts with the probability interpolated there: prompt and own
    output both count."""
    policy = Speculative("d", 3, {"kind": "context", "points": POINTS})
    futures = [(prompt, policy.future(Luck(1).of(i, 0, prompt), 0, 260)) for i, prompt in enumerate([60, 140] * 1500)]
    started = np.concatenate([prompt + f.offsets[:-1] for prompt, f in futures])
    kept = np.concatenate([f.kept[:-1] for _, f in futures])
    for low, high in ((60, 100), (150, 154), (200, 204), (300, 500)):
        at = (started >= low) & (started < high)
        law = policy.walk.at((low + high - 1) // 2)  # type: ignore[union-attr]
        for k, want in enumerate(law, 1):
            assert near(kept[at] >= k, want)


def test_the_settled_policy_is_the_one_at_that_context() -> None:
    """What a speedup at one context asks for; policies without a context are their own."""
    policy = Speculative("d", 3, {"kind": "context", "points": POINTS})
    assert policy.settled(200).survival == pytest.approx([0.7, 0.455, 0.3645])
    assert policy.expected_tokens == pytest.approx(1.6) == policy.settled(10**5).expected_tokens
    plain = Speculative("d", 3, 0.5)
    assert plain.settled(200) is plain


def test_a_scenario_file_says_points(tmp_path: Any) -> None:
    """Contexts are numbers in YAML, and longer prompts gain fewer tokens a round."""
    gained = []
    for prompt in (64, 4096):
        path = tmp_path / f"{prompt}.yaml"
        path.write_text(
            "model: llama-3.1-8b\nhardware: h100-sxm\n"
            "policy: {name: speculative, draft: llama-3.2-1b, gamma: 4,\n"
            "         acceptance: {kind: context, points: {512: 0.9, 2048: 0.3}}}\n"
            f"workload: {{rate: 4, prompt: {prompt}, output: 64, requests: 60}}\n"
        )
        requests = simulate(Scenario.load(str(path))).requests
        gained.append(1 + requests["accepted_tokens"].sum() / requests["rounds"].sum())
    assert gained == pytest.approx([4.0951, 1.4251], rel=0.05)


# --- lenience


def test_lenience_takes_what_was_measured_with_it() -> None:
    """Two measured points, no other; quality is lost by an amount that nobody measured."""
    strict, loose = (Speculative("d", 2, LENIENT, lenience) for lenience in (1.0, 0.3))
    assert strict.survival == pytest.approx([0.62, 0.3844]) and strict.quality is LOSSLESS
    assert loose.survival == pytest.approx([0.76, 0.5776]) and loose.quality.loss_percent is None
    assert "1/lenience" in loose.quality.what


@pytest.mark.parametrize(
    ("acceptance", "lenience", "message"),
    [
        (0.8, 0.5, "policy.lenience: 0.5 needs an acceptance measured with it: policy.acceptance = {kind: lenient"),
        (LENIENT, 0.5, "policy.lenience: 0.5 is not among those measured: policy.acceptance has 0.3, 1"),
        (LENIENT, 0, "policy.lenience: 0 is not a number from 0.001 to 1"),
        ({**LENIENT, "measured": [0.3]}, 0.3, "policy.acceptance.measured: [0.3] is not a list of lenience and"),
        ({"kind": "lenient", "measured": [{"lenience": 0.5, "acceptance": {"kind": "empirical", "betas": [0.5]}}]}, 0.5,
         "policy.acceptance.kind: 'empirical' replays the target's own text; lenience must be 1"),
    ],
)  # fmt: skip
def test_lenience_without_a_measurement_is_refused(acceptance: Any, lenience: Any, message: str) -> None:
    """No law gives alpha at one lenience from that at another."""
    assert refusal(lambda: Speculative("d", 2, acceptance, lenience)).startswith(message)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0, 1])
def test_what_lenience_gains_and_loses_really(temperature: int) -> None:
    """Of the trained pair: acceptance measured on text A with the same lenience gives tokens a round on text B within a
    99 % interval of both; the large model would have written less of it, and likes it less."""
    target, draft = (load(SHIPPED / name) for name in ("primary", "drafter"))
    nats = []
    for lenience in (1.0, 0.3):
        twin, sampler = twins.Twin(draft, 4, lenience), Sampler(temperature)
        first, second = (decode(twin, target, held_out(part, 32), 96, sampler=sampler, seed=2) for part in "ab")
        vector = {"kind": "survival", "vector": kept_survival(first, 4).tolist()}
        measured = {"kind": "lenient", "measured": [{"lenience": lenience, "acceptance": vector}]}
        policy = Speculative("drafter", 4, measured, lenience)
        a, b = (tokens_per_round(runs, 4) for runs in (first, second))
        half = 2.576 * float(np.hypot(a.sd, b.sd))
        assert half < 0.15 * b.mean and abs(policy.expected_tokens - b.mean) < half
        nats.append(agreement(target, second).nll)
    assert nats[1] > nats[0] + 0.05
