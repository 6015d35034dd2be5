"""Acceptance rows of the record: every draft against its target, Tandem by its index in the block."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sim.reference.training import configs as c
from sim.reference.training.acceptance import (
    GAMMAS,
    Floats,
    Model,
    Overlap,
    compare,
    mean_and_se,
    overlap,
    replay,
    rounds_summary,
)
from sim.reference.training.bench import NEW_TOKENS, PROMPT_TOKENS, SEED, TEMPERATURES, Bench, Row, load_tandem
from sim.reference.training.extras import Tandem
from sim.reference.training.nets import Llama
from sim.reference.training.quantise import int_n

DRAFTERS = ("drafter", "drafter-distilled", "drafter-tiny")


def acceptance_rows(bench: Bench) -> list[Row]:
    """All pairs but Tandem, on both texts and on the target's own continuations of both."""
    primary, matformer = map(bench.llama, ("primary", "matformer"))
    drafts: dict[str, Model] = {n: bench.llama(n) for n in (*DRAFTERS, "ternary")}
    drafts |= {f"primary-int{b}": int_n(primary, b) for b in (8, 4)}
    nested: dict[str, Model] = {f"matformer@{w}": matformer.at_width(w) for w in c.MATFORMER_FFN[:-1]}
    return [
        *pair_rows(bench, "primary", primary, drafts),
        *pair_rows(bench, f"matformer@{c.MATFORMER_FFN[-1]}", matformer, nested),
    ]


def pair_rows(bench: Bench, target_name: str, target: Llama, drafts: dict[str, Model]) -> list[Row]:
    """Rows of one target with several drafts."""
    rows: list[Row] = []
    for text, held_out in bench.held_out.items():
        some = held_out[::2]  # half the windows: errors of 0.2 points are small enough
        for (name, t), seen in overlap(target, drafts, some, 1, TEMPERATURES).items():
            rows.append(_row(target_name, name, f"held_out_{text}", t, seen))
        for t in TEMPERATURES:
            own = bench.own_text(target, text, t)
            for (name, _), seen in overlap(target, drafts, own, PROMPT_TOKENS, (t,)).items():
                row = _row(target_name, name, f"own_{text}", t, seen)
                rows.append({**row, **rounds_summary(seen.beta, SEED)})
                bench.report(str(rows[-1]))
    return rows


def _row(target: str, draft: str, text: str, temperature: float, seen: Overlap) -> Row:
    return {"target": target, "draft": draft, "text": text, "temperature": temperature, **alpha_fields(seen)}


def alpha_fields(seen: Overlap) -> Row:
    """Mean acceptance with its standard error and the number of tokens behind it."""
    alpha, se = mean_and_se(seen.alpha)
    return {"alpha": alpha, "se": se, "tokens": seen.alpha.size}


TANDEM_GAMMA = 8


def tandem_rows(bench: Bench) -> list[Row]:
    """Acceptance of the Tandem secondary by its index in a block of 8, on the primary's own text."""
    primary, tandem = bench.llama("primary"), load_tandem(bench.family)
    rows: list[Row] = []
    for text in bench.held_out:
        for t in TEMPERATURES:
            ids = bench.own_text(primary, text, t)
            alpha, beta = tandem_overlap(primary, tandem, ids, t)
            stats = [mean_and_se(alpha[:, :, i]) for i in range(TANDEM_GAMMA)]
            rows.append(
                {
                    "target": "primary",
                    "draft": "tandem",
                    "text": f"own_{text}",
                    "temperature": t,
                    "alpha_by_index": [mean for mean, _ in stats],
                    "se_by_index": [se for _, se in stats],
                    "tokens_an_index": alpha[:, :, 0].size,
                    **tandem_rounds(beta),
                }
            )
            bench.report(str(rows[-1]))
    return rows


@torch.no_grad()
def tandem_overlap(primary: Llama, tandem: Tandem, ids: Tensor, temperature: float) -> tuple[Floats, Floats]:
    """alpha and beta [W, N, 8]: entry i is the secondary whose block began i tokens before the predicting token.

    Eight passes with shifted block bounds give every (token, index) pair once.
    """
    states = primary.states(ids)
    p_logits = primary.head(states[-1])[:, PROMPT_TOKENS - 1 : -1]
    place = torch.arange(ids.shape[1])
    shape = (len(ids), NEW_TOKENS, TANDEM_GAMMA)
    alpha, beta = torch.zeros(shape), torch.zeros(shape)
    for offset in range(TANDEM_GAMMA):
        q_logits = tandem(ids, states, (place + offset) // TANDEM_GAMMA)[:, PROMPT_TOKENS - 1 : -1]
        a, b = compare(p_logits, q_logits, ids[:, PROMPT_TOKENS:], temperature)
        index = ((place + offset) % TANDEM_GAMMA)[PROMPT_TOKENS - 1 : -1].expand(a.shape)[..., None]
        alpha.scatter_(-1, index, a[..., None])
        beta.scatter_(-1, index, b[..., None])
    return alpha.double().numpy(), beta.double().numpy()


def tandem_rounds(beta: Floats) -> Row:
    """Tokens per round where draft k of a round is predicted at block index k - 1."""
    out: dict[str, float] = {}
    survival: list[float] = []
    for gamma in GAMMAS:
        starts = beta.shape[1] - gamma + 1
        rounds = np.stack([beta[:, k : k + starts, k] for k in range(gamma)], axis=2)
        s = replay(rounds, SEED)
        out[str(gamma)] = round(1.0 + float(s.sum()), 4)
        survival = [round(float(v), 4) for v in s]
    return {"tokens_per_round": out, "survival_gamma_8": survival}
