"""What is trained on top of a frozen primary: Medusa heads and the Tandem secondary."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sim.reference.training.configs import MEDUSA_HEADS, TANDEM_LAYER_MAP, NetConfig
from sim.reference.training.nets import Layer, Linear, Llama, initialise, rotate


class MedusaHead(nn.Module):
    """One tied Medusa head: logits = E . (norm(Wr h + SiLU(W1 h)) * g), h the primary's final normed state.

    E and g are the primary's embedding and final gain, so that a head costs 2 d^2 weights and no second vocabulary.
    """

    def __init__(self, c: NetConfig) -> None:
        super().__init__()
        self.residual = Linear(c.hidden_size, c.hidden_size)
        self.inner = Linear(c.hidden_size, c.hidden_size)
        self.eps = c.rms_norm_eps

    def forward(self, h: Tensor, primary: Llama) -> Tensor:
        """[..., d] -> logits [..., V] in float32."""
        mixed = (self.residual(h) + F.silu(self.inner(h))).float()
        gain = primary.model.norm.weight
        return F.linear(F.rms_norm(mixed, gain.shape, gain, self.eps), primary.model.embed_tokens.weight).float()


class Medusa(nn.Module):
    """Heads 0..K-1; head k predicts the token k+2 places after the state's own token."""

    def __init__(self, c: NetConfig, seed: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(MedusaHead(c) for _ in range(MEDUSA_HEADS))
        initialise(self, torch.Generator().manual_seed(seed))

    def forward(self, h: Tensor, primary: Llama) -> list[Tensor]:
        """[B, T, d] -> K logits [B, T, V]."""
        return [head(h, primary) for head in self.heads]


class Tandem(nn.Module):
    """A small decoder that reads the primary's states of finished blocks (arXiv 2402.08644).

    Layer j attends to (i) keys and values that its own maps make of `proj[j](x_P)` for tokens of finished blocks, x_P
    the primary's residual stream after layer `TANDEM_LAYER_MAP[j]`, and (ii) its own keys and values in the block.
    """

    def __init__(self, c: NetConfig, primary: NetConfig, seed: int) -> None:
        super().__init__()
        self.net = Llama(c, seed)
        self.proj = nn.ModuleList(Linear(primary.hidden_size, c.hidden_size) for _ in TANDEM_LAYER_MAP)
        initialise(self.proj, torch.Generator().manual_seed(seed + 1))

    def forward(self, ids: Tensor, primary_states: list[Tensor], block: Tensor) -> Tensor:
        """Ids [B, T], the primary's L+1 states, block number of every position [T] -> logits [B, T, V]."""
        mask = block_mask(block)
        x = self.net.model.embed_tokens(ids)
        for layer, proj, source in zip(self.net.model.layers, self.proj, TANDEM_LAYER_MAP, strict=True):
            x = self._layer(layer, x, proj(primary_states[source]), mask)
        return self.net.head(x)

    def _layer(self, layer: Layer, x: Tensor, foreign: Tensor, mask: Tensor) -> Tensor:
        attn, tokens = layer.self_attn, x.shape[1]
        turn = (self.net.turn[0][:tokens], self.net.turn[1][:tokens])
        own = layer.input_layernorm(x)
        k1, v1 = attn.keys_values(layer.input_layernorm(foreign), turn)
        k2, v2 = attn.keys_values(own, turn)
        q = rotate(attn.split(attn.q_proj(own)), turn)
        x = x + attn.mix(q, torch.cat((k1, k2), 2), torch.cat((v1, v2), 2), mask)
        return x + layer.mlp(layer.post_attention_layernorm(x))


def block_mask(block: Tensor) -> Tensor:
    """[T] block numbers -> [T, 2T] allowed keys: foreign ones of earlier blocks, then own ones of this block so far."""
    place = torch.arange(len(block))
    foreign = block[None, :] < block[:, None]
    own = (block[None, :] == block[:, None]) & (place[None, :] <= place[:, None])
    return torch.cat((foreign, own), dim=1)
