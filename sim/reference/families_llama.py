"""Llama and its relatives (Mistral, Mixtral, Qwen 2 and 3, Gemma 1 to 3): from configuration to weights.

All are one decoder (RMSNorm, RoPE, grouped heads, gated FFN or experts) with differences that their function states.
"""

from __future__ import annotations

import math
from dataclasses import replace

from sim.analytic.model import Attention, Ffn, Layer, ModelShape
from sim.reference.config_file import Config
from sim.reference.numerics import Numerics
from sim.reference.rope_config import read_rope
from sim.reference.sources import Family, Layout, Source, activation

ExpertNames = tuple[str, str, tuple[str, str], str]  # router, folder of experts, gate and up, down


def llama(config: Config) -> Family:
    """Llama and what only differs in windows: RMSNorm, RoPE, GQA, gated FFN."""
    bias = config.flag("attention_bias", False)
    return _decoder(config, qkv_bias=bias, out_bias=bias, mlp_bias=config.flag("mlp_bias", False))


def mistral(config: Config) -> Family:
    """A window over all layers, or none."""
    return _decoder(config, windows=[config.optional_size("sliding_window")] * config.many("num_hidden_layers"))


def qwen2(config: Config) -> Family:
    """Biases on queries, keys and values; windows on the upper layers if switched on."""
    return _decoder(config, qkv_bias=True, windows=_qwen_windows(config))


def qwen3(config: Config) -> Family:
    """Norms on queries and keys of each head."""
    bias = config.flag("attention_bias", False)
    return _decoder(config, qkv_bias=bias, out_bias=bias, qk_norm=True, windows=_qwen_windows(config))


def mixtral(config: Config) -> Family:
    """Experts for FFN, top-k of them a token."""
    return _decoder(
        config,
        windows=[config.optional_size("sliding_window")] * config.many("num_hidden_layers"),
        experts=(
            config.many("num_local_experts"),
            config.size("num_experts_per_tok"),
            config.size("intermediate_size"),
        ),
        expert_names=("block_sparse_moe.gate", "block_sparse_moe.experts", ("w1", "w3"), "w2"),
    )


def qwen3_moe(config: Config) -> Family:
    """Qwen 3 with experts in every layer."""
    if config.values.get("mlp_only_layers") or config.size("decoder_sparse_step", 1) != 1:
        raise config.bad("mlp_only_layers", "only models with experts in every layer are supported")
    width = config.size("moe_intermediate_size")
    return _decoder(
        config,
        qk_norm=True,
        windows=_qwen_windows(config),
        experts=(_expert_count(config), config.size("num_experts_per_tok"), width),
        expert_names=("mlp.gate", "mlp.experts", ("gate_proj", "up_proj"), "down_proj"),
        renormalise=config.flag("norm_topk_prob", False),
    )


def gemma(config: Config) -> Family:
    """Scaled embedding, tied head, norm weights stored less one, GELU gate."""
    return _decoder(config, gemma=1)


def gemma2(config: Config) -> Family:
    """Gemma with norms after each block too, soft caps, a window on every other layer."""
    return _decoder(config, gemma=2, windows=_gemma_windows(config, 2))


def gemma3(config: Config) -> Family:
    """Gemma 2 with norms on queries and keys instead of caps, and a RoPE base of their own for windowed layers."""
    pattern = config.size("sliding_window_pattern", 6)
    return _decoder(config, gemma=3, qk_norm=True, windows=_gemma_windows(config, pattern))


def _decoder(
    config: Config,
    *,
    windows: list[int | None] | None = None,
    qkv_bias: bool = False,
    out_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
    gemma: int = 0,
    experts: tuple[int, int, int] | None = None,
    expert_names: ExpertNames | None = None,
    renormalise: bool = True,
) -> Family:
    ffn = _ffn(config, mlp_bias, gemma, experts)
    plain = replace(_heads(config, gemma, qk_norm), qkv_bias=qkv_bias, out_bias=out_bias)
    layers = [
        Layer(replace(plain, window=window), ffn, norms=4 if gemma >= 2 else 2)
        for window in windows or [None] * config.many("num_hidden_layers")
    ]
    shape = ModelShape(
        name=str(config.values.get("_name_or_path") or config.text("model_type")),
        d_model=config.size("hidden_size"),
        vocab=config.size("vocab_size"),
        layers=tuple(layers),
        tied=config.flag("tie_word_embeddings", bool(gemma)),
        max_context=config.size("max_position_embeddings", 8192),
    )
    numerics = _decoder_numerics(config, plain.head_dim, gemma, renormalise)
    return Family(shape, numerics, _decoder_sources(shape, gemma, expert_names))


