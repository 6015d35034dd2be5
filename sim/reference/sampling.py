"""From logits to a token: temperature, top-k, top-p, and the addressed random numbers behind every draw.

Probabilities are float64 whatever the logits are, so that draft and target distributions can be divided and subtracted
without losing the last digits that rejection sampling lives on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def stream(seed: int, *purpose: int | str) -> np.random.Generator:
    """A Philox generator addressed by ``(seed, purpose...)``: equal addresses give equal draws, whatever ran before."""
    address = "/".join([str(int(seed)), *map(str, purpose)])
    digest = hashlib.blake2b(address.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def softmax(logits: ArrayLike) -> Floats:
    """``exp(logits)`` normalised over the last axis, [..., V] -> [..., V] in float64; -inf means impossible."""
    x = np.asarray(logits, dtype=np.float64)
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def one_hot(tokens: ArrayLike, vocab: int) -> Floats:
    """Distributions that are certain: [...] token ids -> [..., V]."""
    ids = np.asarray(tokens, dtype=np.int64)
    return np.asarray(ids[..., None] == np.arange(vocab), dtype=np.float64)


def keep_top_k(logits: Floats, k: int) -> Floats:
    """-inf below the k-th largest logit of each row; ties with the k-th are kept (as ``transformers`` does)."""
    if k >= logits.shape[-1]:
        return logits
    kth = np.partition(logits, -k, axis=-1)[..., -k, None]
    return np.where(logits < kth, -np.inf, logits)


def keep_top_p(logits: Floats, p: float) -> Floats:
    """-inf outside the smallest set of likeliest tokens whose mass reaches ``p``; ties go to the lower id."""
    order = np.argsort(-logits, axis=-1, kind="stable")
    sorted_mass = np.take_along_axis(softmax(logits), order, axis=-1)
    before = np.cumsum(sorted_mass, axis=-1) - sorted_mass
    dropped = np.zeros(logits.shape, dtype=bool)
    np.put_along_axis(dropped, order, before >= p, axis=-1)
    return np.where(dropped, -np.inf, logits)


@dataclass(frozen=True)
class Sampler:
    """How a token is chosen. ``temperature`` 0 is greedy; ``top_k`` None and ``top_p`` 1 keep the whole vocabulary.

    The order is temperature, then top-k, then top-p, as in ``transformers`` and vLLM. Raises ValueError for values
    outside temperature >= 0, top_k >= 1, 0 < top_p <= 1.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        """Refuse options that name no distribution."""
        _check("temperature", self.temperature, lambda x: 0 <= x < np.inf, "a finite number >= 0")
        _check("top_k", 1 if self.top_k is None else self.top_k, lambda x: x >= 1, "None or an integer >= 1")
        _check("top_p", self.top_p, lambda x: 0 < x <= 1, "a number in (0, 1]")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0

    def probabilities(self, logits: ArrayLike) -> Floats:
        """The distribution that a token is drawn from, [..., V] -> [..., V]. Greedy gives one-hot rows (lowest id wins
        a tie), so that every policy needs one rule for sampling and for greedy decoding.
        """
        x = np.asarray(logits, dtype=np.float64)
        if self.greedy:
            return one_hot(x.argmax(axis=-1), x.shape[-1])
        x = x / self.temperature
        x = x if self.top_k is None else keep_top_k(x, self.top_k)
        return softmax(x if self.top_p == 1 else keep_top_p(x, self.top_p))


def _check(key: str, value: float, allowed: Callable[[float], bool], what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not allowed(value):
        raise ValueError(f"sampler: {key} is {value!r}; allowed: {what}")


def draw(probabilities: Floats, uniform: float) -> int:
    """The token where the cumulative distribution [V] passes ``uniform`` in [0, 1); never one of probability 0."""
    mass = np.cumsum(probabilities)
    token = int(np.searchsorted(mass, uniform * mass[-1], side="right"))
    return min(token, int(np.searchsorted(mass, mass[-1], side="left")))


def draw_rows(probabilities: Floats, uniforms: Floats) -> NDArray[np.int64]:
    """:func:`draw` for each row: [n, V] and [n] -> [n] token ids."""
    pairs = zip(probabilities, uniforms, strict=True)
    return np.fromiter((draw(row, u) for row, u in pairs), dtype=np.int64, count=len(uniforms))
