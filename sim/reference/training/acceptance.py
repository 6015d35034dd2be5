"""Acceptance of a draft by a target, token by token, and the rounds that follow from it.

Exact replay: on text x drawn from the target, the draft's token survives and equals x_t with probability
beta_t = min(1, q(x_t) / p(x_t)) (P(propose and accept x) = min(p, q)(x), P(output x) = p(x)), independently over t.
One teacher-forced pass of both models and Bernoulli draws therefore give rounds with the law of the real sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Model = Callable[[Tensor], Tensor]
Floats = NDArray[np.float64]

CHUNK_WINDOWS = 32
REPLAYS = 8
GAMMAS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Overlap:
    """Per window and predicted token [W, N]: alpha = sum_x min(p, q)(x), beta = min(1, q(x_t) / p(x_t))."""

    alpha: Floats
    beta: Floats


@torch.no_grad()
def overlap(
    target: Model, drafts: Mapping[str, Model], ids: Tensor, first: int, temperatures: Sequence[float]
) -> dict[tuple[str, float], Overlap]:
    """Compare each draft with the target on the tokens `first`.. of every window of ids [W, T].

    Temperature 0 compares argmaxes. The target runs once for all drafts; the result is keyed by draft and temperature.
    """
    parts: dict[tuple[str, float], list[tuple[Tensor, Tensor]]] = {(n, t): [] for n in drafts for t in temperatures}
    for chunk in ids.split(CHUNK_WINDOWS):
        p_logits = target(chunk[:, :-1])[:, first - 1 :]
        for name, draft in drafts.items():
            q_logits = draft(chunk[:, :-1])[:, first - 1 :]
            for t in temperatures:
                parts[name, t].append(compare(p_logits, q_logits, chunk[:, first:], t))
    return {
        key: Overlap(*(torch.cat(c).double().numpy() for c in zip(*part, strict=True))) for key, part in parts.items()
    }


def compare(p_logits: Tensor, q_logits: Tensor, text: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Logits [W, N, V] and the tokens that came [W, N] -> alpha and beta, each [W, N]."""
    if temperature == 0.0:
        same = (p_logits.argmax(-1) == q_logits.argmax(-1)).float()
        return same, same
    p, q = (F.log_softmax(a / temperature, dim=-1) for a in (p_logits, q_logits))
    log_ratio = (q - p).gather(-1, text[..., None])[..., 0]
    return torch.minimum(p, q).exp().sum(-1), log_ratio.clamp(max=0.0).exp()


def mean_and_se(per_window: Floats) -> tuple[float, float]:
    """Mean over all tokens of [W, N] and its standard error with windows as the independent units."""
    means = per_window.mean(axis=1)
    return round(float(means.mean()), 5), round(float(means.std(ddof=1) / len(means) ** 0.5), 5)


def as_rounds(beta: Floats, gamma: int) -> Floats:
    """[W, N] -> [W, N - gamma + 1, gamma]: the betas of a round that drafts token t first."""
    return np.lib.stride_tricks.sliding_window_view(beta, gamma, axis=1)


def replay(rounds: Floats, seed: int) -> Floats:
    """Play rounds through every window [W, S, gamma] 8 times; returns survival s_1..s_gamma (s_k: at least k kept).

    The next round starts after the kept drafts and the target's own token; a round that would pass the end is dropped.
    """
    rng = np.random.default_rng(seed)
    survival, count = np.zeros(rounds.shape[2]), 0
    for _ in range(REPLAYS):
        kept = np.cumprod(rng.random(rounds.shape) < rounds, axis=2).sum(axis=2)
        for start_kept in _walk(kept):
            survival += _at_least(start_kept, rounds.shape[2])
            count += len(start_kept)
    return survival / count


def _at_least(kept: NDArray[np.int64], gamma: int) -> Floats:
    return (kept[:, None] >= np.arange(1, gamma + 1)).sum(axis=0).astype(np.float64)


def _walk(kept: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Kept counts of the rounds actually started, all windows in step: kept [W, S] -> a list of [<= W]."""
    window, place, out = np.arange(len(kept)), np.zeros(len(kept), dtype=np.int64), []
    while len(window):
        now = kept[window, place]
        out.append(now)
        place = place + now + 1
        inside = place < kept.shape[1]
        window, place = window[inside], place[inside]
    return out


def rounds_summary(beta: Floats, seed: int) -> dict[str, object]:
    """Tokens per round by gamma, next to the i.i.d. formula with the mean beta, and the survival vector of gamma 8."""
    a = float(beta.mean())
    played = {gamma: replay(as_rounds(beta, gamma), seed) for gamma in GAMMAS}
    return {
        "tokens_per_round": {str(g): round(1.0 + float(s.sum()), 4) for g, s in played.items()},
        "tokens_per_round_iid": {str(g): round(sum(a**k for k in range(g + 1)), 4) for g in GAMMAS},
        "survival_gamma_8": [round(float(s), 4) for s in played[GAMMAS[-1]]],
    }
