"""What a checkpoint's configuration fixes beside the shape: bases, scales, caps. And the functions they name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.reference.rope import Rope

Array = NDArray[Any]


@dataclass(frozen=True)
class RelativeBias:
    """T5's bucketed relative positions (arXiv 1910.10683, section 2.1): buckets and the distance they saturate at."""

    buckets: int = 32
    max_distance: int = 128


@dataclass(frozen=True)
class Numerics:
    """Numbers of a model that its shape does not hold.

    ``rope`` serves every layer, unless ``rope_local`` is given, which then serves those with a window (Gemma 3).
    ``attention_scale``: factor on the scores (None: ``head_dim ** -0.5``). ``embedding_scale`` and ``logit_scale``
    multiply the embedded tokens and the states before the head. ``*_cap``: ``cap * tanh(x / cap)``. ``post_norms``:
    what attention and FFN give is normalised once more before it joins the residual stream (Gemma 2 and 3).
    ``router_renormalise``: the weights of the chosen experts are scaled to add up to one.
    """

    eps: float = 1e-5
    rope: Rope | None = None
    rope_local: Rope | None = None
    relative: RelativeBias | None = None
    attention_scale: float | None = None
    attention_cap: float | None = None
    logit_cap: float | None = None
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    post_norms: bool = False
    router_renormalise: bool = True


def silu(x: Array) -> Array:
    """``x * sigmoid(x)``."""
    with np.errstate(over="ignore"):  # exp(-x) = inf gives the right 0
        out: Array = x / (1 + np.exp(-x))
    return out


def gelu_tanh(x: Array) -> Array:
    """GELU by its tanh approximation (arXiv 1606.08415, section 2)."""
    out: Array = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))))
    return out


def gelu(x: Array) -> Array:
    """GELU with the error function itself."""
    erf = np.asarray(np.frompyfunc(math.erf, 1, 1)(x / math.sqrt(2)), x.dtype)
    out: Array = 0.5 * x * (1 + erf)
    return out


def relu(x: Array) -> Array:
    """``max(x, 0)``."""
    out: Array = np.maximum(x, 0)
    return out


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": silu,
    "swish": silu,
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu_tanh": gelu_tanh,
    "relu": relu,
}


def softmax(scores: Array) -> Array:
    """Softmax over the last axis, in place; ``-inf`` gets weight 0."""
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores


def cap(x: Array, limit: float | None) -> Array:
    """Soft cap ``limit * tanh(x / limit)`` (arXiv 2408.00118, section 2); None leaves ``x`` alone."""
    return x if limit is None else limit * np.tanh(x / limit)


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """``[m, d] -> [m, d]``, each row over its root mean square (arXiv 1910.07467)."""
    mean = np.mean(x * x, axis=-1, keepdims=True, dtype=x.dtype)
    out: Array = x / np.sqrt(mean + x.dtype.type(eps)) * weight
    return out


def layer_norm(x: Array, weight: Array, bias: Array | None, eps: float) -> Array:
    """``[m, d] -> [m, d]``, each row centred and over its standard deviation (arXiv 1607.06450)."""
    centred = x - np.mean(x, axis=-1, keepdims=True, dtype=x.dtype)
    out = rms_norm(centred, weight, eps)
    return out if bias is None else out + bias