def _heads(config: Config, gemma: int, qk_norm: bool) -> Attention:
    """Heads and their width, checked against each other."""
    d, heads = config.size("hidden_size"), config.size("num_attention_heads")
    kv_heads = config.size("num_key_value_heads", heads)
    if heads % kv_heads:
        raise config.bad("num_key_value_heads", f"a divisor of num_attention_heads ({heads}) is expected")
    if config.values.get("head_dim") is None and d % heads:
        raise config.bad("num_attention_heads", f"a divisor of hidden_size ({d}) is expected where head_dim is not set")
    dim = config.size("head_dim", 256 if gemma else d // heads)
    if dim % 2:
        raise config.bad("head_dim", "an even number is expected (RoPE turns pairs)")
    return Attention(heads, kv_heads, dim, dim, qk_norm=dim if qk_norm else 0)


def _ffn(config: Config, bias: bool, gemma: int, experts: tuple[int, int, int] | None) -> Ffn:
    """The dense block, or ``experts``: how many, how many a token, how wide."""
    act, gated = _act(config, gemma), config.flag("mlp_gated", True)
    if experts is None:
        return Ffn(config.size("intermediate_size"), gated, bias, act)
    if experts[1] > experts[0]:
        raise config.bad("num_experts_per_tok", f"at most the {experts[0]} experts are expected")
    return Ffn(experts[2], gated, bias, act, experts[0], experts[1])


def _decoder_numerics(config: Config, dim: int, gemma: int, renormalise: bool) -> Numerics:
    scalar = config.number("query_pre_attn_scalar", float(dim)) if gemma >= 2 else float(dim)
    local = read_rope(config, dim, "sliding_attention", "rope_local_base_freq") if gemma == 3 else None
    return Numerics(
        eps=config.number("rms_norm_eps", 1e-6),
        rope=read_rope(config, dim),
        rope_local=local,
        attention_scale=scalar**-0.5,
        attention_cap=config.optional_number("attn_logit_softcapping") if gemma >= 2 else None,
        logit_cap=config.optional_number("final_logit_softcapping") if gemma >= 2 else None,
        embedding_scale=math.sqrt(config.size("hidden_size")) if gemma else 1.0,
        post_norms=gemma >= 2,
        router_renormalise=renormalise,
    )


def _decoder_sources(shape: ModelShape, gemma: int, expert_names: ExpertNames | None) -> dict[str, Source]:
    d = shape.d_model
    norm: Layout = "plus_one" if gemma else "plain"
    sources = {
        "embed": Source((("model.embed_tokens.weight", (shape.vocab, d)),)),
        "norm.final": Source((("model.norm.weight", (d,)),), norm),
    }
    if not shape.tied:
        sources["logits"] = Source((("lm_head.weight", (shape.vocab, d)),), "transpose")
    for i, layer in enumerate(shape.layers):
        ours, theirs = f"layers.{i}.", f"model.layers.{i}."
        for op, name in _norm_names(gemma):
            sources[ours + op] = Source(((f"{theirs}{name}.weight", (d,)),), norm)
        sources |= _attention_sources(ours, f"{theirs}self_attn.", layer.attention, d, norm)
        if expert_names is not None:
            sources |= _expert_sources(ours, theirs, layer.ffn, d, expert_names)
        else:
            sources |= _ffn_sources(ours, f"{theirs}mlp.", layer.ffn, d)
    return sources


def _norm_names(gemma: int) -> list[tuple[str, str]]:
    if gemma < 2:
        return [("norm.attn", "input_layernorm"), ("norm.mlp", "post_attention_layernorm")]
    return [
        ("norm.attn", "input_layernorm"),
        ("norm.post_attn", "post_attention_layernorm"),
        ("norm.mlp", "pre_feedforward_layernorm"),
        ("norm.post_mlp", "post_feedforward_layernorm"),
    ]


def _attention_sources(ours: str, theirs: str, kind: Attention, d: int, norm: Layout) -> dict[str, Source]:
    queries, keys, values = kind.heads * kind.head_dim, kind.kv_heads * kind.head_dim, kind.kv_heads * kind.value_dim
    widths = (("q_proj", queries), ("k_proj", keys), ("v_proj", values))
    weights = tuple((f"{theirs}{name}.weight", (width, d)) for name, width in widths)
    sources = {f"{ours}attn.qkv": Source(weights, "transpose")}
    mixed = kind.heads * kind.value_dim
    sources[f"{ours}attn.out"] = Source(((f"{theirs}o_proj.weight", (d, mixed)),), "transpose")
    if kind.qkv_bias:
        sources[f"{ours}attn.qkv.bias"] = Source(tuple((f"{theirs}{name}.bias", (width,)) for name, width in widths))
    if kind.out_bias:
        sources[f"{ours}attn.out.bias"] = Source(((f"{theirs}o_proj.bias", (d,)),))
    if kind.qk_norm:
        sources[f"{ours}attn.q_norm"] = Source(((f"{theirs}q_norm.weight", (kind.qk_norm,)),), norm)
        sources[f"{ours}attn.k_norm"] = Source(((f"{theirs}k_norm.weight", (kind.qk_norm,)),), norm)
    return sources


def _ffn_sources(ours: str, theirs: str, ffn: Ffn, d: int) -> dict[str, Source]:
    names = ("gate_proj", "up_proj") if ffn.gated else ("up_proj",)
    sources = {
        f"{ours}mlp.up": Source(tuple((f"{theirs}{n}.weight", (ffn.width, d)) for n in names), "transpose"),
        f"{ours}mlp.down": Source(((f"{theirs}down_proj.weight", (d, ffn.width)),), "transpose"),
    }
    if ffn.bias:
        sources[f"{ours}mlp.up.bias"] = Source(tuple((f"{theirs}{n}.bias", (ffn.width,)) for n in names))
        sources[f"{ours}mlp.down.bias"] = Source(((f"{theirs}down_proj.bias", (d,)),))
    return sources


def _expert_sources(ours: str, theirs: str, ffn: Ffn, d: int, names: ExpertNames) -> dict[str, Source]:
    router, folder, ups, down = names
    each = [f"{theirs}{folder}.{e}." for e in range(ffn.experts)]
    up = tuple((f"{expert}{name}.weight", (ffn.width, d)) for expert in each for name in ups)
    downs = tuple((f"{expert}{down}.weight", (d, ffn.width)) for expert in each)
    return {
        f"{ours}moe.router": Source(((f"{theirs}{router}.weight", (ffn.experts, d)),), "transpose"),
        f"{ours}moe.up": Source(up, "experts", stack=len(ups)),
        f"{ours}moe.down": Source(downs, "experts"),
    }


def _qwen_windows(config: Config) -> list[int | None]:
    """Qwen windows the layers from ``max_window_layers`` on, if ``use_sliding_window`` says so."""
    count = config.many("num_hidden_layers")
    if not config.flag("use_sliding_window", False):
        return [None] * count
    full = config.values.get("max_window_layers", 28)
    if type(full) is not int:
        raise config.bad("max_window_layers", "a whole number is expected")
    return _listed_windows(config) or [None if i < full else config.size("sliding_window") for i in range(count)]


def _gemma_windows(config: Config, pattern: int) -> list[int | None]:
    """Every ``pattern``-th layer of Gemma 2 and 3 sees all, the others a window."""
    width = config.size("sliding_window", 4096)
    plain = [None if (i + 1) % pattern == 0 else width for i in range(config.many("num_hidden_layers"))]
    return _listed_windows(config) or plain


def _listed_windows(config: Config) -> list[int | None] | None:
    kinds = config.values.get("layer_types")
    if kinds is None:
        return None
    if not isinstance(kinds, list) or len(kinds) != config.many("num_hidden_layers"):
        raise config.bad("layer_types", "a list with one entry a layer is expected")
    allowed = {"full_attention", "sliding_attention"}
    if not set(map(str, kinds)) <= allowed:
        raise config.bad("layer_types", f"entries allowed: {', '.join(sorted(allowed))}")
    return [config.size("sliding_window", 4096) if kind == "sliding_attention" else None for kind in kinds]


def _act(config: Config, gemma: int) -> str:
    name = activation(config, "hidden_activation", "hidden_act", default="gelu_tanh" if gemma else "silu")
    return "gelu_tanh" if gemma and name == "gelu" else name  # Gemma 1's first files say gelu and mean its tanh form


def _expert_count(config: Config) -> int:
    return config.many("num_experts" if "num_experts" in config.values else "num_local_experts")
