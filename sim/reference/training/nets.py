"""The decoder in torch: plain Llama, with the two knobs that the family needs (FFN prefix, top-k of a ReLU FFN).

Module names are chosen so that `state_dict()` carries Hugging Face's tensor names. Shapes in comments: B windows,
T tokens, d hidden, f FFN, H heads, G key/value heads, D head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sim.reference.training.configs import NetConfig


class Linear(nn.Linear):
    """A bias-free matrix that can be seen through absmean ternary quantization (straight-through gradient)."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out, bias=False)
        self.ternary = False

    def effective_weight(self) -> Tensor:
        """[out, in]: the weight, or its ternary image with the gradient of the weight."""
        if not self.ternary:
            return self.weight
        return self.weight + (ternary(self.weight) - self.weight).detach()

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return F.linear(x, self.effective_weight())


def ternary(weight: Tensor) -> Tensor:
    """BitNet b1.58 (arXiv 2402.17764, eq. 1-3): scale * clip(round(w / scale), -1, 1) with scale = mean |w|."""
    scale = weight.abs().mean().clamp(min=1e-8)
    return torch.clamp(torch.round(weight / scale), -1, 1) * scale


class Norm(nn.Module):
    """RMSNorm with a learned gain."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., d], in float32 whatever the autocast."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions in Hugging Face's half-rotation layout."""

    def __init__(self, c: NetConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        self.q_proj = Linear(c.hidden_size, self.heads * self.head_dim)
        self.k_proj = Linear(c.hidden_size, self.kv_heads * self.head_dim)
        self.v_proj = Linear(c.hidden_size, self.kv_heads * self.head_dim)
        self.o_proj = Linear(self.heads * self.head_dim, c.hidden_size)

    def split(self, x: Tensor) -> Tensor:
        """[B, T, n*D] -> [B, n, T, D]."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def keys_values(self, x: Tensor, turn: Turn) -> tuple[Tensor, Tensor]:
        """[B, T, d] -> keys (rotated) and values, each [B, G, T, D]."""
        return rotate(self.split(self.k_proj(x)), turn), self.split(self.v_proj(x))

    def forward(self, x: Tensor, turn: Turn) -> Tensor:
        """[B, T, d] -> [B, T, d], causal."""
        q = rotate(self.split(self.q_proj(x)), turn)  # [B, H, T, D]
        k, v = self.keys_values(x, turn)
        return self.mix(q, k, v, None)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Attend (causally if `mask` is None) and project: [B, H, T, D] -> [B, T, d]."""
        group = self.heads // self.kv_heads
        k, v = (a.repeat_interleave(group, dim=1) for a in (k, v))  # [B, H, S, D]
        out = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, mask, is_causal=mask is None)
        projected: Tensor = self.o_proj(out.transpose(1, 2).flatten(2))
        return projected


Turn = tuple[Tensor, Tensor]


def rope_turn(c: NetConfig, tokens: int) -> Turn:
    """Cosines and sines [T, D] of positions 0..T-1, both halves alike."""
    inverse = c.rope_theta ** (-torch.arange(0, c.head_dim, 2).float() / c.head_dim)
    angle = torch.outer(torch.arange(tokens).float(), inverse).repeat(1, 2)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, turn: Turn) -> Tensor:
    """Rotary embedding of [B, n, T, D]; halves are (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin)."""
    first, second = x.float().chunk(2, dim=-1)
    return x * turn[0] + torch.cat((-second, first), dim=-1) * turn[1]


class FeedForward(nn.Module):
    """SwiGLU, or plain ReLU; `width` runs the first units only, `topk` keeps the largest activations only."""

    def __init__(self, c: NetConfig) -> None:
        super().__init__()
        if c.mlp_gated:
            self.gate_proj = Linear(c.hidden_size, c.intermediate_size)
        self.up_proj = Linear(c.hidden_size, c.intermediate_size)
        self.down_proj = Linear(c.intermediate_size, c.hidden_size)
        self.gated = c.mlp_gated

    def forward(self, x: Tensor, width: int | None = None, topk: int | None = None) -> Tensor:
        """[B, T, d] -> [B, T, d]."""
        inner = self.activations(x, width)
        if topk is not None and topk < inner.shape[-1]:
            inner = keep_largest(inner, topk)
        return F.linear(inner, self.down_proj.effective_weight()[:, :width])

    def activations(self, x: Tensor, width: int | None = None) -> Tensor:
        """[B, T, d] -> [B, T, width]: what the down projection reads."""
        up = F.linear(x, self.up_proj.effective_weight()[:width])
        if not self.gated:
            return F.relu(up)
        return F.silu(F.linear(x, self.gate_proj.effective_weight()[:width])) * up


