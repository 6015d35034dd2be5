"""Post-training quantization of a member's matrices, for the self-drafting and ternary rows of the record."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from sim.reference.training.nets import Linear, Llama, ternary

GROUP = 32


def round_to_nearest(weight: Tensor, bits: int) -> Tensor:
    """Symmetric absmax rounding in groups of 32 along the input axis: [out, in] -> the same, dequantized."""
    groups = weight.unflatten(1, (-1, GROUP))
    top = 2 ** (bits - 1) - 1
    scale = groups.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / top
    return (torch.round(groups / scale).clamp(-top, top) * scale).flatten(1)


def with_matrices(net: Llama, change: Callable[[Tensor], Tensor]) -> Llama:
    """A copy whose layer matrices went through `change`; embedding, head and gains stay."""
    other = copy.deepcopy(net)
    for module in other.modules():
        if isinstance(module, Linear):
            module.weight.data = change(module.weight.data)
    return other


def int_n(net: Llama, bits: int) -> Llama:
    """Weight-only integer copy, groups of 32."""
    return with_matrices(net, lambda w: round_to_nearest(w, bits))


def post_training_ternary(net: Llama) -> Llama:
    """Absmean ternary copy without any training."""
    return with_matrices(net, ternary)


def low_rank(weight: Tensor, rank: int, inputs: Tensor | None = None) -> Tensor:
    """Best rank-r copy of [out, in]; with `inputs` [N, in] best for their second moment (whitened SVD)."""
    if inputs is None:
        return _truncate(weight, rank)
    values, vectors = torch.linalg.eigh(inputs.T @ inputs / len(inputs))
    root = vectors * values.clamp(min=1e-8).sqrt()
    inverse = vectors / values.clamp(min=1e-8).sqrt()
    return _truncate(weight @ root, rank) @ inverse.T


def _truncate(weight: Tensor, rank: int) -> Tensor:
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]
