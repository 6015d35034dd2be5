"""Several samples of one prompt: read once, forked, counted as the simulator counts them, drawn independently."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from policy_checks import SHAPES, chatty, refusal

from sim.analytic.model import ModelShape
from sim.policies import Chunk, Chunks
from sim.policies.autoregressive import Autoregressive
from sim.policies.speculative import Speculative
from sim.reference.cache import KVCache
from sim.reference.decoding import Generation, decode
from sim.reference.samples import Samples
from sim.reference.sampling import Sampler
from sim.reference.twins import autoregressive
from sim.validation.counts import added, decoded, measured, mismatches, simulated
from sim.validation.distribution import PROMPT, chi_square, continuations, critical_share, tiny_pair
from sim.validation.stand_in import dense, stand_in

TOKENS = (12, 5, 20, 1)
PROMPT_OF_9 = np.arange(9) % 12


def group_passes(policy: Any, runs: list[Generation], windows: Any) -> list[tuple[int, Any]]:
    """The policy's passes of a group: the decode rounds of all samples after the prefill of one prompt."""
    prefills = len(list(policy.passes(0, None, Chunks([Chunk(0, 9, True)] * len(runs)), windows)))
    rounds = list(decoded(policy, runs, windows))[prefills:]
    once = [(one.model, one.work) for one in policy.passes(0, None, Chunks([Chunk(0, 9, True)]), windows)]
    return [*once, *rounds]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_counts_are_exact(shape: ModelShape) -> None:
    """Four samples of different lengths: weights once a pass, each sample reads the prompt's keys for itself, the
    prompt is run once. Every op of every kind; only the first draw is made once for each sample."""
    target = chatty(shape)
    target.meter.reset()
    runs = decode(Samples(), target, [PROMPT_OF_9] * 4, TOKENS, seed=1)
    works = [work for _, work in group_passes(Autoregressive(), runs, (shape.windows,))]
    ours, theirs = simulated(shape, works), measured(target.meter)
    found = {(m.kind, m.op): m.measured - m.simulated for m in mismatches(ours, theirs)}
    assert found == {("flops", "sample"): 3 * 5 * 12, ("bytes_activations", "sample"): 3 * 4 * 12}


def test_speculative_samples_count_alike() -> None:
    """With a draft, whose cache is forked too."""
    target, small = chatty(SHAPES["full"]), stand_in(dense(8, 1, 2, 1, 16, 12), 4, sharpness=2.0)
    for model in (target, small):
        model.meter.reset()
    runs = decode(Samples(small, 3), target, [PROMPT_OF_9] * 4, TOKENS, seed=1)
    windows = (target.shape.windows, small.shape.windows)
    passes = group_passes(Speculative("d", 3), runs, windows)
    ours = [simulated(m.shape, [w for k, w in passes if k == i], p) for i, (m, p) in
            enumerate(((target, ""), (small, "draft.")))]  # fmt: skip
    found = mismatches(added(*ours), added(measured(target.meter), measured(small.meter)))
    assert {m.op for m in found} == {"sample"}


def test_greedy_samples_are_all_the_same_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the text that one sequence alone gives; a fork that leaves the prompt behind is caught."""
    target = chatty(SHAPES["full"])
    [alone] = decode(autoregressive.Twin(), target, [PROMPT_OF_9], 20, sampler=Sampler(0))
    runs = decode(Samples(), target, [PROMPT_OF_9] * 3, 20, sampler=Sampler(0))
    assert {run.tokens for run in runs} == {alone.tokens}
    fork = KVCache.fork

    def empty(cache: KVCache, sequence: int, copies: int = 1) -> list[int]:
        made = fork(cache, sequence, copies)
        for keys in cache.keys:
            keys[made] = 0
        return made

    monkeypatch.setattr(KVCache, "fork", empty)
    broken = decode(Samples(), target, [PROMPT_OF_9] * 3, 20, sampler=Sampler(0))
    assert {run.tokens for run in broken} != {alone.tokens}


@pytest.mark.parametrize("drafts", [False, True])
def test_samples_are_independent_draws(drafts: bool) -> None:
    """2,000 samples of one group have the target's distribution over all 256 continuations of four tokens."""
    target, small = tiny_pair()
    runs = decode(Samples(small if drafts else None, 2), target, [PROMPT] * 2000, 4, seed=5)
    digits = np.array([run.tokens for run in runs]) @ 4 ** np.arange(3, -1, -1)
    statistic, freedom = chi_square(np.bincount(digits, minlength=256), continuations(target, PROMPT, 4))
    assert statistic / freedom - 1 < critical_share(freedom)


def test_prompts_that_differ_are_refused() -> None:
    """A group has one prompt."""
    target, _ = tiny_pair()
    wrong = [PROMPT, PROMPT[:-1]]
    assert refusal(lambda: decode(Samples(), target, wrong, 4)).startswith("samples: the prompts differ")
