"""Acceptance without the sampler: what speculative decoding does on a text, from one pass of draft and target.

Given that position t of an output holds x_t ~ p_t, the drafted token there was x_t *and* was accepted with probability
``beta_t = min(1, q_t(x_t) / p_t(x_t))``, independently over t: P(accepted and x) = min(p, q)(x), while P(x) = p(x). So
text sampled from the target, the two teacher-forced distributions and one coin a position reproduce speculative
sampling in distribution, for every gamma, places where rounds start included (derived from Leviathan et al.,
arXiv 2211.17192, theorem 3.5 and algorithm 1; held against the direct sampler in tests). The mean of beta is alpha.

The coins are not even needed: :func:`round_starts` carries the probability that a round starts at each position.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.reference.sampling import Floats, stream


def acceptance_probabilities(p: Floats, q: Floats, tokens: NDArray[np.int64]) -> Floats:
    """beta of each token of a text: ``min(1, q(x) / p(x))``, [n, V], [n, V], [n] -> [n].

    ``p`` and ``q`` are what target and draft sample from at each position (temperature, top-k, top-p applied; one-hot
    rows for greedy decoding give 1 where the argmaxes agree). Raises ValueError where the target cannot have produced
    the text (p(x) = 0). Holds for lossless sampling only: a lenient output is not drawn from the target.
    """
    at = np.arange(len(tokens))
    px, qx = p[at, tokens], q[at, tokens]
    if not (px > 0).all():
        t = int(np.argmin(px > 0))
        raise ValueError(f"replay: token {int(tokens[t])} at position {t} has probability 0 in the target")
    return np.asarray(np.minimum(1.0, qx / px), dtype=np.float64)


def kept_per_round(betas: Floats, gamma: int, coins: Floats) -> NDArray[np.int64]:
    """Drafts kept in each round of one replay of one text: [n] betas, [n] uniforms -> [rounds], each 0..gamma.

    A round that keeps k drafts emits k+1 tokens; rounds that would need tokens past the end are left out.
    """
    accepted = coins < betas
    run, runs = 0, np.zeros(len(betas), dtype=np.int64)
    for t in range(len(betas) - 1, -1, -1):
        run = run + 1 if accepted[t] else 0
        runs[t] = min(run, gamma)
    kept, at = [], 0
    while at + gamma < len(betas):
        kept.append(int(runs[at]))
        at += kept[-1] + 1
    return np.array(kept, dtype=np.int64)


def survivals_at(betas: Floats, gamma: int) -> Floats:
    """P(at least k of the drafts are kept | a round starts at t): [n] -> [n - gamma, gamma]."""
    windows = np.lib.stride_tricks.sliding_window_view(betas, gamma)[: len(betas) - gamma]
    return np.asarray(np.cumprod(windows, axis=1), dtype=np.float64)


def round_starts(survivals: Floats) -> Floats:
    """Probability that a round starts at each position of a text whose first token starts one: [m, gamma] -> [m]."""
    m, gamma = survivals.shape
    ends = -np.diff(np.concatenate([np.ones((m, 1)), survivals, np.zeros((m, 1))], axis=1), axis=1)  # P(keep exactly k)
    weight = np.zeros(m + gamma + 1)
    weight[:1] = 1.0
    for t in range(m):
        weight[t + 1 : t + gamma + 2] += weight[t] * ends[t]
    return weight[:m]


def _sums(betas: Floats, gamma: int, block_tokens: int) -> Floats:
    """Of one text: expected rounds and expected kept-at-least-k, added up by block: [blocks, 1 + gamma]."""
    survivals = survivals_at(betas, gamma)
    weight = round_starts(survivals)
    columns = weight[:, None] * np.concatenate([np.ones((len(weight), 1)), survivals], axis=1)
    return np.add.reduceat(columns, np.arange(0, len(weight), block_tokens), axis=0)


def _texts(betas: Floats | Sequence[Floats], gamma: int) -> list[Floats]:
    one = isinstance(betas, np.ndarray) and betas.ndim == 1
    texts = [np.asarray(text, dtype=np.float64) for text in ([betas] if one else betas)]
    if gamma < 1:
        raise ValueError(f"replay: gamma is {gamma}; allowed: an integer >= 1")
    if not any(len(text) > gamma for text in texts):
        raise ValueError(f"replay: no text is longer than gamma = {gamma} tokens")
    return [text for text in texts if len(text) > gamma]


def survival_vector(betas: Floats | Sequence[Floats], gamma: int) -> Floats:
    """P(at least k drafts kept in a round), k = 1..gamma, from the betas of one text or of several: -> [gamma].

    Exact for the text given (no coins are thrown): every position weighs as often as a round starts there. Tokens per
    round are ``1 + sum``. Raises ValueError when no text is longer than gamma.
    """
    total = np.sum([_sums(text, gamma, len(text)).sum(axis=0) for text in _texts(betas, gamma)], axis=0)
    return np.asarray(total[1:] / total[0])


@dataclass(frozen=True)
class Survival:
    """A measured survival vector [gamma] with the ends of its confidence interval, and tokens per round likewise."""

    vector: Floats
    low: Floats
    high: Floats
    tokens_per_round: float
    tokens_per_round_low: float
    tokens_per_round_high: float
    level: float


def survival_interval(
    betas: Floats | Sequence[Floats],
    gamma: int,
    *,
    level: float = 0.95,
    block_tokens: int = 64,
    resamples: int = 1000,
    seed: int = 0,
) -> Survival:
    """:func:`survival_vector` with percentile intervals from a block bootstrap (Kuensch 1989, blocks not overlapping).

    Blocks of ``block_tokens`` are drawn with replacement, because neighbouring tokens are alike in difficulty; never
    across two texts. The interval speaks of the survival vector of such text, not of one short run: for that see
    :func:`predict`. With few blocks it is a little narrow: 47 blocks of a process that remembers ten tokens cover
    91 % where 95 % are stated (tests/reference/test_replay.py).
    """
    blocks = np.concatenate([_sums(text, gamma, block_tokens) for text in _texts(betas, gamma)])
    total = blocks.sum(axis=0)
    vectors = _ratios(bootstrap_sums(blocks, resamples, seed))
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(vectors, tails, axis=0)
    tokens_low, tokens_high = np.quantile(1 + vectors.sum(axis=1), tails)
    vector = total[1:] / total[0]
    return Survival(vector, low, high, float(1 + vector.sum()), float(tokens_low), float(tokens_high), level)


def bootstrap_sums(blocks: Floats, resamples: int, seed: int) -> Floats:
    """Sums over blocks drawn with replacement: [blocks, c] -> [resamples, c]."""
    n = len(blocks)
    times = stream(seed, "bootstrap").multinomial(n, np.full(n, 1 / n), size=resamples)
    return np.asarray(times @ blocks)  # [resamples, blocks] @ [blocks, c]


def _ratios(sums: Floats) -> Floats:
    return np.asarray(sums[:, 1:] / sums[:, :1])


def iid_survival(alpha: float, gamma: int) -> Floats:
    """The survival vector if every draft were accepted with probability alpha, independently: ``alpha^k``, [gamma]."""
    return np.asarray(float(alpha) ** np.arange(1, gamma + 1))


def mean_beta(betas: Floats | Iterable[Floats]) -> float:
    """alpha: the mean acceptance probability over all tokens of the texts."""
    return float(np.concatenate([np.atleast_1d(text) for text in betas]).mean())


@dataclass(frozen=True)
class Prediction:
    """Tokens per round measured on a second text beside what the first text predicts for it.

    ``low`` and ``high`` bound the difference of the two measurements (both texts resampled) around the prediction;
    errors are relative to the measured value.
    """

    gamma: int
    measured: float
    predicted: float
    low: float
    high: float
    iid: float

    @property
    def error(self) -> float:
        """Relative error of the survival vector's prediction."""
        return self.predicted / self.measured - 1

    @property
    def iid_error(self) -> float:
        """Relative error of the i.i.d. formula ``(1 - alpha^(gamma+1)) / (1 - alpha)``, alpha from the first text."""
        return self.iid / self.measured - 1

    @property
    def holds(self) -> bool:
        """Whether the measured value lies within the stated interval."""
        return self.low <= self.measured <= self.high


