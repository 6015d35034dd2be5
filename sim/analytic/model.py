"""What a transformer is made of: layers, heads, widths. No time, no bytes, no devices.

A :class:`ModelShape` is the one thing that the simulator and the reference executor share. Parameter counts follow
from it exactly; whatever a shape does not determine (weights, RoPE base, soft caps) is not here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): keys and values from one latent.

    The KV cache holds ``kv_rank + rope_dim`` numbers a token and layer, shared by all heads.
    """

    q_rank: int | None
    kv_rank: int
    rope_dim: int
    nope_dim: int


@dataclass(frozen=True)
class Attention:
    """One attention block. ``head_dim`` is that of queries and keys, ``value_dim`` that of values.

    ``window``: how many positions a query sees, itself included (None: all). ``sinks``: one learned logit a head.
    ``qk_norm``: width of each of the two query/key norm weights (0: none). ``latent``: MLA instead of plain K/V
    projections; then ``head_dim = nope_dim + rope_dim`` and ``kv_heads = heads``.
    """

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    window: int | None = None
    causal: bool = True
    sinks: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: int = 0
    rope: bool = True
    latent: Latent | None = None

    def parameters(self, d_model: int) -> dict[str, int]:
        """Weights by op name (docs/conventions.md); biases and norms of the block included under their op."""
        q, v = self.heads * self.head_dim, self.heads * self.value_dim
        out = {"attn.out": v * d_model + (d_model if self.out_bias else 0)}
        small = self.heads * self.sinks + 2 * self.qk_norm
        if self.latent is None:
            kv = self.kv_heads * (self.head_dim + self.value_dim)
            qkv = d_model * (q + kv) + ((q + kv) if self.qkv_bias else 0)
            return {"attn.qkv": qkv, **out, **({"attn.small": small} if small else {})}
        mla = self.latent
        queries = (
            {"attn.q": d_model * q}
            if mla.q_rank is None
            else {"attn.q_down": d_model * mla.q_rank + mla.q_rank, "attn.q_up": mla.q_rank * q}
        )
        down = {"attn.kv_down": d_model * (mla.kv_rank + mla.rope_dim) + mla.kv_rank}
        up = {"attn.kv_up": mla.kv_rank * self.heads * (mla.nope_dim + self.value_dim)}
        return {**queries, **down, **up, **out}

    @property
    def cached_width(self) -> int:
        """Numbers kept in the KV cache for one token of one layer."""
        if self.latent is not None:
            return self.latent.kv_rank + self.latent.rope_dim
        return self.kv_heads * (self.head_dim + self.value_dim)


@dataclass(frozen=True)
class Ffn:
    """A feed-forward block, dense (``experts == 0``) or a mixture of experts.

    ``width`` is the hidden width of the dense block or of one expert; ``shared_width`` the summed width of experts
    that every token visits; ``shared_gate`` a learned scalar gate on them; ``router_bias`` one number an expert.
    ``expert_groups``: of a block that is one device's part, how many groups of devices the experts are dealt to.
    """

    width: int
    gated: bool = True
    bias: bool = False
    activation: str = "silu"
    experts: int = 0
    experts_per_token: int = 0
    shared_width: int = 0
    shared_gate: bool = False
    router_bias: bool = False
    expert_groups: int = 1

    @property
    def up_factor(self) -> int:
        """How many matrices of shape [d_model, width] come before the activation (2 when gated)."""
        return 2 if self.gated else 1

    def expert_parameters(self, d_model: int) -> dict[str, int]:
        """Weights of the dense block, or of one expert, by op name."""
        ups = self.up_factor * (d_model * self.width + (self.width if self.bias else 0))
        return {"mlp.up": ups, "mlp.down": self.width * d_model + (d_model if self.bias else 0)}

    def parameters(self, d_model: int) -> dict[str, int]:
        """Weights by op name; ``moe.up`` and ``moe.down`` hold all the experts that are here."""
        if not self.experts:
            return self.expert_parameters(d_model)
        one = self.expert_parameters(d_model)
        counts = {
            "moe.router": self.experts * d_model + (self.experts if self.router_bias else 0),
            "moe.up": self.experts // self.expert_groups * one["mlp.up"],
            "moe.down": self.experts // self.expert_groups * one["mlp.down"],
        }
        if self.shared_width:
            counts["moe.shared_up"] = self.up_factor * d_model * self.shared_width
            counts["moe.shared_down"] = self.shared_width * d_model + (d_model if self.shared_gate else 0)
        return counts


