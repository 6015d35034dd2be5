"""Tokens: what the simulator's policies gain in a round, given acceptance measured on one text, against real decoding.

The texts are disjoint: prompts of held-out text A are continued by the target alone and replayed, prompts of B are
decoded speculatively. The interval bounds what B should measure given A (block bootstrap of both).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sim.policies.speculative import Speculative
from sim.reference.acceptance import betas_of, tokens_per_round
from sim.reference.decoding import Tokens, decode
from sim.reference.replay import mean_beta, survival_interval
from sim.reference.sampling import Floats, Sampler
from sim.reference.transformer import Transformer
from sim.reference.twins import autoregressive, speculative
from sim.serving.luck import Luck
from sim.validation.models import named
from sim.validation.row import Row
from sim.validation.texts import held_out

__all__ = ["Gained", "Plan", "acceptances", "compare", "gained", "held_out", "measure_betas", "write_betas"]

FUTURES = 2000


def measure_betas(
    target: Transformer, draft: Transformer, prompts: Sequence[Tokens], tokens: int, temperature: float, seed: int
) -> list[Floats]:
    """Acceptance probabilities along texts of ``tokens`` tokens that the target alone writes after the prompts."""
    sampler = Sampler(temperature)
    texts = decode(autoregressive.Twin(), target, prompts, tokens, sampler=sampler, seed=seed)
    return betas_of(texts, target, draft, sampler)


def write_betas(betas: Sequence[Floats], path: Path) -> None:
    """Write a file for ``acceptance: {kind: empirical, betas: FILE}`` (workloads/acceptance), whole or not at all."""
    beside = path.with_name(path.name + ".tmp")
    with beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["text", "beta"])
        for number, text in enumerate(betas):
            writer.writerows([number, f"{beta:.4f}".rstrip("0").rstrip(".")] for beta in text)
    beside.replace(path)


@dataclass(frozen=True)
class Gained:
    """Tokens a round of the simulator's policy: the mean over many sequences, and where 95 % of sequences lie."""

    mean: float
    low: float
    high: float


def gained(policy: Any, remaining: int, futures: int = FUTURES, seed: int = 0) -> Gained:
    """Draw ``futures`` sequences of ``remaining`` tokens as a run of the simulator would.

    The mean counts rounds that could keep every draft, as :func:`sim.reference.acceptance.tokens_per_round` does; the
    range is that of whole sequences, output over rounds.
    """
    luck, sums, ratios = Luck(seed), np.zeros(2), []
    for request in range(futures):
        future = policy.future(luck.of(request), 0, remaining)
        whole = future.offsets + policy.tokens_per_round <= remaining
        sums += whole.sum(), future.gains[whole].sum()
        ratios.append(remaining / len(future.gains))
    low, high = np.quantile(ratios, [0.025, 0.975])
    mean = sums[1] / sums[0] if sums[0] else float(np.mean(ratios))
    return Gained(float(mean), float(low), float(high))


def acceptances(betas: Sequence[Floats], gamma: int) -> Mapping[str, Any]:
    """The same measurement as the simulator's kinds of acceptance: one alpha, by position, token by token."""
    vector = survival_interval(betas, gamma, resamples=1).vector
    return {
        "iid": mean_beta(betas),
        "survival": {"kind": "survival", "vector": vector.tolist()},
        "empirical": {"kind": "empirical", "betas": np.concatenate(betas).tolist()},
    }


@dataclass(frozen=True)
class Plan:
    """A comparison of one pair: how much text of each kind, and which gammas and kinds of acceptance."""

    target: str = "primary"
    draft: str = "drafter"
    prompts: int = 32
    tokens: int = 96
    temperature: float = 1.0
    gammas: tuple[int, ...] = (1, 4)
    kinds: tuple[str, ...] = ("survival", "empirical")
    seed: int = 0


def compare(plan: Plan | None = None) -> list[Row]:
    """One row a gamma and kind: tokens a round simulated from text A and measured on text B, threshold the interval."""
    plan = plan or Plan()
    target, draft = named(plan.target), named(plan.draft)
    first, second = held_out("a", plan.prompts), held_out("b", plan.prompts)
    betas = measure_betas(target, draft, first, plan.tokens, plan.temperature, plan.seed)
    return [row for gamma in plan.gammas for row in _rows(plan, gamma, betas, target, draft, second)]


def _rows(
    plan: Plan, gamma: int, betas: Sequence[Floats], target: Transformer, draft: Transformer, prompts: Sequence[Tokens]
) -> Iterator[Row]:
    sampler = Sampler(plan.temperature)
    runs = decode(speculative.Twin(draft, gamma), target, prompts, plan.tokens, sampler=sampler, seed=plan.seed + 1)
    measured = tokens_per_round(runs, gamma, plan.seed)
    interval = survival_interval(betas, gamma, seed=plan.seed)
    width = interval.tokens_per_round_high - interval.tokens_per_round_low
    half = float(np.hypot(width, 2 * 1.96 * measured.sd) / 2)
    for kind in plan.kinds:
        policy = Speculative(plan.draft, gamma, acceptances(betas, gamma)[kind])
        mean = gained(policy, plan.tokens - 1, seed=plan.seed).mean
        what = f"speculative: tokens a round, {plan.target} <- {plan.draft}, gamma {gamma}, {kind} acceptance"
        yield Row("tokens", what, mean, measured.mean, mean / measured.mean - 1, half / measured.mean)