def keep_largest(x: Tensor, k: int) -> Tensor:
    """Zero all but the k largest entries of the last axis (ties at the threshold are all kept)."""
    threshold = x.topk(k, dim=-1).values[..., -1:]
    return x * (x >= threshold)


class Layer(nn.Module):
    """One pre-norm decoder layer."""

    def __init__(self, c: NetConfig) -> None:
        super().__init__()
        self.input_layernorm = Norm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = Norm(c.hidden_size, c.rms_norm_eps)
        self.mlp = FeedForward(c)

    def forward(self, x: Tensor, turn: Turn, width: int | None, topk: int | None) -> Tensor:
        """[B, T, d] -> [B, T, d]."""
        x = x + self.self_attn(self.input_layernorm(x), turn)
        return x + self.mlp(self.post_attention_layernorm(x), width, topk)


class Trunk(nn.Module):
    """Embedding, layers and final norm; named `model` inside `Llama` for the tensor names' sake."""

    def __init__(self, c: NetConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.num_hidden_layers))
        self.norm = Norm(c.hidden_size, c.rms_norm_eps)


class Llama(nn.Module):
    """A Llama decoder with the head tied to the embedding."""

    def __init__(self, c: NetConfig, seed: int) -> None:
        super().__init__()
        self.config = c
        self.model = Trunk(c)
        self.turn = rope_turn(c, c.max_position_embeddings)
        initialise(self, torch.Generator().manual_seed(seed))

    def states(self, ids: Tensor, width: int | None = None, topk: int | None = None) -> list[Tensor]:
        """Token ids [B, T] -> L+1 residual streams [B, T, d]: after the embedding and after every layer."""
        turn = (self.turn[0][: ids.shape[1]], self.turn[1][: ids.shape[1]])
        out = [self.model.embed_tokens(ids)]
        for layer in self.model.layers:
            out.append(layer(out[-1], turn, width, topk))
        return out

    def head(self, x: Tensor) -> Tensor:
        """Residual stream [..., d] -> logits [..., V] in float32."""
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight).float()

    def forward(self, ids: Tensor, width: int | None = None, topk: int | None = None) -> Tensor:
        """Token ids [B, T] -> logits [B, T, V]."""
        return self.head(self.states(ids, width, topk)[-1])

    def at_width(self, width: int) -> Callable[[Tensor], Tensor]:
        """This decoder with the first `width` units of every FFN only."""
        return lambda ids: self(ids, width=width)

    def at_topk(self, topk: int) -> Callable[[Tensor], Tensor]:
        """This decoder with the `topk` largest activations of every FFN only."""
        return lambda ids: self(ids, topk=topk)


def initialise(net: nn.Module, generator: torch.Generator) -> None:
    """Seeded start: matrices 1/sqrt(in) (residual writers smaller), embedding and final gain as if scaled by sqrt(d).

    Scaling the embedding by sqrt(d) at the input helps training; stored this way (embedding times sqrt(d), final gain
    divided by it) a plain tied Llama graph computes the same function.
    """
    layers = max(1, sum(isinstance(m, Layer) for m in net.modules()))
    for name, p in net.named_parameters():
        if name.endswith("embed_tokens.weight"):
            nn.init.normal_(p, 0.0, 0.02 * p.shape[1] ** 0.5, generator=generator)
        elif name.endswith("model.norm.weight"):
            nn.init.constant_(p, p.shape[0] ** -0.5)
        elif p.dim() == 2:
            writer = name.endswith(("o_proj.weight", "down_proj.weight"))
            std = p.shape[1] ** -0.5 * ((2 * layers) ** -0.5 if writer else 1.0)
            nn.init.normal_(p, 0.0, std, generator=generator)
