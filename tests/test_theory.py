"""Draft and verify on paper, for any survival vector: by hand, against search, and against the published tables."""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_checks import refusal

from sim import theory
from sim.policies.speculative import Speculative
from sim.reference.decoding import verify
from sim.reference.sampling import Sampler, stream

VECTOR = [0.8, 0.5, 0.1]


def test_a_vector_by_hand() -> None:
    """E = 1 + 0.8 + 0.5 with gamma 2; c = 0.1, verification 1.2; operations of a draft a tenth of the target's."""
    assert theory.expected_tokens(VECTOR, 2) == pytest.approx(2.3)
    assert theory.wall_time_factor(VECTOR, 2, 0.1, 1.2) == pytest.approx(2.3 / 1.4)
    assert theory.operations_factor(VECTOR, 2, 0.1) == pytest.approx(3.2 / 2.3)
    assert theory.oracle_tokens(VECTOR) == pytest.approx(2.4)
    assert theory.oracle_factor(VECTOR, 0.1, 1.2) == pytest.approx(2.4 / (1.2 + 0.14))
    assert theory.best_gamma(VECTOR, 0.1) == 2 and theory.best_gamma(VECTOR, 0.05) == 2
    assert theory.best_gamma(VECTOR, 0.01) == 3 and theory.best_gamma(VECTOR, 0.9) == 0


@given(st.floats(0.01, 0.99), st.integers(1, 12), st.floats(0.0, 0.5), st.floats(0.5, 2.0))
def test_a_geometric_vector_is_its_alpha(alpha: float, gamma: int, c: float, verify_s: float) -> None:
    """A number and the vector that it stands for give the same answers."""
    vector = alpha ** np.arange(1, gamma + 1)
    assert theory.expected_tokens(vector, gamma) == pytest.approx(theory.expected_tokens(alpha, gamma))
    assert theory.wall_time_factor(vector, gamma, c, verify_s) == pytest.approx(
        theory.wall_time_factor(alpha, gamma, c, verify_s)
    )
    assert theory.oracle_tokens(vector) <= theory.oracle_tokens(alpha) + 1e-9
    assert theory.implied_alpha(theory.expected_tokens(alpha, gamma), gamma) == pytest.approx(alpha, abs=1e-9)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.0, 1.0), st.floats(1.0, 1.5))
def test_best_gamma_is_the_best_and_the_oracle_is_better(hazards: list[float], c: float, verify_s: float) -> None:
    """Against every gamma in turn; no fixed gamma passes the oracle that drafts just what is kept."""
    vector = np.cumprod(hazards)
    factors = {0: 1.0} | {g: theory.wall_time_factor(vector, g, c, verify_s) for g in range(1, len(vector) + 1)}
    best = theory.best_gamma(vector, c, verify_s)
    assert factors[best] == pytest.approx(max(factors.values()))
    oracle = theory.oracle_factor(vector, c, verify_s)
    assert oracle >= max(f for g, f in factors.items() if g) - 1e-9


def test_verification_that_grows_with_gamma_shortens_the_draft() -> None:
    """A pass that costs more with every token, as beyond the ridge point, moves the best gamma down; one that jumps
    is searched to the end."""
    assert theory.best_gamma(0.9, 0.02) > theory.best_gamma(0.9, 0.02, lambda gamma: 1 + 0.2 * gamma) > 0
    assert theory.best_gamma(0.9, 0.02, lambda gamma: 3.0 if 3 < gamma < 20 else 1.0) >= 20


def test_any_acceptance_of_a_policy_can_be_asked() -> None:
    """The vector of a policy's own acceptance goes in as it is."""
    shared = Speculative("d", 7, {"kind": "beta", "mean": 0.7, "concentration": 2.0})
    assert theory.expected_tokens(shared.survival, 7) == pytest.approx(shared.expected_tokens)
    assert theory.best_gamma(shared.survival, 0.05) == 7 > theory.best_gamma(0.7, 0.05)


LENIENCE = [(1.0, 0.75, 3.3), (0.5, 0.75, 3.3), (0.3, 0.80, 3.9), (0.1, 0.87, 4.9)]


@pytest.mark.parametrize(("lenience", "alpha", "printed"), LENIENCE)
def test_published_speedups_of_lenience(lenience: float, alpha: float, printed: float) -> None:
    """T5-small on EnDe at T = 0, gamma 8, c = 0.015 (arXiv 2211.17192, A.5 text): through the policy's own vector."""
    acceptance = {"kind": "lenient", "measured": [{"lenience": lenience, "acceptance": alpha}]}
    policy = Speculative("t5-small", 8, acceptance, lenience)
    assert theory.wall_time_factor(policy.survival, 8, 0.015) == pytest.approx(printed, rel=0.011)


def test_lenient_alpha_is_what_the_sampler_accepts() -> None:
    """sum min(p/l, q) against 20,000 judged drafts at three leniences; at 1 it is 1 - total variation."""
    luck = stream(0, "lenient")
    p, q = (Sampler().probabilities(luck.standard_normal(9) * 1.5) for _ in range(2))
    assert theory.lenient_alpha(p, q) == pytest.approx(1 - 0.5 * np.abs(p - q).sum())
    for lenience in (1.0, 0.5, 0.1):
        tokens = luck.choice(9, 20_000, p=q)
        kept = [verify([t], np.array([p, p]), q[None], luck.random(2), lenience=lenience)[0] for t in tokens]
        alpha = theory.lenient_alpha(p, q, lenience)
        assert abs(float(np.mean(kept)) - alpha) < 4.5 * (alpha * (1 - alpha) / 20_000) ** 0.5 + 1e-9
    assert theory.lenient_alpha(p, q, 0.1) > theory.lenient_alpha(p, q, 0.5) > theory.lenient_alpha(p, q)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: theory.expected_tokens(VECTOR, 4), "gamma: 4 is beyond the survival vector's 3 entries"),
        (lambda: theory.expected_tokens([0.5, 0.6], 2), "acceptance: a survival vector has probabilities"),
        (lambda: theory.oracle_tokens([[0.5]]), "acceptance: a survival vector has probabilities"),
        (lambda: theory.best_gamma([1.5], 0.1), "acceptance: a survival vector has probabilities"),
        (lambda: theory.wall_time_factor(0.5, 2, 0.1, lambda gamma: -1.0), "verify: -1.0 is not a number"),
        (lambda: theory.implied_alpha(5.5, 4), "tokens: 5.5 is not a number from 1 to gamma + 1 = 5"),
        (lambda: theory.lenient_alpha([0.5, 0.5], [1.0]), "p, q: shapes (2,) and (1,) are not one [..., V]"),
        (lambda: theory.lenient_alpha([1.0], [1.0], 0), "lenience: 0 is not a number above 0 and up to 1"),
    ],
)
def test_what_cannot_be_is_refused(ask: Any, message: str) -> None:
    """One line that says what is allowed."""
    assert refusal(ask).startswith(message)


def test_limits() -> None:
    """Certain drafts at no cost have no bound; an oracle of a vector knows no further than the vector."""
    assert theory.oracle_factor(1.0, 0.0) == inf
    assert theory.oracle_tokens([1.0, 1.0]) == 3.0 and theory.oracle_factor([1.0], 0.0, 0.0) == inf
