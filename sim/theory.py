"""Draft and verify on paper: expected tokens, wall-time factor, operations factor, best gamma, and the oracle's bound.

Leviathan, Kalman and Matias 2023 (arXiv 2211.17192), section 3. ``acceptance`` is a number (alpha: independent and the
same everywhere, as in the paper) or a survival vector s_1, s_2, ... with s_k = P(at least k drafts are kept), which
holds for any law. ``c``: seconds of a draft pass, ``verify``: of the target's pass over gamma + 1 tokens (a number or a
function of gamma), both in those of one autoregressive step; the paper takes ``verify`` = 1. What a scenario's own
policy, device and batch give is ``sim/speedup.py``; the tests hold the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "best_gamma",
    "expected_tokens",
    "implied_alpha",
    "lenient_alpha",
    "operations_factor",
    "oracle_factor",
    "oracle_tokens",
    "wall_time_factor",
]

MOST_GAMMA = 10_000
Acceptance = float | Sequence[float] | NDArray[np.float64]
Verify = float | Callable[[int], float]


def expected_tokens(acceptance: Acceptance, gamma: int) -> float:
    """Tokens a round, E = 1 + s_1 + ... + s_gamma; (1 - alpha^(gamma+1)) / (1 - alpha), equation 1, for a number.

    Raises ValueError, also for a vector shorter than gamma.
    """
    _whole(gamma)
    if not _is_number(acceptance):
        vector = _vector(acceptance)
        if len(vector) < gamma:
            raise ValueError(f"gamma: {gamma!r} is beyond the survival vector's {len(vector)} entries")
        return 1.0 + float(vector[:gamma].sum())
    alpha = _alpha(acceptance)
    return gamma + 1.0 if alpha == 1.0 else (1.0 - alpha ** (gamma + 1)) / (1.0 - alpha)


def wall_time_factor(acceptance: Acceptance, gamma: int, c: float, verify: Verify = 1.0) -> float:
    """Speedup over autoregressive decoding, E / (gamma c + verify) (theorem 3.8). Raises ValueError."""
    seconds = gamma * _cost("c", c) + _verify_s(verify, gamma)
    tokens = expected_tokens(acceptance, gamma)
    return tokens / seconds if seconds else inf


def operations_factor(acceptance: Acceptance, gamma: int, c_hat: float) -> float:
    """Arithmetic per token over that of autoregressive decoding, (gamma c_hat + gamma + 1) / E (theorem 3.11).

    ``c_hat``: operations of the draft per token, in those of the target. Raises ValueError.
    """
    return (gamma * _cost("c_hat", c_hat) + gamma + 1) / expected_tokens(acceptance, gamma)


def best_gamma(acceptance: Acceptance, c: float, verify: Verify = 1.0) -> int:
    """The gamma with the largest wall-time factor (section 3.5); 0 where drafting does not pay. Raises ValueError.

    A vector is searched as far as it goes, a number up to ``MOST_GAMMA``, which is the answer where a longer draft
    always pays (alpha = 1 or c = 0). Where ``verify`` is a function of gamma the whole range is searched, up to 64 for
    a number.
    """
    longest = MOST_GAMMA if _is_number(acceptance) else len(_vector(acceptance))
    if callable(verify):
        longest = min(longest, 64) if _is_number(acceptance) else longest
    best, most, before = 0, 1.0, 0.0
    for gamma in range(1, longest + 1):
        factor = wall_time_factor(acceptance, gamma, c, verify)
        if factor > most:
            best, most = gamma, factor
        elif factor < before and not callable(verify):
            break  # one hump: E is concave in gamma and the cost is a straight line
        before = factor
    return best


def oracle_tokens(acceptance: Acceptance) -> float:
    """Tokens a round if somebody told how many drafts will be kept, the bound on E for any gamma: 1 / (1 - alpha).

    Of a vector, 1 + its sum: as far as was measured. Raises ValueError.
    """
    if not _is_number(acceptance):
        return 1.0 + float(_vector(acceptance).sum())
    alpha = _alpha(acceptance)
    return inf if alpha == 1.0 else 1.0 / (1.0 - alpha)


def oracle_factor(acceptance: Acceptance, c: float, verify: float = 1.0) -> float:
    """Speedup of that oracle, which drafts exactly what will be kept: T / (verify + c (T - 1)), T its tokens a round.

    No choice of gamma reaches it while c <= verify (section 3.5: up to about 60 % above the best fixed gamma). Raises
    ValueError.
    """
    c, verify = _cost("c", c), _cost("verify", verify)
    tokens = oracle_tokens(acceptance)
    if tokens == inf:
        return 1.0 / c if c else inf
    seconds = verify + c * (tokens - 1.0)
    return tokens / seconds if seconds else inf


def implied_alpha(tokens: float, gamma: int) -> float:
    """The alpha that makes ``expected_tokens(alpha, gamma)`` so many ``tokens`` a round. Raises ValueError."""
    _whole(gamma)
    if not 1.0 <= tokens <= gamma + 1.0:
        raise ValueError(f"tokens: {tokens!r} is not a number from 1 to gamma + 1 = {gamma + 1}")
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if expected_tokens(middle, gamma) < tokens else (low, middle)
    return high


def lenient_alpha(p: Any, q: Any, lenience: float = 1.0) -> float:
    """Mean acceptance with lenience l (appendix A.5): sum over tokens of min(p / l, q), averaged over positions.

    ``p``, ``q``: what target and draft sample from, [..., V]; with l = 1 the paper's alpha = 1 - total variation. Both
    distributions are needed: no alpha at one lenience gives that at another. Raises ValueError.
    """
    if not 0.0 < lenience <= 1.0:
        raise ValueError(f"lenience: {lenience!r} is not a number above 0 and up to 1")
    target, draft = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    if target.shape != draft.shape or not target.ndim:
        raise ValueError(f"p, q: shapes {target.shape} and {draft.shape} are not one [..., V]")
    return float(np.minimum(target / lenience, draft).sum(axis=-1).mean())


def _is_number(acceptance: Acceptance) -> bool:
    return np.ndim(acceptance) == 0


def _alpha(acceptance: Any) -> float:
    if isinstance(acceptance, bool) or not isinstance(acceptance, int | float) or not 0.0 <= acceptance <= 1.0:
        raise ValueError(f"alpha: {acceptance!r} is not a probability from 0 to 1")
    return float(acceptance)


def _vector(acceptance: Any) -> NDArray[np.float64]:
    vector = np.asarray(acceptance, dtype=np.float64)
    inside = vector.ndim == 1 and bool(((vector >= 0.0) & (vector <= 1.0)).all())
    if not inside or np.any(np.diff(vector) > 1e-12):
        raise ValueError("acceptance: a survival vector has probabilities that do not rise")
    return vector


def _whole(gamma: int) -> None:
    if isinstance(gamma, bool) or not isinstance(gamma, int) or gamma < 1:
        raise ValueError(f"gamma: {gamma!r} is not a whole number of at least 1")


def _cost(name: str, value: float) -> float:
    if not (value >= 0.0 and isfinite(value)):
        raise ValueError(f"{name}: {value!r} is not a number of at least 0")
    return value


def _verify_s(verify: Verify, gamma: int) -> float:
    return _cost("verify", verify(gamma) if callable(verify) else verify)
