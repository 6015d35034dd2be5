"""The stages, one function a member: build, train, save. Order matters: some read what earlier ones saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from sim.reference.training import configs as c
from sim.reference.training.extras import Medusa, Tandem
from sim.reference.training.loop import Loss, Report, StageLog, fit
from sim.reference.training.nets import Linear, Llama
from sim.reference.training.store import load_llama, save_folder, ternary_tensors

MEDUSA_LOSS_DECAY = 0.8
RELU_DENSE_SHARE = 0.3


@dataclass(frozen=True)
class Run:
    """Where to write, what to train on, how to be lucky."""

    out: Path
    tokens: NDArray[np.int64]
    seed: int
    report: Report

    def fit(self, stage: str, nets: list[torch.nn.Module], loss: Loss) -> StageLog:
        """Train with the stage's budget, on batches of the stage's own seed."""
        seed = self.seed + list(c.BUDGETS).index(stage)
        return fit(stage, nets, loss, self.tokens, c.BUDGETS[stage], seed, self.report)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean nats a token of [B, T, V] against [B, T]."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def kl(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean KL(teacher || student) in nats a token, both logits [B, T, V]."""
    p, q = (F.log_softmax(a.flatten(0, 1), dim=-1) for a in (teacher, student))
    return F.kl_div(q, p, log_target=True, reduction="batchmean")


def train_primary(run: Run) -> StageLog:
    """The target of most experiments: cross-entropy from scratch."""
    return _train_plain(run, "primary", c.PRIMARY)


def train_drafter(run: Run) -> StageLog:
    """The independent drafter: cross-entropy from scratch, never sees the primary."""
    return _train_plain(run, "drafter", c.DRAFTER)


def _train_plain(run: Run, stage: str, config: c.NetConfig) -> StageLog:
    net = Llama(config, run.seed)
    log = run.fit(stage, [net], lambda x, y, _: cross_entropy(net(x), y))
    save_folder(run.out / stage, config.to_hf(), net.state_dict())
    return log


def train_distilled(run: Run) -> StageLog:
    """The independent drafter, trained on with KL from the primary (DistillSpec, forward KL on corpus text)."""
    net = load_llama(run.out / "drafter").requires_grad_(True)
    return _distil(run, "drafter-distilled", net)


def train_tiny(run: Run) -> StageLog:
    """One layer, distilled from scratch: the low end of the acceptance range."""
    return _distil(run, "drafter-tiny", Llama(c.TINY, run.seed))


def _distil(run: Run, stage: str, net: Llama) -> StageLog:
    teacher = load_llama(run.out / "primary")
    log = run.fit(stage, [net], lambda x, _y, _s: kl(teacher(x), net(x)))
    save_folder(run.out / stage, {**net.config.to_hf(), "distilled_from": "primary"}, net.state_dict())
    return log


def train_matformer(run: Run) -> StageLog:
    """Nested FFNs: a quarter of every batch trains each of the four prefixes S, M, L, XL."""
    net = Llama(c.MATFORMER, run.seed)

    def loss(x: Tensor, y: Tensor, _step: int) -> Tensor:
        parts = zip(c.MATFORMER_FFN, x.chunk(4), y.chunk(4), strict=True)
        return torch.stack([cross_entropy(net(xs, width), ys) for width, xs, ys in parts]).mean()

    log = run.fit("matformer", [net], loss)
    config = {**c.MATFORMER.to_hf(), "matformer_ffn": list(c.MATFORMER_FFN)}
    save_folder(run.out / "matformer", config, net.state_dict())
    return log


def train_relu(run: Run) -> StageLog:
    """Non-gated ReLU: dense at first, then every step keeps the largest k activations, k drawn from `RELU_TOPK`."""
    net = Llama(c.RELU, run.seed)
    draws = np.random.default_rng(run.seed + 1000)
    steps = c.BUDGETS["relu"].steps

    def loss(x: Tensor, y: Tensor, step: int) -> Tensor:
        k = None if step < RELU_DENSE_SHARE * steps else int(draws.choice(c.RELU_TOPK))
        return cross_entropy(net(x, topk=k), y)

    log = run.fit("relu", [net], loss)
    save_folder(run.out / "relu", {**c.RELU.to_hf(), "ffn_topk": list(c.RELU_TOPK)}, net.state_dict())
    return log


