"""Acceptance of drafted tokens as a survival vector: s_k = P(at least k of the drafted tokens are kept).

A number or ``{kind: iid, alpha}``: s_k = alpha^k (Leviathan et al. 2023, section 3.1). ``{kind: survival, vector}``:
measured, as vLLM prints it by position. ``{kind: beta, mean, concentration}``: all positions of a round share one
acceptance rate drawn from a Beta distribution, so that s_k = prod (mean*c + i)/(c + i), i < k, and hazards rise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def survival_vector(spec: Any, gamma: int) -> NDArray[np.float64]:
    """Shape [gamma]. Raises ValueError naming ``policy.acceptance`` and what is allowed."""
    if not isinstance(spec, Mapping):
        spec = {"kind": "iid", "alpha": spec}
    kinds = {"iid": (_iid, {"alpha"}), "survival": (_measured, {"vector"}), "beta": (_beta, {"mean", "concentration"})}
    kind = spec.get("kind", "iid")
    if kind not in kinds:
        raise ValueError(f"policy.acceptance.kind: {kind!r} is not one of {', '.join(kinds)}")
    build, keys = kinds[kind]
    if set(spec) - {"kind"} != keys:
        raise ValueError(f"policy.acceptance: kind {kind} takes {', '.join(sorted(keys))}, got {sorted(set(spec) - {'kind'})}")
    return build(spec, gamma)


def _probability(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
        raise ValueError(f"policy.acceptance.{key}: {value!r} is not a probability from 0 to 1")
    return float(value)


def _iid(spec: Mapping[str, Any], gamma: int) -> NDArray[np.float64]:
    return np.cumprod(np.full(gamma, _probability(spec["alpha"], "alpha")))


def _measured(spec: Mapping[str, Any], gamma: int) -> NDArray[np.float64]:
    vector = spec["vector"]
    if not isinstance(vector, list | tuple) or len(vector) < gamma:
        raise ValueError(f"policy.acceptance.vector: needs a list of at least gamma = {gamma} probabilities, got {vector!r}")
    values = np.array([_probability(v, f"vector[{i}]") for i, v in enumerate(vector)])
    if np.any(np.diff(values) > 0):
        raise ValueError(f"policy.acceptance.vector: {vector!r} rises; P(at least k kept) cannot")
    return values[:gamma]


def _beta(spec: Mapping[str, Any], gamma: int) -> NDArray[np.float64]:
    mean, weight = _probability(spec["mean"], "mean"), spec["concentration"]
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0.0 < weight < float("inf"):
        raise ValueError(f"policy.acceptance.concentration: {weight!r} is not a positive number")
    i = np.arange(gamma)
    return np.cumprod((mean * weight + i) / (weight + i))