def predict(
    first: Floats | Sequence[Floats],
    second: Floats | Sequence[Floats],
    gamma: int,
    *,
    level: float = 0.95,
    block_tokens: int = 64,
    resamples: int = 1000,
    seed: int = 0,
) -> Prediction:
    """What acceptance on the first text says of tokens per round on the second, with a prediction interval.

    The interval is that of the first text's bootstrap minus the second's, since both are samples of the same source.
    """
    draws = []
    for purpose, betas in enumerate((first, second)):
        blocks = np.concatenate([_sums(text, gamma, block_tokens) for text in _texts(betas, gamma)])
        draws.append(1 + _ratios(bootstrap_sums(blocks, resamples, seed + purpose)).sum(axis=1))
    measured = 1 + float(survival_vector(second, gamma).sum())
    predicted = 1 + float(survival_vector(first, gamma).sum())
    spread = (draws[0] - draws[0].mean()) - (draws[1] - draws[1].mean())
    low, high = np.quantile(predicted + spread, [(1 - level) / 2, (1 + level) / 2])
    texts = first if not (isinstance(first, np.ndarray) and first.ndim == 1) else [first]
    iid = 1 + float(iid_survival(mean_beta(texts), gamma).sum())
    return Prediction(gamma, measured, predicted, float(low), float(high), iid)
