"""What the tests of single policies share: confidence intervals, counts against the meter, sampled distributions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sim.analytic.model import ModelShape
from sim.reference.decoding import Generation, Twin, decode
from sim.reference.sampling import Sampler, stream
from sim.reference.transformer import Transformer
from sim.reference.twins import autoregressive
from sim.validation.counts import Mismatch, added, decoded, measured, mismatches, simulated
from sim.validation.distribution import PROMPT, chi_square, continuations, critical_share
from sim.validation.stand_in import dense, stand_in

SHAPES = {"full": dense(16, 2, 2, 1, 32, 12), "window": dense(16, 2, 4, 2, 24, 12, window=9)}
GREEDY = Sampler(0)


def near(values: Any, want: float, widest: float = 0.02) -> bool:
    """Whether a mean lies within 4.5 standard errors of what is wanted, and these are no wider than asked."""
    values = np.asarray(values, dtype=np.float64)
    error = float(values.std(ddof=1)) / len(values) ** 0.5
    return abs(float(values.mean()) - want) <= 4.5 * error + 1e-9 and error < widest


def refusal(build: Callable[[], object]) -> str:
    """The one line with which options are refused."""
    try:
        build()
    except ValueError as error:
        assert "\n" not in str(error)
        return str(error)
    raise AssertionError("nothing was refused")


def ragged_prompts(vocab: int) -> tuple[list[Any], tuple[int, ...]]:
    """Three prompts of different lengths, and how many tokens each is to be answered with."""
    return [stream(s, "prompts").integers(0, vocab, n) for s, n in enumerate((9, 4, 17))], (30, 8, 41)


def clash(
    policy: Any, twin: Twin, target: Transformer, drafts: Sequence[Transformer] = (), sampler: Sampler | None = None
) -> tuple[list[Mismatch], list[Generation]]:
    """FLOPs and bytes of a ragged batch, the policy's passes against the meters' readings; what ran."""
    models = (target, *drafts)
    for model in models:
        model.meter.reset()
    prompts, tokens = ragged_prompts(target.shape.vocab)
    runs = decode(twin, target, prompts, tokens, sampler=sampler, seed=1)
    passes = list(decoded(policy, runs, tuple(m.shape.windows for m in models)))
    ours = [
        simulated(m.shape, [work for model, work in passes if model == i], "draft." if i else "")
        for i, m in enumerate(models)
    ]
    return mismatches(added(*ours), added(*(measured(m.meter) for m in models))), runs


def chatty(shape: ModelShape, seed: int = 3) -> Transformer:
    """A model that repeats itself often enough for drafts to be kept."""
    return stand_in(shape, seed, sharpness=3.0)


def greedy_differs(twin: Twin, target: Transformer, prompts: Sequence[Any], tokens: int = 24) -> list[Generation]:
    """What ran, where the greedy output of every prompt is the target's own; fails where one is not."""
    plain, fast = (decode(t, target, prompts, tokens, sampler=GREEDY) for t in (autoregressive.Twin(), twin))
    assert [g.tokens for g in plain] == [g.tokens for g in fast]
    return fast


def excess(twin: Twin, target: Transformer, draws: int = 2000) -> tuple[float, float]:
    """(chi-square over its degrees of freedom less 1, what is still likely) of sampled runs over four tokens."""
    runs = decode(twin, target, [PROMPT] * draws, 4, seed=5)
    digits = np.array([run.tokens for run in runs]) @ 4 ** np.arange(3, -1, -1)
    statistic, freedom = chi_square(np.bincount(digits, minlength=256), continuations(target, PROMPT, 4))
    return statistic / freedom - 1, critical_share(freedom)
