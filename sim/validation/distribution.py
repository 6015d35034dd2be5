"""Distribution: greedy output is the target's own, sampled output has its exact distribution; what lossy ones lose."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from math import erfc, sqrt

import numpy as np
from numpy.typing import NDArray

from sim.reference.decoding import Generation, Tokens, Twin, decode
from sim.reference.sampling import Floats, Sampler
from sim.reference.transformer import Transformer
from sim.reference.twins import autoregressive
from sim.validation import losses
from sim.validation.policies import tiny, tiny_secondary, trained
from sim.validation.row import Row
from sim.validation.stand_in import dense, stand_in
from sim.validation.texts import held_out

GREEDY = Sampler(temperature=0)
PROMPT = np.array([1, 3, 0, 2, 2])
LIKELIEST = 1e-3  # a chi-square rarer than this fails


def equal_share(plain: Sequence[Generation], fast: Sequence[Generation]) -> float:
    """Share of tokens that two ways of decoding have in common, place by place."""
    same = [a.tokens[i] == b.tokens[i] for a, b in zip(plain, fast, strict=True) for i in range(len(a.tokens))]
    return float(np.mean(same))


def continuations(model: Transformer, prompt: Tokens, tokens: int) -> Floats:
    """Exact probability of every continuation of ``tokens`` tokens, in counting order, [V^tokens]."""
    vocab = model.shape.vocab
    paths = np.array(list(itertools.product(range(vocab), repeat=tokens)))  # [V^tokens, tokens]
    texts = [np.concatenate([prompt, path[:-1]]) for path in paths]
    logits = model.forward(texts, model.new_cache(len(texts)), rows="all").reshape(len(texts), -1, vocab)
    p = Sampler().probabilities(logits[:, len(prompt) - 1 :])  # [V^tokens, tokens, V]
    return np.asarray(np.take_along_axis(p, paths[..., None], axis=2)[..., 0].prod(axis=1))


def sampled(twin: Twin, target: Transformer, prompt: Tokens, tokens: int, draws: int, seed: int) -> NDArray[np.int64]:
    """How often each continuation came out of ``draws`` independent runs of a twin, in counting order, [V^tokens]."""
    runs = decode(twin, target, [prompt] * draws, tokens, seed=seed)
    vocab = target.shape.vocab
    digits = np.array([run.tokens for run in runs]) @ vocab ** np.arange(tokens - 1, -1, -1)
    return np.bincount(digits, minlength=vocab**tokens)


def chi_square(counts: NDArray[np.int64], probabilities: Floats) -> tuple[float, int]:
    """Pearson's statistic and its degrees of freedom; cells expected below 5 are merged into one."""
    expected = counts.sum() * probabilities / probabilities.sum()
    rare = expected < 5
    seen, due = (np.append(x[~rare], x[rare].sum()) for x in (counts, expected))
    seen, due = seen[due > 0], due[due > 0]
    return float(((seen - due) ** 2 / due).sum()), len(due) - 1


def critical_share(freedom: int, tail: float = LIKELIEST) -> float:
    """How far above its degrees of freedom, relatively, a chi-square statistic comes with probability ``tail``.

    Wilson and Hilferty's cube-root normal (PNAS 1931, https://doi.org/10.1073/pnas.17.12.684), good to 1 % here.
    """
    spread = 2 / (9 * freedom)
    return float((1 - spread + _normal_quantile(1 - tail) * sqrt(spread)) ** 3 - 1)


def _normal_quantile(p: float) -> float:
    low, high = -10.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if 0.5 * erfc(-middle / sqrt(2)) < p else (low, middle)
    return low


def tiny_pair(seed: int = 0) -> tuple[Transformer, Transformer]:
    """A target and a draft over four tokens, small enough to enumerate, that agree about two times in three."""
    target = stand_in(dense(16, 2, 2, 1, 32, 4), seed, sharpness=1.5)
    return target, stand_in(dense(8, 1, 2, 1, 16, 4), seed + 1)


def compare(prompts: int = 16, tokens: int = 16, draws: int = 4000, seed: int = 0) -> list[Row]:
    """Greedy identity on trained models, chi-square of all short continuations of tiny ones, what lossy ones lose."""
    return [*greedy_rows(prompts, tokens), *sampled_rows(draws, seed), *losses.compare()]


def greedy_rows(prompts: int, tokens: int) -> Iterator[Row]:
    """Every lossless policy on the family: not one token differs from the target's own."""
    texts, plain = held_out("a", prompts), {}
    for case in (c for c in trained(exact=True) if c.lossless and c.name != "autoregressive"):
        key = id(case.target)
        if key not in plain:
            plain[key] = decode(autoregressive.Twin(), case.target, texts, tokens, sampler=GREEDY)
        share = equal_share(plain[key], decode(case.twin, case.target, texts, tokens, sampler=GREEDY))
        what = f"{case.name}: share of {prompts * tokens} greedy tokens equal to the target's, {case.about}"
        yield Row("distribution", what, 1.0, share, 1 - share, 0.0)


def sampled_rows(draws: int, seed: int = 0) -> Iterator[Row]:
    """Every policy that samples without loss, over four tokens: untrained models suffice."""
    target, draft = tiny_pair(seed)
    exact = continuations(target, PROMPT, 4)
    for number, case in enumerate(tiny(target, draft, tiny_secondary(target))):
        statistic, freedom = chi_square(sampled(case.twin, target, PROMPT, 4, draws, seed + number), exact)
        what = f"{case.name}: chi-square of {draws} sampled continuations, untrained, {case.about}"
        yield Row("distribution", what, freedom, statistic, statistic / freedom - 1, critical_share(freedom))
