"""Drafts that stop of themselves, really run: lossless, counted exactly, and predicted from another text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sim.analytic.model import ModelShape
from sim.policies.adaptive import Adaptive
from sim.reference.acceptance import teacher_forced
from sim.reference.decoding import Generation, decode
from sim.reference.replay import acceptance_probabilities
from sim.reference.sampling import Floats, Sampler, softmax, stream
from sim.reference.transformer import Transformer
from sim.reference.twins import adaptive, autoregressive
from sim.validation.counts import added, decoded, measured, mismatches, simulated
from sim.validation.distribution import PROMPT, chi_square, continuations, critical_share, tiny_pair
from sim.validation.models import named
from sim.validation.stand_in import dense, stand_in
from sim.validation.tokens import held_out

LAST = pytest.mark.parametrize("last", ["kept", "dropped"])
SHAPES = {
    "full": (dense(16, 2, 2, 1, 32, 12), dense(8, 1, 2, 2, 16, 12)),
    "window": (dense(16, 2, 4, 2, 24, 12, window=9), dense(8, 2, 2, 1, 16, 12, window=5)),
}


@LAST
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_counts_are_exact(shapes: tuple[ModelShape, ModelShape], last: str) -> None:
    """FLOPs and bytes of every op of a ragged batch, both models: the policy's passes and the meters are equal."""
    target, draft = (stand_in(shape, 3 + i, sharpness=3.0) for i, shape in enumerate(shapes))
    prompts = [stream(s, "adaptive").integers(0, 12, n) for s, n in enumerate((9, 4, 17))]
    target.meter.reset()
    draft.meter.reset()
    runs = decode(adaptive.Twin(draft, 4, 0.35, last=last), target, prompts, (30, 8, 41), seed=1)
    lengths = {len(r.drafted) for g in runs for r in g.rounds[1:]}
    assert len(lengths) >= 3 and (0 in lengths) == (last == "dropped")
    policy = Adaptive("d", 4, last=last)
    works: tuple[list[Any], list[Any]] = ([], [])
    for model, work in decoded(policy, runs, (target.shape.windows, draft.shape.windows)):
        if work.tokens:
            works[model].append(work)
    ours = added(simulated(target.shape, works[0]), simulated(draft.shape, works[1], "draft."))
    assert mismatches(ours, added(measured(target.meter), measured(draft.meter))) == []


@LAST
def test_greedy_output_is_the_targets_own(last: str) -> None:
    """Not one of 40 random prompts ends differently, with drafts of many lengths kept."""
    target, draft = (stand_in(dense(16, 2, 2, 1, 32, 24), seed, sharpness=4.0) for seed in (21, 22))
    prompts = [stream(s, "greedy").integers(0, 24, 8) for s in range(40)]
    twins = (autoregressive.Twin(), adaptive.Twin(draft, 5, 0.3, last=last))
    plain, fast = (decode(t, target, prompts, 24, sampler=Sampler(0)) for t in twins)
    assert [g.tokens for g in plain] == [g.tokens for g in fast]
    assert sum(r.accepted for g in fast for r in g.rounds) > 40


def excess(twin: adaptive.Twin, draws: int = 4000) -> tuple[float, float]:
    """(chi-square over its degrees of freedom less 1, what is still likely) of sampled runs."""
    target, _ = tiny_pair()
    runs = decode(twin, target, [PROMPT] * draws, 4, seed=5)
    assert len({len(r.drafted) for g in runs for r in g.rounds[1:]}) >= 3
    digits = np.array([run.tokens for run in runs]) @ 4 ** np.arange(3, -1, -1)
    statistic, freedom = chi_square(np.bincount(digits, minlength=256), continuations(target, PROMPT, 4))
    return statistic / freedom - 1, critical_share(freedom)


@LAST
@pytest.mark.parametrize(("rule", "threshold"), [("confidence", 0.45), ("entropy", 0.5)])
def test_sampled_output_has_the_targets_distribution(rule: str, threshold: float, last: str) -> None:
    """All 256 continuations of four tokens, by chi-square, whichever rule stops the draft."""
    got, likely = excess(adaptive.Twin(tiny_pair()[1], 3, threshold, rule, last))
    assert got < likely


class ByTheToken(adaptive.RuledDrafter):
    """Fault: a token is dropped because *it* was unlikely, so that what is offered is no draw from q."""

    def _draft(self, chain: list[tuple[int, Floats]]) -> Any:
        likely = [row[token] >= 0.45 for token, row in chain]
        return super()._draft(chain[: likely.index(False)] if False in likely else chain)


