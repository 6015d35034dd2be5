"""One real decoding run with the simulator's prediction beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sim.policies import Policy
from sim.policies.autoregressive import Autoregressive
from sim.policies.speculative import Speculative
from sim.reference.checkpoint import SHIPPED
from sim.reference.cli_view import Transcript, codec_of, run
from sim.reference.transformer import Transformer
from sim.validation.counts import KINDS, Tally, added, decoded, measured, simulated
from sim.validation.models import locate, named
from sim.validation.tokens import acceptances, gained, held_out, measure_betas

OTHER_TEXTS, OTHER_TOKENS = 16, 96


@dataclass(frozen=True)
class Pair:
    """A quantity of one run, simulated and measured; ``note`` says what the simulation knew."""

    quantity: str
    simulated: float
    measured: float
    note: str = ""


@dataclass(frozen=True)
class Run:
    """What a model was asked for. ``draft`` and ``gamma`` matter to speculative decoding only."""

    model: str
    policy: str = "speculative"
    prompt: str = ""
    draft: str = "drafter"
    gamma: int = 4
    tokens: int = 48
    temperature: float = 1.0
    seed: int = 0


def run_beside(asked: Run) -> tuple[Transcript, list[Pair]]:
    """Decode for real, and predict tokens a pass, FLOPs and bytes. Raises ValueError for unknown names or options."""
    target = named(asked.model)
    options: dict[str, object] = {"new_tokens": asked.tokens, "temperature": asked.temperature}
    drafts = [named(asked.draft)] if asked.policy == "speculative" else []
    if drafts:
        options |= {"draft": drafts[0], "gamma": asked.gamma}
    transcript = run(target, asked.policy, asked.prompt, options, asked.seed, codec_of(locate(asked.model)))
    read = added(*(measured(model.meter) for model in (target, *drafts)))
    pairs = [*_counts(transcript, target, drafts, asked, read)]
    if len(transcript.generation.rounds) > 1:
        pairs.insert(0, _tokens_a_pass(transcript, target, drafts, asked))
    return transcript, pairs


def _policy(asked: Run, acceptance: object = 1.0) -> Policy:
    if asked.policy == "autoregressive":
        return Autoregressive()
    if asked.policy == "speculative":
        return Speculative(asked.draft, asked.gamma, acceptance)
    raise ValueError(f"policy: {asked.policy!r} has no simulated twin here; allowed: autoregressive, speculative")


def _counts(
    transcript: Transcript, target: Transformer, drafts: list[Transformer], asked: Run, read: Tally
) -> Iterator[Pair]:
    """FLOPs and memory traffic of the rounds that happened."""
    models = [target, *drafts]
    windows = tuple(model.shape.windows for model in models)
    passes = list(decoded(_policy(asked), [transcript.generation], windows))
    ours = added(
        *(
            simulated(model.shape, [work for i, work in passes if i == k], "draft." if k else "")
            for k, model in enumerate(models)
        )
    )
    names = ("GFLOP", "MB of weights read", "MB of KV read and written", "MB of activations")
    for kind, name, scale in zip(KINDS, names, (1e9, 1e6, 1e6, 1e6), strict=True):
        yield Pair(name, ours[kind].total() / scale, read[kind].total() / scale, "given the rounds that happened")


def _tokens_a_pass(transcript: Transcript, target: Transformer, drafts: list[Transformer], asked: Run) -> Pair:
    """Tokens of a decode pass: predicted from the acceptance of this pair on other text."""
    name, seen = "tokens a target pass", transcript.tokens_per_pass
    if not drafts:
        return Pair(name, 1.0, seen)
    shipped = locate(asked.model).parent == SHIPPED
    prompts = held_out("a", OTHER_TEXTS) if shipped else [np.array(transcript.generation.prompt)]
    count, where = (OTHER_TOKENS, "held-out text A") if shipped else (asked.tokens, "the target's own other answer")
    betas = measure_betas(target, drafts[0], prompts, max(count, asked.gamma + 3), asked.temperature, asked.seed + 1)
    policy = _policy(asked, acceptances(betas, asked.gamma)["survival"])
    assert isinstance(policy, Speculative)
    guess = gained(policy, max(1, transcript.tokens - 1), seed=asked.seed)
    note = f"acceptance on {where}; 95 % of runs this long: {guess.low:.2f} to {guess.high:.2f}"
    return Pair(name, guess.mean, seen, note)
