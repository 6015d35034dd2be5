"""Tokens of a round, of every policy: what rounds on text A say of rounds on text B, both really decoded.

A twin decodes prompts of held-out text A; the simulator's policy takes what was kept there as its acceptance and says
how many tokens a round gives. The same twin on disjoint text B is the truth. The interval is that of both measurements
at 99 % (bootstrap over texts): of thirteen rows at 95 % one would leave it every other time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.policies.input_copy import InputCopy
from sim.policies.load_adaptive import LoadAdaptive
from sim.reference.acceptance import tokens_per_round
from sim.reference.decoding import Generation, decode
from sim.reference.packed_matrix import Rule
from sim.reference.quantized import rounded_weights
from sim.reference.replay import bootstrap_sums
from sim.reference.sampling import Sampler, stream
from sim.reference.transformer import Transformer
from sim.reference.twins import (
    adaptive,
    autoregressive,
    bigram,
    bild,
    blockwise,
    input_copy,
    load_adaptive,
    ngram,
    retrieval,
    speculative,
    tandem,
    tree,
)
from sim.reference.variants import early_exit, matformer
from sim.validation.equivalents import Runs, equivalent
from sim.validation.policies import BUSHY, model, secondary
from sim.validation.row import Row
from sim.validation.texts import held_out

Z = 2.576
COPIED = 3  # times as many answers for input_copy: a few that lose the place for long decide the mean
EDITED = 0.06  # share of the tokens of a text that an edit changes, for input_copy


@dataclass(frozen=True)
class Forecast:
    """A twin on trained models. ``longest``: drafts that a round may keep; rounds too near the end are left out."""

    name: str
    about: str
    twin: Any
    target: Transformer
    longest: int
    greedy: bool = False

    @property
    def sampler(self) -> Sampler:
        """Greedy, or temperature 1."""
        return Sampler(0) if self.greedy else Sampler()


def compare(prompts: int = 32, tokens: int = 96, seed: int = 0) -> list[Row]:
    """One row a forecast; the threshold is the interval of both measurements."""
    rows = [_row(one, prompts, tokens, seed) for one in forecasts()]
    return [*rows, _by_load(prompts, tokens, seed), _copies(COPIED * prompts, tokens)]


def forecasts() -> Iterator[Forecast]:
    """Policies whose round is one number; drafts that are variants of their target among them."""
    primary, drafter, nested = (model(name) for name in ("primary", "drafter", "matformer"))
    ruled = adaptive.Twin(drafter, 6, 0.15, "entropy")
    yield Forecast("adaptive", "primary <- drafter, entropy, longest 6", ruled, primary, 6)
    yield Forecast("bigram", "primary, gamma 3", bigram.Twin(3), primary, 3)
    yield Forecast("bild", "primary <- drafter, gamma 4", bild.Twin(drafter, 4, 0.2, 3.0), primary, 4, True)
    yield Forecast("blockwise", "primary, 4 trained heads", blockwise.Twin(4), primary, 3, True)
    yield Forecast("ngram", "primary, copies of 4", ngram.Twin(4, whole=True), primary, 4, True)
    yield Forecast("retrieval", "primary, 32 nodes of its training text", retrieval.Twin(32, 5), primary, 5, True)
    yield Forecast("tandem", "primary <- secondary, gamma 4", tandem.Twin(secondary(), 4), primary, 4)
    yield Forecast("tree", "primary, Medusa's trained heads, 9 nodes", tree.Twin(BUSHY), primary, 3)
    shared = speculative.Twin(matformer.twin(nested, "S"), 3, shared=True)
    yield Forecast("matformer", "S drafts on its XL's cache, gamma 3", shared, nested, 3)
    leaving = speculative.Twin(early_exit.twin(primary, 3), 2, shared=True)
    yield Forecast("early_exit", "3 of primary's layers draft on its cache", leaving, primary, 2)
    packed = speculative.Twin(rounded_weights(primary, Rule(4, 128, zero_point=True)), 4)
    yield Forecast("quantization", "an int4 copy drafts, gamma 4", packed, primary, 4)


def _runs(one: Forecast, part: str, prompts: int, tokens: int, seed: int) -> list[Generation]:
    return decode(one.twin, one.target, held_out(part, prompts), tokens, sampler=one.sampler, seed=seed)


def _row(one: Forecast, prompts: int, tokens: int, seed: int) -> Row:
    first, second = (_runs(one, part, prompts, tokens, seed + i) for i, part in enumerate("ab"))
    policy: Any = equivalent(_policy_of(one), one.twin, first)
    known, seen = (tokens_per_round(runs, one.longest, seed) for runs in (first, second))
    half = Z * float(np.hypot(known.sd, seen.sd))
    return row(one.name, f"tokens a round, {one.about}", policy.expected_tokens, seen.mean, half)


def row(name: str, about: str, simulated: float, measured: float, half: float) -> Row:
    """A line of the table for a prediction that may be off by ``half``."""
    return Row("tokens", f"{name}: {about}", simulated, measured, simulated / measured - 1, half / measured)


def _policy_of(one: Forecast) -> str:
    return "speculative" if isinstance(one.twin, speculative.Twin) else one.name


def _by_load(prompts: int, tokens: int, seed: int) -> Row:
    """Texts of different length in one batch, so that tiers change: rounds of each gamma, weighted as they occurred."""
    twin = load_adaptive.Twin(model("drafter"), ((1, 4), (prompts // 2, 2)))
    target, limits = model("primary"), [tokens * (1 + i % 2) // 2 for i in range(prompts)]
    longest = decode(speculative.Twin(twin.draft, 4), target, held_out("a", prompts), tokens, seed=seed)
    runs = decode(twin, target, held_out("b", prompts), limits, seed=seed + 1)
    policy: Any = equivalent("load_adaptive", twin, longest)
    assert isinstance(policy, LoadAdaptive)
    gains = {gamma: policy.loaded(batch).expected_tokens for batch, gamma in twin.tiers}
    sums = np.array([_sums(g, gains) for g in runs])
    rounds, kept, wanted = sums.sum(axis=0)
    a, b = tokens_per_round(longest, 4, seed), bootstrap_sums(sums, 1000, seed)
    half = Z * float(np.hypot(a.sd, (b[:, 1] / b[:, 0]).std(ddof=1)))
    about = "tokens a round, primary <- drafter, gamma 2 and 4"
    return row("load_adaptive", about, wanted / rounds, kept / rounds, half)


def _sums(run: Generation, gains: dict[int, float]) -> tuple[int, int, float]:
    """Rounds but the last one, their tokens, and the tokens that the policy expects of rounds of their gamma."""
    whole = [(len(r.drafted), r.accepted + 1) for r in run.rounds[1:-1]]
    return len(whole), sum(kept for _, kept in whole), sum(gains[gamma] for gamma, _ in whole)


def _copies(prompts: int, tokens: int) -> Row:
    """Rounds of an answer that is the input with some tokens changed: aggressive decoding of edited own answers."""
    first, second = (_edited(part, prompts, tokens) for part in "ab")
    policy = equivalent("input_copy", input_copy.Twin(16, 2), first)
    assert isinstance(policy, InputCopy)
    rounds = [np.array([len(g.rounds) - 1.0 for g in runs]) for runs in (first, second)]
    spread = [bootstrap_sums(r[:, None], 1000, 0).std() / len(r) for r in rounds]
    half, seen = Z * float(np.hypot(*spread)), float(rounds[1].mean())
    return row("input_copy", "rounds of an edited answer, primary", policy.expected_rounds(tokens, tokens), seen, half)


def _edited(part: str, prompts: int, tokens: int) -> Runs:
    """Greedy answers decoded anew from copies of themselves in which some tokens are others."""
    target, texts = model("primary"), held_out(part, prompts)
    own = decode(autoregressive.Twin(), target, texts, tokens, sampler=Sampler(0))
    sources = tuple(_changed(run.tokens, part, i, target.shape.vocab) for i, run in enumerate(own))
    return decode(input_copy.Twin(16, 2, sources), target, texts, tokens, sampler=Sampler(0))


def _changed(text: Sequence[int], part: str, number: int, vocab: int) -> tuple[int, ...]:
    luck = stream(7, part, number)
    other = luck.random(len(text)) < EDITED
    other[0] = False
    return tuple(np.where(other, luck.integers(0, vocab, len(text)), np.array(text)).tolist())
