"""One real decoding run, by any twin, with the simulator's prediction beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sim.policies import Policy
from sim.policies.speculative import Speculative
from sim.reference import twins
from sim.reference.checkpoint import SHIPPED
from sim.reference.cli_view import Transcript, codec_of, run
from sim.reference.decoding import Generation, Tokens, decode
from sim.reference.sampling import Sampler
from sim.reference.transformer import Transformer
from sim.reference.twins import speculative
from sim.reference.twins._secondary import load_secondary
from sim.validation.cases import Case, Noting
from sim.validation.counts import KINDS, added, measured
from sim.validation.equivalents import EQUIVALENTS, equivalent
from sim.validation.models import locate, named
from sim.validation.texts import held_out
from sim.validation.tokens import acceptances, gained, measure_betas

OTHER_TEXTS, OTHER_TOKENS = 16, 96
GREEDY_ONLY = ("bild", "blockwise")
SECONDARIES = ("tandem", "plan")
RUN_ONLY = ("draft", "gamma")
NAMES = ("GFLOP", "MB of weights read", "MB of KV read and written", "MB of activations")


@dataclass(frozen=True)
class Pair:
    """A quantity of one run, simulated and measured; ``note`` says what the simulation knew."""

    quantity: str
    simulated: float
    measured: float
    note: str = ""


@dataclass(frozen=True)
class Run:
    """What a model was asked for. ``draft``, ``gamma`` and ``options`` are the twin's, its own where not given.

    ``temperature`` None: 1, and 0 for policies that only decode greedily.
    """

    model: str
    policy: str = "speculative"
    prompt: str = ""
    draft: str | None = None
    gamma: int | None = None
    tokens: int = 48
    temperature: float | None = None
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def heat(self) -> float:
        """The temperature that is meant."""
        return self.temperature if self.temperature is not None else 0.0 if self.policy in GREEDY_ONLY else 1.0

    @property
    def said(self) -> dict[str, Any]:
        """Options of the twin as they were given; lists as the tuples that twins take."""
        given = {key: getattr(self, key) for key in RUN_ONLY if getattr(self, key) is not None}
        return {**given, **{key: _tuples(value) for key, value in self.options.items()}}


def run_beside(asked: Run) -> tuple[Transcript, list[Pair]]:
    """Decode for real, and predict tokens a pass, FLOPs and bytes. Raises ValueError for unknown names or options."""
    if asked.policy not in EQUIVALENTS:
        raise ValueError(f"policy: {asked.policy[:80]!r} has no twin; allowed: {', '.join(twins.names())}")
    target = named(asked.model)
    case = _case(asked, target)
    for model in case.models:
        model.meter.reset()
    noting = Noting(case.twin)
    transcript = run(
        target, asked.policy, asked.prompt, {"new_tokens": asked.tokens, "temperature": asked.heat}, asked.seed,
        codec_of(locate(asked.model)), noting,
    )  # fmt: skip
    ours = case.counts([transcript.generation], noting.futures([transcript.generation]))
    read = added(*(measured(model.meter) for model in case.models))
    totals = [(ours[kind].total(), read[kind].total()) for kind in KINDS]
    pairs = [
        Pair(name, a / scale, b / scale, "given the rounds that happened")
        for (a, b), name, scale in zip(totals, NAMES, (1e9, 1e6, 1e6, 1e6), strict=True)
    ]
    if len(transcript.generation.rounds) > 1:
        pairs.insert(0, _tokens_a_pass(transcript, case, asked))
    return transcript, pairs


def _case(asked: Run, target: Transformer) -> Case:
    """The twin with its models loaded. Raises ValueError."""
    twin = twins.make(asked.policy, asked.said)
    key = "drafter" if asked.policy == "tree" else "draft"
    said = getattr(twin, key, None)
    if said is None or said == "medusa":
        return Case(asked.policy, asked.model, twin, target)
    draft = said if isinstance(said, Transformer) else _draft(asked.policy, str(said))
    return Case(asked.policy, asked.model, twins.make(asked.policy, {**asked.said, key: draft}), target, draft)


def _draft(policy: str, name: str) -> Transformer:
    return load_secondary(locate(name)) if policy in SECONDARIES else named(name)


def _tokens_a_pass(transcript: Transcript, case: Case, asked: Run) -> Pair:
    """Tokens of a decode pass: predicted from what this twin kept on other text."""
    shipped = locate(asked.model).parent == SHIPPED
    prompts = held_out("a", OTHER_TEXTS) if shipped else [np.array(transcript.generation.prompt)]
    policy = _learned(case, asked, prompts, OTHER_TOKENS if shipped else max(asked.tokens, 32))
    where = "held-out text A" if shipped else "the target's own other answer"
    guess = gained(policy, max(1, transcript.tokens - 1), seed=asked.seed)
    note = f"acceptance on {where}; 95 % of runs this long: {guess.low:.2f} to {guess.high:.2f}"
    return Pair("tokens a target pass", guess.mean, transcript.tokens_per_pass, note)


def _learned(case: Case, asked: Run, prompts: Sequence[Tokens], tokens: int) -> Policy:
    """The policy with acceptance measured on other texts."""
    twin, sampler = case.twin, Sampler(asked.heat)
    if case.name == "speculative" and not twin.shared and twin.lenience == 1:
        assert case.draft is not None
        betas = measure_betas(case.target, case.draft, prompts, max(tokens, twin.gamma + 3), asked.heat, asked.seed + 1)
        return Speculative("draft", twin.gamma, acceptances(betas, twin.gamma)["survival"])
    if case.name == "load_adaptive":  # this run is one sequence
        longest = max(gamma for _, gamma in twin.tiers)
        twin = speculative.Twin(twin.draft, longest)
    runs = decode(twin, case.target, prompts, tokens, sampler=sampler, seed=asked.seed + 1)
    policy = equivalent(case.name, case.twin, _drafted(runs))
    return policy.loaded(1) if case.name == "load_adaptive" else policy  # type: ignore[attr-defined]


def _drafted(runs: Sequence[Generation]) -> Sequence[Generation]:
    """No runs where nothing was ever drafted, so that the policy keeps its default."""
    return runs if any(r.drafted for g in runs for r in g.rounds) else ()


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
