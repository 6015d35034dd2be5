"""Speedups of drafts and verification where the source decrees costs: through the policy object and ``speedup``."""

from __future__ import annotations

from functools import cache

from sim.axes import Axis
from sim.policies.speculative import Speculative
from sim.scenario import Scenario
from sim.speedup import Known, Ratio, curve_of

__all__ = ["alpha_for", "expected_tokens", "gained", "round_cost", "speedup"]

SCENARIO = Scenario.load("bench_speculative")  # any speculative one: its device cancels where costs are decreed
KNOWN = Known(SCENARIO)


@cache
def speedup(alpha: float, gamma: int, c: float, verify: float = 1.0) -> float:
    """Over autoregressive decoding, independent acceptance ``alpha``; costs in steps of the target."""
    axes = [Axis("policy.acceptance", (alpha,)), Axis("policy.gamma", (gamma,))]
    return float(curve_of(KNOWN, axes, Ratio(c, verify)).table["speedup"][0])


def expected_tokens(alpha: float, gamma: int) -> float:
    """Tokens a round."""
    return Speculative(gamma=gamma, acceptance=alpha).expected_tokens


@cache
def alpha_for(tokens: float, gamma: int) -> float:
    """The acceptance that gives so many tokens a round, by bisection; at most gamma + 1 of them."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if expected_tokens(middle, gamma) < tokens else (low, middle)
    return high


def gained(tokens: float, gamma: int, c: float, verify: float) -> float:
    """Speedup where ``tokens`` a round were measured."""
    return speedup(alpha_for(tokens, gamma), gamma, c, verify)


def round_cost(tokens: float, gamma: int, said: float) -> float:
    """Steps that a whole round lasted if ``tokens`` gave the speedup ``said``: the number a fit on one row gives."""
    return gained(tokens, gamma, 0.0, 1.0) / said
