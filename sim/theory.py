"""Draft and verify on paper: expected tokens, wall-time factor, operations factor, best gamma, and the oracle's bound.

Leviathan, Kalman and Matias 2023 (arXiv 2211.17192), section 3, for acceptance that is the same everywhere
(independent, probability ``alpha``). ``c``: seconds of a draft pass, ``verify``: of the target's pass over gamma + 1
tokens, both in those of one autoregressive step; the paper takes ``verify`` = 1. What a scenario's own policy, device
and batch give is ``sim/speedup.py``; the tests hold the two together.
"""

from __future__ import annotations

from math import inf

MOST_GAMMA = 10_000


def expected_tokens(alpha: float, gamma: int) -> float:
    """Tokens a round, E = (1 - alpha^(gamma+1)) / (1 - alpha) (equation 1). Raises ValueError."""
    _checked(alpha, gamma)
    return gamma + 1.0 if alpha == 1.0 else (1.0 - alpha ** (gamma + 1)) / (1.0 - alpha)


def wall_time_factor(alpha: float, gamma: int, c: float, verify: float = 1.0) -> float:
    """Speedup over autoregressive decoding, E / (gamma c + verify) (theorem 3.8). Raises ValueError."""
    _costs(c=c, verify=verify)
    seconds = gamma * c + verify
    return expected_tokens(alpha, gamma) / seconds if seconds else inf


def operations_factor(alpha: float, gamma: int, c_hat: float) -> float:
    """Arithmetic per token over that of autoregressive decoding, (gamma c_hat + gamma + 1) / E (theorem 3.11).

    ``c_hat``: operations of the draft per token, in those of the target. Raises ValueError.
    """
    _costs(c_hat=c_hat)
    return (gamma * c_hat + gamma + 1) / expected_tokens(alpha, gamma)


def best_gamma(alpha: float, c: float, verify: float = 1.0) -> int:
    """The gamma with the largest wall-time factor (section 3.5); 0 where drafting does not pay. Raises ValueError.

    ``MOST_GAMMA`` where a longer draft always pays (alpha = 1 or c = 0).
    """
    best, most = 0, 1.0
    for gamma in range(1, MOST_GAMMA + 1):
        factor = wall_time_factor(alpha, gamma, c, verify)
        if factor > most:
            best, most = gamma, factor
        elif gamma > 1 and factor < wall_time_factor(alpha, gamma - 1, c, verify):
            break  # one hump: E is concave in gamma and the cost is a straight line
    return best


def oracle_tokens(alpha: float) -> float:
    """Tokens a round if somebody told how many drafts will be kept: 1 / (1 - alpha), the bound on E for any gamma."""
    _checked(alpha, 1)
    return inf if alpha == 1.0 else 1.0 / (1.0 - alpha)


def oracle_factor(alpha: float, c: float, verify: float = 1.0) -> float:
    """Speedup of that oracle, which drafts exactly what will be kept: 1/(1-alpha) / (verify + c alpha/(1-alpha)).

    No choice of gamma reaches it (section 3.5: up to about 60 % above the best fixed gamma). Raises ValueError.
    """
    _costs(c=c, verify=verify)
    tokens = oracle_tokens(alpha)
    if tokens == inf:
        return 1.0 / c if c else inf
    return tokens / (verify + c * (tokens - 1.0))


def _checked(alpha: float, gamma: int) -> None:
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha: {alpha!r} is not a probability from 0 to 1")
    if isinstance(gamma, bool) or not isinstance(gamma, int) or gamma < 1:
        raise ValueError(f"gamma: {gamma!r} is not a whole number of at least 1")


def _costs(**named: float) -> None:
    for name, value in named.items():
        if not 0.0 <= value < inf:
            raise ValueError(f"{name}: {value!r} is not a number of at least 0")
