"""Measurements that are not acceptance: likelihoods, Medusa head accuracies, FFN sparsity and recall."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from sim.reference.training.acceptance import CHUNK_WINDOWS, Model, mean_and_se
from sim.reference.training.extras import Medusa
from sim.reference.training.nets import Llama
from sim.reference.training.quantise import low_rank, round_to_nearest

TOP = 10
CANDIDATE_RATIOS = (1.0, 1.5, 2.0, 3.0)
Row = dict[str, object]


@torch.no_grad()
def nll(model: Model, ids: Tensor) -> tuple[float, float]:
    """Mean negative log likelihood in nats a token over windows [W, T + 1], and its standard error over windows."""
    losses = [
        F.cross_entropy(model(chunk[:, :-1]).transpose(1, 2), chunk[:, 1:], reduction="none")
        for chunk in ids.split(CHUNK_WINDOWS)
    ]
    return mean_and_se(torch.cat(losses).double().numpy())


@torch.no_grad()
def head_accuracies(primary: Llama, heads: Medusa, ids: Tensor, first: int) -> Row:
    """Share of tokens found among each head's 1..10 best, and of runs of heads whose best is right.

    States of tokens `first - 1`.. of ids [W, T]; head k (from 0) is right about token t + 2 + k.
    """
    last = ids.shape[1] - len(heads.heads) - 1
    h = torch.cat([primary.model.norm(primary.states(chunk)[-1]) for chunk in ids.split(CHUNK_WINDOWS)])
    h = h[:, first - 1 : last]
    hits = torch.stack([_hits(logits, ids, first + 1 + k, last + 2 + k) for k, logits in enumerate(heads(h, primary))])
    top1_run = torch.cumprod(hits[..., 0], dim=0)
    return {
        "tokens": hits[0, ..., 0].numel(),
        "top_1_to_10": [[round(v, 4) for v in head.tolist()] for head in hits.cumsum(-1).mean(dim=(1, 2))],
        "chain_survival": [round(v, 4) for v in top1_run.mean(dim=(1, 2)).tolist()],
    }


def _hits(logits: Tensor, ids: Tensor, begin: int, end: int) -> Tensor:
    """[W, N, 10]: 1 where the r-th best token is the one that came."""
    return (logits.topk(TOP, dim=-1).indices == ids[:, begin:end, None]).float()


@torch.no_grad()
def ffn_inputs(net: Llama, ids: Tensor, topk: int | None) -> list[Tensor]:
    """What each FFN reads on windows [W, T], per layer [W, T, d]."""
    seen: list[Tensor] = []
    hooks = [layer.mlp.register_forward_pre_hook(lambda _m, args: seen.append(args[0])) for layer in net.model.layers]
    net(ids, topk=topk)
    for hook in hooks:
        hook.remove()
    return seen


def sparsity(net: Llama, ids: Tensor) -> list[Row]:
    """Per layer of the dense model: non-zero share and the shares of neurons that hold 90 % and 99 % of the energy."""
    rows: list[Row] = []
    for i, x in enumerate(ffn_inputs(net, ids, None)):
        acts = net.model.layers[i].mlp.activations(x)
        energy = acts.square().sort(dim=-1, descending=True).values.cumsum(-1)
        energy = energy / energy[..., -1:].clamp(min=1e-12)
        shares = {f"neurons_for_{p}_percent_energy": share((energy < p / 100).float()) for p in (90, 99)}
        rows.append({"layer": i, "nonzero": share((acts > 0).float()), **shares})
    return rows


def share(mask: Tensor) -> float:
    """Mean of a 0/1 tensor, rounded for the record."""
    return round(float(mask.mean()), 4)


def neighbour_overlap(net: Llama, ids: Tensor, k: int) -> list[Row]:
    """Per layer at top-k: share of a token's active set that the token before had; union over 2, 4, 8 tokens / k."""
    rows: list[Row] = []
    for i, x in enumerate(ffn_inputs(net, ids, k)):
        active = top_mask(net.model.layers[i].mlp.activations(x), k)
        previous = (active[:, 1:] & active[:, :-1]).float().sum(-1) / active[:, 1:].float().sum(-1).clamp(min=1)
        unions = {str(n): round(float(active.unfold(1, n, n).any(-1).float().sum(-1).mean()) / k, 3) for n in (2, 4, 8)}
        rows.append({"layer": i, "k": k, "overlap_with_previous": share(previous), "union_over_k": unions})
    return rows


def top_mask(acts: Tensor, k: int) -> Tensor:
    """[..., f] -> the k largest among the positive activations (fewer where fewer are positive)."""
    chosen = torch.zeros_like(acts, dtype=torch.bool).scatter_(-1, acts.topk(k, dim=-1).indices, True)
    return chosen & (acts > 0)


@torch.no_grad()
def recall_rows(net: Llama, ids: Tensor, fit_ids: Tensor, k: int) -> list[Row]:
    """Recall of the true top-k by the k' best of approximate scores; data-aware copies are fitted on `fit_ids`."""
    rows: list[Row] = []
    measured, fitted = ffn_inputs(net, ids, k), ffn_inputs(net, fit_ids, k)
    for i, (x, x_fit) in enumerate(zip(measured, fitted, strict=True)):
        weight = net.model.layers[i].mlp.up_proj.weight
        truth = top_mask(F.relu(x @ weight.T), k)
        for name, approximate in estimators(x_fit.flatten(0, 1)).items():
            scores = x @ approximate(weight).T
            recalls = {str(r): recall(truth, scores, int(r * k)) for r in CANDIDATE_RATIOS}
            rows.append({"layer": i, "k": k, "estimate": name, "tokens": truth[..., 0].numel(), "recall": recalls})
    return rows


def estimators(inputs: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """Name -> how the approximate copy of the first matrix is made."""
    out: dict[str, Callable[[Tensor], Tensor]] = {
        f"int{bits}_g32": partial(round_to_nearest, bits=bits) for bits in (8, 4, 3, 2)
    }
    for rank in (8, 16, 32, 64):
        out[f"svd_{rank}"] = partial(low_rank, rank=rank)
        out[f"svd_{rank}_data_aware"] = partial(low_rank, rank=rank, inputs=inputs)
    return out


def recall(truth: Tensor, scores: Tensor, candidates: int) -> float:
    """Share of the true active neurons among the best `candidates` scores, mean over tokens."""
    chosen = torch.zeros_like(truth).scatter_(-1, scores.topk(candidates, dim=-1).indices, True)
    found = (truth & chosen).float().sum(-1) / truth.float().sum(-1).clamp(min=1)
    return share(found)