@dataclass(frozen=True)
class Layer:
    """One transformer layer. ``norms`` counts its normalisations over d_model; ``cross`` attends to the encoder."""

    attention: Attention
    ffn: Ffn
    norms: int = 2
    cross: Attention | None = None


@dataclass(frozen=True)
class ModelShape:
    """A model: decoder ``layers`` (or, for an encoder alone, none of them) and ``encoder`` layers.

    ``norm_vectors`` is how many d_model vectors one normalisation owns: 1 for RMSNorm, 2 for LayerNorm.
    ``head``: an output matrix exists (tied to the embedding or not). ``extra``: small tensors that the layers do not
    account for (learned positions, relative-position tables, pooler), by name. ``expert_format``: number format that
    the checkpoint stores expert weights in, when it differs from the rest (MXFP4 in gpt-oss). ``extra_windows``: spans
    that no layer attends over but a variant counts by (keys chosen by HiRE), as further attention kinds.
    """

    name: str
    d_model: int
    vocab: int
    layers: tuple[Layer, ...]
    encoder: tuple[Layer, ...] = ()
    tied: bool = False
    head: bool = True
    norm: Literal["rms", "layer"] = "rms"
    norm_bias: bool = True
    final_norm: bool = True
    max_context: int = 1 << 20
    expert_format: str | None = None
    extra: tuple[tuple[str, int], ...] = field(default=())
    extra_windows: tuple[int, ...] = ()

    @property
    def norm_vectors(self) -> int:
        """Vectors of d_model numbers that one normalisation owns."""
        return 2 if self.norm == "layer" and self.norm_bias else 1

    def parameters(self) -> dict[str, int]:
        """Parameters by op name, summed over layers; the values add up to :attr:`total_parameters`."""
        counts: Counter[str] = Counter({"embed": self.vocab * self.d_model})
        for layer in self.layers:
            counts.update(self._layer_parameters(layer))
        for layer in self.encoder:
            counts.update({f"encoder.{k}": v for k, v in self._layer_parameters(layer).items()})
        stacks = bool(self.layers) + bool(self.encoder)
        counts["norm"] += stacks * self.final_norm * self.norm_vectors * self.d_model
        if self.head and not self.tied:
            counts["logits"] += self.vocab * self.d_model
        counts.update(dict(self.extra))
        return dict(counts)

    def _layer_parameters(self, layer: Layer) -> dict[str, int]:
        counts: Counter[str] = Counter(layer.attention.parameters(self.d_model))
        if layer.cross is not None:
            counts.update({f"cross.{k[5:]}": v for k, v in layer.cross.parameters(self.d_model).items()})
        counts.update(layer.ffn.parameters(self.d_model))
        counts["norm"] += layer.norms * self.norm_vectors * self.d_model
        return dict(counts)

    @property
    def total_parameters(self) -> int:
        """All parameters, a tied head counted once."""
        return sum(self.parameters().values())

    @property
    def kv_width_per_token(self) -> int:
        """Numbers that one token adds to the KV cache over all decoder layers (windows not considered)."""
        return sum(layer.attention.cached_width for layer in self.layers)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Distinct attention kinds of the decoder, by window, in order of first use: the KV channels of a run."""
        return tuple(dict.fromkeys((*(layer.attention.window for layer in self.layers), *self.extra_windows)))
