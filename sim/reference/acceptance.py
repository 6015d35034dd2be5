"""Acceptance of a draft by a target, measured on one text and used to predict another.

The first text is sampled by the target alone and replayed (:mod:`sim.reference.replay`); on the second, disjoint
prompts, the speculative sampler itself is run. The table says what the i.i.d. formula and the survival vector predict
of the tokens per round that were really gained.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np

from sim.reference.checkpoint import SHIPPED, load
from sim.reference.decoding import Generation, Tokens, decode
from sim.reference.replay import (
    acceptance_probabilities,
    bootstrap_sums,
    iid_survival,
    mean_beta,
    survival_interval,
    survival_vector,
)
from sim.reference.sampling import Floats, Sampler
from sim.reference.tokenizer import read_tokenizer
from sim.reference.training.corpus import split_corpus
from sim.reference.transformer import Transformer
from sim.reference.twins import autoregressive, speculative


def betas_of(
    generations: Sequence[Generation], target: Transformer, draft: Transformer, sampler: Sampler
) -> list[Floats]:
    """Acceptance probability of each token after the first of texts that ``target`` sampled with ``sampler``.

    The first output token belongs to the prefill, which drafts nothing: rounds start at the second.
    """
    out = []
    for g in generations:
        text, first = np.array([*g.prompt, *g.tokens]), len(g.prompt) + 1
        p, q = (teacher_forced(model, text[:-1], sampler)[first - 1 :] for model in (target, draft))
        out.append(acceptance_probabilities(p, q, text[first:]))
    return out


def teacher_forced(model: Transformer, text: Tokens, sampler: Sampler) -> Floats:
    """What ``model`` would sample from after each token of a text, [n] -> [n, V]."""
    return sampler.probabilities(model.forward([text], model.new_cache(1), rows="all"))


@dataclass(frozen=True)
class Forecast:
    """Tokens per round: measured by the sampler on the second prompts, predicted from the first.

    ``low`` and ``high`` bound, at 95 %, what the sampler should measure given the first text: both texts' block
    bootstrap, widths added in quadrature. ``truncated`` takes the survival vector at the largest gamma and cuts it,
    as a simulator does that draws once for all gammas. ``all_kept*``: share of rounds that keep every draft, measured
    and predicted: the tail, where i.i.d. acceptance is furthest off.
    """

    target: str
    draft: str
    temperature: float
    gamma: int
    alpha: float
    measured: float
    iid: float
    survival: float
    low: float
    high: float
    truncated: float
    all_kept: float
    all_kept_iid: float
    all_kept_survival: float
    rounds: int

    @property
    def iid_error(self) -> float:
        """Relative error of the i.i.d. formula."""
        return self.iid / self.measured - 1

    @property
    def survival_error(self) -> float:
        """Relative error of the survival vector's prediction."""
        return self.survival / self.measured - 1

    @property
    def holds(self) -> bool:
        """Whether the measured value lies in the stated interval."""
        return self.low <= self.measured <= self.high


def forecasts(
    target: Transformer,
    draft: Transformer,
    first: Sequence[Tokens],
    second: Sequence[Tokens],
    *,
    gammas: Sequence[int] = (1, 2, 4, 8),
    temperature: float = 1.0,
    new_tokens: int = 128,
    seed: int = 0,
    names: tuple[str, str] = ("target", "draft"),
) -> list[Forecast]:
    """Measure acceptance on text that follows the ``first`` prompts; run the sampler on the ``second``; compare.

    One row a gamma. ``names`` of target and draft go into the table.
    """
    sampler = Sampler(temperature)
    texts = decode(autoregressive.Twin(), target, first, new_tokens, sampler=sampler, seed=seed)
    betas = betas_of(texts, target, draft, sampler)
    longest = survival_vector(betas, max(gammas))
    alpha = mean_beta(betas)
    rows = []
    for gamma in gammas:
        s, iid = survival_interval(betas, gamma, seed=seed), iid_survival(alpha, gamma)
        twin = speculative.Twin(draft, gamma)
        runs = decode(twin, target, second, new_tokens, sampler=sampler, seed=seed + 1)
        m = tokens_per_round(runs, gamma, seed)
        half = float(np.hypot(s.tokens_per_round_high - s.tokens_per_round_low, 2 * 1.96 * m.sd) / 2)
        row = Forecast(
            target=names[0],
            draft=names[1],
            temperature=temperature,
            gamma=gamma,
            alpha=alpha,
            measured=m.mean,
            iid=1 + float(iid.sum()),
            survival=s.tokens_per_round,
            low=s.tokens_per_round - half,
            high=s.tokens_per_round + half,
            truncated=1 + float(longest[:gamma].sum()),
            all_kept=m.all_kept,
            all_kept_iid=float(iid[-1]),
            all_kept_survival=float(s.vector[-1]),
            rounds=m.rounds,
        )
        rows.append(row)
    return rows