def train_medusa(run: Run) -> StageLog:
    """Medusa-1: heads on the frozen primary, losses weighted 1, 0.8, 0.64, 0.512."""
    primary = load_llama(run.out / "primary")
    heads = Medusa(c.PRIMARY, run.seed)
    # The state is of size 1/sqrt(d) (nets.initialise) and Muon's steps suit size 1: the factor is folded in last.
    unit = c.PRIMARY.hidden_size**0.5

    def loss(x: Tensor, y: Tensor, _step: int) -> Tensor:
        h = primary.model.norm(primary.states(x)[-1]) * unit
        total = torch.zeros(())
        for k, logits in enumerate(heads(h, primary), start=1):
            total = total + MEDUSA_LOSS_DECAY ** (k - 1) * cross_entropy(logits[:, :-k], y[:, k:])
        return total

    log = run.fit("medusa", [heads], loss)
    save_folder(run.out / "medusa", medusa_config(), {k: t * unit for k, t in heads.state_dict().items()})
    return log


def medusa_config() -> dict[str, Any]:
    """What a reader of the head tensors must know."""
    return {
        "model_type": "medusa",
        "base_model": "primary",
        "medusa_num_heads": c.MEDUSA_HEADS,
        "hidden_size": c.PRIMARY.hidden_size,
        "vocab_size": c.VOCAB_SIZE,
        "rms_norm_eps": c.PRIMARY.rms_norm_eps,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "input": "h = base model.norm(residual stream after the last layer), [d]",
        "formula": "logits_k = E @ (g * rms_norm(heads.k.residual @ h + silu(heads.k.inner @ h)))",
        "E": "base model.embed_tokens.weight [V, d]",
        "g": "base model.norm.weight [d]",
        "predicts": "head k (from 0) predicts token t+2+k from the state of token t",
        "dtype": "float16",
    }


def train_tandem(run: Run) -> StageLog:
    """The secondary starts from the distilled drafter; KL from the frozen primary; block length drawn every step."""
    primary = load_llama(run.out / "primary")
    tandem = Tandem(c.TANDEM, c.PRIMARY, run.seed)
    tandem.net.load_state_dict(load_llama(run.out / "drafter-distilled").state_dict())
    draws = np.random.default_rng(run.seed + 2000)

    def loss(x: Tensor, _y: Tensor, _step: int) -> Tensor:
        length = int(draws.choice(c.TANDEM_BLOCKS))
        block = (torch.arange(x.shape[1]) + int(draws.integers(length))) // length
        states = primary.states(x)
        return kl(primary.head(states[-1]), tandem(x, states, block))

    log = run.fit("tandem", [tandem], loss)
    tensors = {name.removeprefix("net."): t for name, t in tandem.state_dict().items()}
    save_folder(run.out / "tandem", tandem_config(), tensors)
    return log


def tandem_config() -> dict[str, Any]:
    """A Llama config plus where the foreign keys and values come from."""
    return {
        **c.TANDEM.to_hf(),
        "tandem_primary": "primary",
        "tandem_primary_hidden_size": c.PRIMARY.hidden_size,
        "tandem_layer_map": list(c.TANDEM_LAYER_MAP),
        "tandem_block_lengths_trained": list(c.TANDEM_BLOCKS),
        "tandem_formula": (
            "layer j, tokens of finished blocks: keys and values = k_proj, v_proj(input_layernorm(proj.j @ x_P)), "
            "x_P = primary residual stream after tandem_layer_map[j] layers; keys rotated at absolute positions"
        ),
    }


def train_ternary(run: Run) -> StageLog:
    """Quantization-aware training of the primary: layers' matrices seen through absmean ternary, head in float."""
    net = load_llama(run.out / "primary").requires_grad_(True)
    for module in net.modules():
        if isinstance(module, Linear):
            module.ternary = True
    log = run.fit("ternary", [net], lambda x, y, _: cross_entropy(net(x), y))
    quantization = {"method": "ternary_absmean", "packing": "hf_bitnet_2bit_rows", "scale": "multiply", "trained": True}
    save_folder(
        run.out / "ternary", {**c.PRIMARY.to_hf(), "quantization": quantization}, ternary_tensors(net.state_dict())
    )
    return log


STAGES: dict[str, Callable[[Run], StageLog]] = {
    "primary": train_primary,
    "drafter": train_drafter,
    "drafter-distilled": train_distilled,
    "drafter-tiny": train_tiny,
    "matformer": train_matformer,
    "relu": train_relu,
    "medusa": train_medusa,
    "tandem": train_tandem,
    "ternary": train_ternary,
}