def test_dropping_by_the_token_drawn_is_biased_and_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chi-square sees what the docstring warns of."""
    monkeypatch.setattr(adaptive, "RuledDrafter", ByTheToken)
    got, likely = excess(adaptive.Twin(tiny_pair()[1], 3, 0.0, "confidence", "kept"))
    assert got > 3 * likely


class NoCatchUp(adaptive.RuledDrafter):
    """Fault: after full acceptance the last draft is never fed."""

    def unread(self, sequence: int, context: list[int]) -> Any:
        """Always one token."""
        return np.array(context[-1:])


def test_a_draft_that_does_not_catch_up_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counts differ as soon as one catch-up token is missing."""
    monkeypatch.setattr(adaptive, "RuledDrafter", NoCatchUp)
    with pytest.raises(AssertionError):
        test_counts_are_exact(SHAPES["full"], "kept")


@pytest.mark.parametrize("options", [{"gamma": 0}, {"threshold": 1.5}, {"rule": "luck"}, {"last": "lost"}])
def test_wrong_options_are_named(options: dict[str, Any]) -> None:
    """One line with the option and what is allowed."""
    [key] = options
    with pytest.raises(ValueError, match=rf"policy adaptive: {key} is .* allowed: [^\n]*$"):
        adaptive.Twin(**options)


# --- predictions of real decoding: measured on text A, tried on text B

GAMMA, TOKENS, TEXTS = 6, 96, 48


def along(runs: list[Generation], target: Transformer, draft: Transformer, sampler: Sampler, rule: str) -> Any:
    """(betas, what the rule sees) of the target's own texts, token by token from the second on."""
    betas, seen = [], []
    for g in runs:
        text, first = np.array([*g.prompt, *g.tokens]), len(g.prompt) + 1
        p, q = (teacher_forced(model, text[:-1], sampler)[first - 1 :] for model in (target, draft))
        soft = softmax(draft.forward([text[:-1]], draft.new_cache(1), rows="all")[first - 1 :])
        betas.append(acceptance_probabilities(p, q, text[first:]))
        seen.append(np.clip(adaptive.seen(rule, soft), 0, 1))
    return betas, seen


def gained(runs: list[Generation]) -> tuple[float, float]:
    """Tokens a round of rounds that could emit all of theirs, and the standard error by text."""
    sums = np.array([[len(w), sum(w)] for w in ([r.accepted + 1 for r in g.rounds[1:-1]] for g in runs)], dtype=float)
    ratio = sums[:, 1].sum() / sums[:, 0].sum()
    residuals = sums[:, 1] - ratio * sums[:, 0]
    return float(ratio), float(residuals.std(ddof=1) * len(runs) ** 0.5 / sums[:, 0].sum())


def forecast(betas: Any, seen: Any, threshold: float, last: str) -> float:
    """What the simulator's policy expects of texts with these acceptances and predictions."""
    spec = {"kind": "empirical", "betas": np.concatenate(betas).tolist(), "predicted": np.concatenate(seen).tolist()}
    return Adaptive("d", GAMMA, threshold, last=last, acceptance=spec).expected_tokens


@pytest.mark.slow
@LAST
@pytest.mark.parametrize(("temperature", "rule", "threshold"), [(0.0, "confidence", 0.12), (1.0, "entropy", 0.15)])
def test_tokens_a_round_of_another_text(temperature: float, rule: str, threshold: float, last: str) -> None:
    """Measured on text A by replay, decoded for real on text B: within the 99 % interval of both."""
    target, draft, sampler = named("primary"), named("drafter"), Sampler(temperature)
    texts = decode(autoregressive.Twin(), target, held_out("a", TEXTS), TOKENS, sampler=sampler, seed=0)
    betas, seen = along(texts, target, draft, sampler, rule)
    twin = adaptive.Twin(draft, GAMMA, threshold, rule, last)
    runs = decode(twin, target, held_out("b", TEXTS), TOKENS, sampler=sampler, seed=1)
    real, error = gained(runs)
    luck = stream(0, "resample")
    picks = [luck.integers(0, TEXTS, TEXTS) for _ in range(40)]
    spread = np.std([forecast([betas[i] for i in p], [seen[i] for i in p], threshold, last) for p in picks])
    expected, half = forecast(betas, seen, threshold, last), 2.58 * float(np.hypot(error, spread))
    assert abs(expected - real) < half < 0.25 * real