@dataclass(frozen=True)
class Measured:
    """Of a set of runs: tokens per round with its bootstrap standard deviation, share of rounds that kept all."""

    mean: float
    sd: float
    all_kept: float
    rounds: int


def tokens_per_round(runs: Sequence[Generation], gamma: int, seed: int = 0) -> Measured:
    """Over all rounds that could keep every draft; the standard deviation is a bootstrap over runs.

    Rounds that start within gamma tokens of the limit are left out, however they went: taking only those that happened
    to end in time would favour short ones.
    """
    sums = np.zeros((len(runs), 3))
    for i, run in enumerate(runs):
        starts = np.cumsum([len(r.emitted) for r in run.rounds])[:-1]
        whole = [r for at, r in zip(starts, run.rounds[1:], strict=True) if at + gamma + 1 <= len(run.tokens)]
        sums[i] = len(whole), sum(len(r.emitted) for r in whole), sum(r.accepted == gamma for r in whole)
    rounds, tokens, kept = sums.sum(axis=0)
    if not rounds:
        raise ValueError(f"acceptance: no run is long enough for a round of gamma = {gamma} drafts")
    draws = bootstrap_sums(sums, 1000, seed)
    sd = float((draws[:, 1] / np.maximum(draws[:, 0], 1)).std(ddof=1))
    return Measured(float(tokens / rounds), sd, float(kept / rounds), int(rounds))


def kept_survival(runs: Sequence[Generation], gamma: int) -> Floats:
    """P(at least k drafts kept | gamma were drafted), k = 1..gamma, counted from runs: for drafts without betas of
    their own, such as copies that stay on one source for a whole round. Raises ValueError without such a round.
    """
    kept = [r.accepted for run in runs for r in run.rounds if len(r.drafted) == gamma and r.own]
    if not kept:
        raise ValueError(f"acceptance: no round drafted gamma = {gamma} tokens")
    return np.asarray((np.array(kept)[:, None] >= np.arange(1, gamma + 1)).mean(axis=0))


def judged_alpha(runs: Sequence[Generation], gamma: int) -> float:
    """Accepted over judged drafts of the same rounds: what an i.i.d. model would be given as its alpha."""
    survival = kept_survival(runs, gamma)
    return float(survival.sum() / (1 + survival[:-1].sum()))  # draft k is judged if the k - 1 before it were kept


def prompts_of(ids: Sequence[int], count: int, tokens: int) -> list[Tokens]:
    """``count`` prompts spread evenly over a text."""
    starts = np.linspace(0, len(ids) - tokens, count).astype(int)
    return [np.asarray(ids[s : s + tokens], dtype=np.int64) for s in starts]


def forecast_family(folder: Path = SHIPPED, prompts: int = 64) -> list[Forecast]:
    """The recorded table ``family/forecasts.csv``: three pairs, temperatures 1 and 0, gamma 1 to 8, prompts of 32
    tokens from held-out text A (measured acceptance) and B (measured rounds), 128 tokens each; 75 CPU seconds.
    """
    words, split = read_tokenizer(SHIPPED / "tokenizer.json"), split_corpus()
    texts = (words.encode("".join(part)) for part in (split.held_out_a, split.held_out_b))
    first, second = (prompts_of(ids, prompts, 32) for ids in texts)
    primary, nested = load(folder / "primary"), load(folder / "matformer")
    pairs = {
        ("primary", "drafter"): (primary, load(folder / "drafter")),
        ("primary", "drafter-distilled"): (primary, load(folder / "drafter-distilled")),
        ("matformer", "matformer@64"): (nested, nested.sliced(64)),
    }
    return [
        row
        for names, (target, draft) in pairs.items()
        for temperature in (1.0, 0.0)
        for row in forecasts(target, draft, first, second, temperature=temperature, names=names)
    ]


def write_forecasts(rows: Iterable[Forecast], path: Path) -> None:
    """Write the table as CSV, errors beside the values, whole or not at all."""
    draft = path.with_name(path.name + ".tmp")
    with draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*(f.name for f in fields(Forecast)), "iid_error", "survival_error", "holds"])
        for r in rows:
            values = [*astuple(r), r.iid_error, r.survival_error, int(r.holds)]
            writer.writerow([f"{v:.5g}" if isinstance(v, float) else v for v in values])
    draft.replace(path)
