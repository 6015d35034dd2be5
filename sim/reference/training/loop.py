"""The training loop: batches, optimiser, schedule, log. One loop for every stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sim.reference.training.configs import CONTEXT_TOKENS, Budget

WINDOWS_PER_STEP = 8
WARM_UP_STEPS = 40
DECAY_SHARE = 0.45
WEIGHT_DECAY = 0.05
LOG_EVERY_STEPS = 50

Loss = Callable[[Tensor, Tensor, int], Tensor]
Report = Callable[[str], None]


@dataclass
class StageLog:
    """What one stage did: mean training loss of every 50 steps (nats a token), CPU seconds of this process."""

    stage: str
    steps: int
    tokens: int
    lr: float
    losses: list[float] = field(default_factory=list)
    cpu_s: float = 0.0

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return asdict(self)


def batches(tokens: NDArray[np.int64], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (inputs, targets), each [8, 256], windows at seeded random places."""
    rng = np.random.default_rng(seed)
    while True:
        starts = rng.integers(0, len(tokens) - CONTEXT_TOKENS - 1, WINDOWS_PER_STEP)
        block = torch.from_numpy(np.stack([tokens[s : s + CONTEXT_TOKENS + 1] for s in starts]))
        yield block[:, :-1], block[:, 1:]


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up over 40 steps, flat, linear decay over the last 45 %."""
    return min((step + 1) / WARM_UP_STEPS, 1.0, max(0.0, (steps - step) / (DECAY_SHARE * steps)))


def optimisers(nets: list[nn.Module], lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embedding and gains at the rates of an unscaled embedding."""
    matrices: list[Tensor] = []
    groups: list[dict[str, object]] = []
    for name, p in (pair for net in nets for pair in net.named_parameters() if pair[1].requires_grad):
        if p.dim() == 2 and "embed_tokens" not in name:
            matrices.append(p)
        else:
            factor = p.shape[-1] ** {"model.embed_tokens.weight": 0.5, "model.norm.weight": -0.5}.get(name, 0.0)
            groups.append({"params": [p], "lr": lr * factor})
    muon = torch.optim.Muon(matrices, lr=lr, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw")
    if not groups:
        return [muon]
    return [muon, torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)]


def fit(
    stage: str, nets: list[nn.Module], loss: Loss, tokens: NDArray[np.int64], budget: Budget, seed: int, report: Report
) -> StageLog:
    """Train `nets` for `budget.steps`; `loss(inputs, targets, step)` is a scalar. Returns the log."""
    log = StageLog(stage, budget.steps, budget.steps * WINDOWS_PER_STEP * CONTEXT_TOKENS, budget.lr)
    opts = optimisers(nets, budget.lr)
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda s: learning_rate_factor(s, budget.steps)) for o in opts]
    began, recent = time.process_time(), list[float]()
    for step, (x, y) in zip(range(budget.steps), batches(tokens, seed), strict=False):
        recent.append(take_step(loss, x, y, step, opts, schedules))
        if len(recent) == LOG_EVERY_STEPS or step == budget.steps - 1:
            log.losses.append(round(float(np.mean(recent)), 4))
            log.cpu_s = round(time.process_time() - began, 1)
            recent.clear()
            report(f"{stage} step {step + 1}/{budget.steps} loss {log.losses[-1]:.4f} cpu_s {log.cpu_s:.0f}")
    return log


def take_step(
    loss: Loss,
    x: Tensor,
    y: Tensor,
    step: int,
    opts: list[torch.optim.Optimizer],
    schedules: list[torch.optim.lr_scheduler.LambdaLR],
) -> float:
    """One forward, backward and update; returns the loss in nats a token."""
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(x, y, step)
    value.backward()
    for opt, schedule in zip(opts, schedules, strict=True):
        opt.step()
        schedule.step()
        opt.zero_grad(set_to_none=True)
    return float(value.detach())
