"""Text drawn from a member, with a key/value cache: what acceptance on the target's own text is measured on."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sim.reference.training.nets import Layer, Llama, rotate

Cache = list[tuple[Tensor, Tensor]]


def generate(net: Llama, prompts: Tensor, new_tokens: int, temperature: float, seed: int) -> Tensor:
    """Prompts [W, P] -> prompts and continuations [W, P + new_tokens]; temperature 0 is greedy."""
    generator = torch.Generator().manual_seed(seed)
    cache: Cache = []
    out, fresh = prompts, prompts
    for _ in range(new_tokens):
        logits = _extend(net, fresh, out.shape[1] - fresh.shape[1], cache)
        fresh = draw(logits, temperature, generator)
        out = torch.cat((out, fresh), dim=1)
    return out


def draw(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Logits [W, V] -> one token each [W, 1]."""
    if temperature == 0.0:
        return logits.argmax(dim=-1, keepdim=True)
    return torch.multinomial(F.softmax(logits / temperature, dim=-1), 1, generator=generator)


def _extend(net: Llama, ids: Tensor, past: int, cache: Cache) -> Tensor:
    """Run the new tokens [W, n] after `past` cached ones; returns the logits of the last [W, V]."""
    turn = (net.turn[0][past : past + ids.shape[1]], net.turn[1][past : past + ids.shape[1]])
    x = net.model.embed_tokens(ids)
    for i, layer in enumerate(net.model.layers):
        x = _layer(layer, i, x, turn, cache)
    return net.head(x[:, -1])


def _layer(layer: Layer, i: int, x: Tensor, turn: tuple[Tensor, Tensor], cache: Cache) -> Tensor:
    attn, normed = layer.self_attn, layer.input_layernorm(x)
    k, v = attn.keys_values(normed, turn)
    if i < len(cache):
        k, v = torch.cat((cache[i][0], k), 2), torch.cat((cache[i][1], v), 2)
        cache[i] = (k, v)
    else:
        cache.append((k, v))
    q = rotate(attn.split(attn.q_proj(normed)), turn)
    # A prompt is causal in itself; a single new token sees every cached one.
    mask = None if q.shape[2] == k.shape[2] else torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
    x = x + attn.mix(q, k, v, mask)
    return x + layer.mlp(layer.post_attention_layernorm(x))
