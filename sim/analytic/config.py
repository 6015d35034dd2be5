"""A Hugging Face ``config.json`` read as a ModelShape: one short function a family, every number checked.

What a config leaves out takes the default of that family's configuration class in the ``transformers`` library.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sim.analytic.config_keys import MISSING, MOST_LAYERS, MOST_TOKENS, Keys, short
from sim.analytic.model import Attention, Ffn, Latent, Layer, ModelShape


def shape_from_config(config: Mapping[str, Any], name: str, source: str = "config.json") -> ModelShape:
    """The shape that a config describes; of a multimodal one, its ``text_config``.

    Raises ValueError, one line naming `source`, for an unknown ``model_type`` and for absent or absurd keys.
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"{source}: a config must be a JSON object of keys and values")
    inner = config.get("text_config")
    if isinstance(inner, Mapping):
        outer = {key: config.get(key) for key in ("model_type", "tie_word_embeddings")}
        config = {**outer, **inner}
    family = config.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        close = difflib.get_close_matches(str(family)[:40], FAMILIES, n=1) if isinstance(family, str) else []
        hint = f"; did you mean {close[0]!r}?" if close else ""
        known = ", ".join(sorted(FAMILIES))
        raise ValueError(f"{source}: model_type is {short(family)}, supported: {known}{hint}")
    return FAMILIES[family](Keys(config, source), name)


def _heads(keys: Keys, width: int, default_kv: int | None = None, head_dim: int | None = None) -> Attention:
    """Plain or grouped attention from the usual keys; `head_dim` is the family's default where it has one."""
    heads = keys.whole("num_attention_heads")
    kv_heads = keys.whole("num_key_value_heads", default_kv or heads)
    keys.share("num_key_value_heads", kv_heads, "num_attention_heads", heads)
    if keys.config.get("head_dim") is None and head_dim is None:
        head_dim = keys.share("num_attention_heads", heads, "hidden_size", width)
    dim = keys.whole("head_dim", head_dim)
    return Attention(heads, kv_heads, dim, dim)


def _decoder(keys: Keys, name: str, layers: Sequence[Layer], tied: bool, **more: Any) -> ModelShape:
    """A decoder from the keys that nearly all families share."""
    return ModelShape(
        name=name,
        d_model=keys.whole("hidden_size"),
        vocab=keys.whole("vocab_size", most=1 << 24),
        layers=tuple(layers),
        tied=keys.flag("tie_word_embeddings", tied),
        max_context=keys.whole("max_position_embeddings", 1 << 20, most=MOST_TOKENS),
        **more,
    )


def _depth(keys: Keys, key: str = "num_hidden_layers") -> int:
    return keys.whole(key, most=MOST_LAYERS)


def _ffn(keys: Keys, activation: str = "silu", key: str = "hidden_act") -> Ffn:
    return Ffn(keys.whole("intermediate_size"), activation=keys.text(key, activation))


def _llama(keys: Keys, name: str) -> ModelShape:
    """Llama; `mlp_gated: false` (this project's own small models) drops the gate."""
    bias, mlp_bias = keys.flag("attention_bias", False), keys.flag("mlp_bias", False)
    attention = replace(_heads(keys, keys.whole("hidden_size")), qkv_bias=bias, out_bias=bias)
    ffn = replace(_ffn(keys), bias=mlp_bias, gated=keys.flag("mlp_gated", True))
    return _decoder(keys, name, [Layer(attention, ffn)] * _depth(keys), tied=False)


def _mistral(keys: Keys, name: str) -> ModelShape:
    attention = replace(_heads(keys, keys.whole("hidden_size"), default_kv=8), window=keys.window())
    return _decoder(keys, name, [Layer(attention, _ffn(keys))] * _depth(keys), tied=False)


def _mixtral(keys: Keys, name: str) -> ModelShape:
    attention = replace(_heads(keys, keys.whole("hidden_size"), default_kv=8), window=keys.window())
    ffn = _experts(keys, _ffn(keys), "num_local_experts", 2)
    return _decoder(keys, name, [Layer(attention, ffn)] * _depth(keys), tied=False)


def _experts(keys: Keys, ffn: Ffn, key: str, chosen: Any = MISSING) -> Ffn:
    """The same block as a mixture of experts."""
    experts = keys.whole(key, most=1 << 16)
    active = keys.whole("num_experts_per_tok", chosen)
    return replace(ffn, experts=experts, experts_per_token=keys.at_most("num_experts_per_tok", active, key, experts))


def _qwen2(keys: Keys, name: str) -> ModelShape:
    """Qwen2 and 2.5: biases on queries, keys and values only; the window counts from layer max_window_layers on."""
    attention = replace(_heads(keys, keys.whole("hidden_size")), qkv_bias=True)
    return _decoder(keys, name, _windowed_tail(keys, attention, _ffn(keys)), tied=False)


def _windowed_tail(keys: Keys, attention: Attention, ffn: Ffn) -> list[Layer]:
    depth, window = _depth(keys), keys.window()
    first = keys.whole("max_window_layers", depth, most=MOST_LAYERS, least=0)
    if not keys.flag("use_sliding_window", False) or window is None:
        first = depth
    near = replace(attention, window=window)
    return [Layer(attention if index < first else near, ffn) for index in range(depth)]


def _qwen3_attention(keys: Keys) -> Attention:
    """Qwen3: no biases unless asked for, RMSNorm over each query and key head."""
    attention = _heads(keys, keys.whole("hidden_size"), head_dim=128)
    bias = keys.flag("attention_bias", False)
    return replace(attention, qk_norm=attention.head_dim, qkv_bias=bias, out_bias=bias)


def _qwen3(keys: Keys, name: str) -> ModelShape:
    return _decoder(keys, name, _windowed_tail(keys, _qwen3_attention(keys), _ffn(keys)), tied=False)


def _qwen3_moe(keys: Keys, name: str) -> ModelShape:
    dense = _ffn(keys)
    sparse = _experts(keys, replace(dense, width=keys.whole("moe_intermediate_size")), "num_experts")
    return _decoder(keys, name, _sparse_layers(keys, _qwen3_attention(keys), dense, sparse), tied=False)


def _qwen2_moe(keys: Keys, name: str) -> ModelShape:
    """Qwen1.5-MoE and Qwen2-MoE: a shared expert behind a learned scalar gate."""
    dense = _ffn(keys)
    shared = keys.whole("shared_expert_intermediate_size")
    sparse = replace(dense, width=keys.whole("moe_intermediate_size"), shared_width=shared, shared_gate=True)
    attention = replace(_heads(keys, keys.whole("hidden_size")), qkv_bias=True)
    layers = _sparse_layers(keys, attention, dense, _experts(keys, sparse, "num_experts"))
    return _decoder(keys, name, layers, tied=False)


def _sparse_layers(keys: Keys, attention: Attention, dense: Ffn, sparse: Ffn) -> list[Layer]:
    step = keys.whole("decoder_sparse_step", 1, most=MOST_LAYERS)
    only = keys.config.get("mlp_only_layers") or []
    if not isinstance(only, list) or any(isinstance(i, bool) or not isinstance(i, int) for i in only):
        keys.refuse("mlp_only_layers", "a list of layer numbers")
    depth = _depth(keys)
    return [Layer(attention, dense if i in only or (i + 1) % step else sparse) for i in range(depth)]


def _gpt_oss(keys: Keys, name: str) -> ModelShape:
    """gpt-oss: biases everywhere, one sink logit a head, every other layer a window, expert weights in MXFP4."""
    bias = keys.flag("attention_bias", True)
    full = replace(_heads(keys, keys.whole("hidden_size"), 8, 64), qkv_bias=bias, out_bias=bias, sinks=True)
    ffn = replace(_experts(keys, _ffn(keys), "num_local_experts"), bias=True, router_bias=True)
    kinds = keys.words("layer_types", _depth(keys), LAYER_TYPES) or _every(2, _depth(keys))
    quantised = keys.config.get("quantization_config")
    method = quantised.get("quant_method") if isinstance(quantised, Mapping) else None
    layers = _by_type(kinds, full, keys.window() or 128, ffn, norms=2)
    return _decoder(keys, name, layers, tied=False, expert_format="mxfp4" if method == "mxfp4" else None)


LAYER_TYPES = ("sliding_attention", "full_attention")


def _every(period: int, depth: int) -> tuple[str, ...]:
    """Layer types with full attention at every `period`-th layer and a window elsewhere."""
    return tuple(LAYER_TYPES[(index + 1) % period == 0] for index in range(depth))


def _by_type(kinds: Sequence[str], full: Attention, window: int, ffn: Ffn, norms: int) -> list[Layer]:
    near = replace(full, window=window)
    return [Layer(full if kind == "full_attention" else near, ffn, norms) for kind in kinds]


def _deepseek(keys: Keys, name: str) -> ModelShape:
    """DeepSeek-V2 and V3: latent attention, a few dense layers, then routed and shared experts.

    V3's router bias (``noaux_tc``) counts as weights; the extra prediction layer is not part of the shape.
    """
    dense = _ffn(keys)
    shared = keys.whole("n_shared_experts", 0, least=0) * keys.whole("moe_intermediate_size")
    sparse = replace(
        _experts(keys, replace(dense, width=keys.whole("moe_intermediate_size")), "n_routed_experts"),
        shared_width=shared,
        router_bias=keys.text("topk_method", "greedy") == "noaux_tc",
    )
    first, step = keys.whole("first_k_dense_replace", 0, least=0), keys.whole("moe_layer_freq", 1)
    attention = _latent(keys)
    layers = [Layer(attention, sparse if i >= first and i % step == 0 else dense) for i in range(_depth(keys))]
    return _decoder(keys, name, layers, tied=False)


def _kimi(keys: Keys, name: str) -> ModelShape:
    """Kimi-K2: V3's shape; from K2-Thinking on, experts are 4-bit integers with a 16-bit scale for 32 of them."""
    quantised = keys.config.get("quantization_config")
    packed = isinstance(quantised, Mapping) and quantised.get("quant_method") == "compressed-tensors"
    return replace(_deepseek(keys, name), expert_format="4bit+16/32" if packed else None)


def _minimax_m2(keys: Keys, name: str) -> ModelShape:
    """MiniMax-M2: experts in every layer, RMSNorm over all query and all key heads (counted as one vector each)."""
    attention = _heads(keys, keys.whole("hidden_size"), head_dim=128)
    ffn = replace(_experts(keys, _ffn(keys), "num_local_experts"), router_bias=True)
    return _decoder(keys, name, [Layer(replace(attention, qk_norm=128), ffn)] * _depth(keys), tied=False)


def _latent(keys: Keys) -> Attention:
    q_rank = None if keys.config.get("q_lora_rank") is None else keys.whole("q_lora_rank")
    nope, rope = keys.whole("qk_nope_head_dim"), keys.whole("qk_rope_head_dim")
    latent = Latent(q_rank, keys.whole("kv_lora_rank"), rope, nope)
    heads, bias = keys.whole("num_attention_heads"), keys.flag("attention_bias", False)
    if bias:
        keys.refuse("attention_bias", "false (biased latent attention is not modelled)")
    return Attention(heads, heads, nope + rope, keys.whole("v_head_dim"), latent=latent)


def _gemma(keys: Keys, name: str) -> ModelShape:
    attention = _heads(keys, keys.whole("hidden_size"), head_dim=256)
    ffn = _ffn(keys, "gelu_pytorch_tanh", "hidden_activation")
    return _decoder(keys, name, [Layer(attention, ffn)] * _depth(keys), tied=True)


def _gemma2(keys: Keys, name: str) -> ModelShape:
    """Gemma 2: four norms a layer, window and full attention in turn."""
    full = _heads(keys, keys.whole("hidden_size"), default_kv=4, head_dim=256)
    ffn = _ffn(keys, "gelu_pytorch_tanh", "hidden_activation")
    kinds = keys.words("layer_types", _depth(keys), LAYER_TYPES) or _every(2, _depth(keys))
    layers = _by_type(kinds, full, keys.window() or 4096, ffn, norms=4)
    return _decoder(keys, name, layers, tied=True)


def _gemma3(keys: Keys, name: str) -> ModelShape:
    """Gemma 3: as Gemma 2 with query and key norms and full attention every sixth layer.

    Configs of the multimodal sizes leave out what equals the 4B's values.
    """
    filled = Keys({**GEMMA3_DEFAULTS, **{k: v for k, v in keys.config.items() if v is not None}}, keys.source)
    heads = _heads(filled, filled.whole("hidden_size"))
    full = replace(heads, qk_norm=heads.head_dim)
    ffn = _ffn(filled, "gelu_pytorch_tanh", "hidden_activation")
    period = filled.whole("sliding_window_pattern", 6, most=MOST_LAYERS)
    kinds = filled.words("layer_types", _depth(filled), LAYER_TYPES) or _every(period, _depth(filled))
    layers = _by_type(kinds, full, filled.window() or 4096, ffn, norms=4)
    return _decoder(filled, name, layers, tied=True)


GEMMA3_DEFAULTS: Mapping[str, int] = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
}


def _biased(heads: int, width: int, keys: Keys, key: str, causal: bool = True) -> Attention:
    """Multi-head attention with biases and no rotary embedding: GPT-2, OPT, BLOOM, BERT."""
    dim = keys.share(key, heads, "the model width", width)
    return Attention(heads, heads, dim, dim, causal=causal, qkv_bias=True, out_bias=True, rope=False)


def _gpt2(keys: Keys, name: str) -> ModelShape:
    width, context = keys.whole("n_embd"), keys.whole("n_positions", 1024, most=MOST_TOKENS)
    attention = _biased(keys.whole("n_head"), width, keys, "n_head")
    inner = keys.whole("n_inner", 4 * width)
    ffn = Ffn(inner, gated=False, bias=True, activation=keys.text("activation_function", "gelu_new"))
    return ModelShape(
        name=name,
        d_model=width,
        vocab=keys.whole("vocab_size", 50257, most=1 << 24),
        layers=(Layer(attention, ffn),) * _depth(keys, "n_layer"),
        tied=keys.flag("tie_word_embeddings", True),
        norm="layer",
        max_context=context,
        extra=(("positions", context * width),),
    )


def _opt(keys: Keys, name: str) -> ModelShape:
    """OPT: learned positions with an offset of two. Only pre-norm sizes with one width (not 350M)."""
    width = keys.whole("hidden_size")
    if keys.whole("word_embed_proj_dim", width) != width:
        keys.refuse("word_embed_proj_dim", f"the same as hidden_size ({width})")
    if not keys.flag("do_layer_norm_before", True):
        keys.refuse("do_layer_norm_before", "true")
    attention = _biased(keys.whole("num_attention_heads"), width, keys, "num_attention_heads")
    activation = keys.text("activation_function", "relu")
    ffn = Ffn(keys.whole("ffn_dim"), gated=False, bias=True, activation=activation)
    context = keys.whole("max_position_embeddings", 2048, most=MOST_TOKENS)
    extra = (("positions", (context + 2) * width),)
    return _decoder(keys, name, [Layer(attention, ffn)] * _depth(keys), tied=True, norm="layer", extra=extra)


def _bloom(keys: Keys, name: str) -> ModelShape:
    """BLOOM: ALiBi instead of positions, a norm on the embedding; old configs say n_embed and num_attention_heads."""
    aliases = (("n_embed", "hidden_size"), ("num_attention_heads", "n_head"), ("num_hidden_layers", "n_layer"))
    config = {new: keys.config[old] for old, new in aliases if old in keys.config}
    keys = Keys({**config, **keys.config, "max_position_embeddings": keys.config.get("seq_length")}, keys.source)
    width = keys.whole("hidden_size")
    attention = _biased(keys.whole("n_head"), width, keys, "n_head")
    ffn = Ffn(4 * width, gated=False, bias=True, activation="gelu")
    layers = [Layer(attention, ffn)] * _depth(keys, "n_layer")
    return _decoder(keys, name, layers, tied=True, norm="layer", extra=(("norm.embed", 2 * width),))


def _t5(keys: Keys, name: str) -> ModelShape:
    """T5 and T5 v1.1 (gated): encoder and decoder, each with one table of relative-position biases."""
    dim, heads = keys.whole("d_kv"), keys.whole("num_heads")
    width, depth = keys.whole("d_model"), _depth(keys, "num_layers")
    feed = keys.text("feed_forward_proj", "relu")
    ffn = Ffn(keys.whole("d_ff"), gated=feed.startswith("gated-"), activation=feed.removeprefix("gated-"))
    own = Attention(heads, heads, dim, dim, rope=False)
    decoder = Layer(own, ffn, norms=3, cross=replace(own, causal=False))
    buckets = keys.whole("relative_attention_num_buckets", 32)
    return ModelShape(
        name=name,
        d_model=width,
        vocab=keys.whole("vocab_size", 32128, most=1 << 24),
        layers=(decoder,) * keys.whole("num_decoder_layers", depth, most=MOST_LAYERS),
        encoder=(Layer(replace(own, causal=False), ffn),) * depth,
        tied=keys.flag("tie_word_embeddings", True),
        extra=(("relative_bias", 2 * buckets * heads),),
    )


def _encoder(keys: Keys, name: str, width: int, layers: Sequence[Layer], extra: Mapping[str, int]) -> ModelShape:
    """A BERT-like encoder: post-norm (no final one), norm on the embedding, learned positions, no output head."""
    context = keys.whole("max_position_embeddings", 512, most=MOST_TOKENS)
    small = {"positions": context * width, "norm.embed": 2 * width, **extra}
    return ModelShape(
        name=name,
        d_model=width,
        vocab=keys.whole("vocab_size", 30522, most=1 << 24),
        layers=(),
        encoder=tuple(layers),
        head=False,
        norm="layer",
        final_norm=False,
        max_context=context,
        extra=tuple(small.items()),
    )


def _bert(keys: Keys, name: str) -> ModelShape:
    """BERT with token types and pooler, without a task head."""
    width = keys.whole("hidden_size")
    attention = _biased(keys.whole("num_attention_heads"), width, keys, "num_attention_heads", causal=False)
    ffn = Ffn(keys.whole("intermediate_size"), False, True, keys.text("hidden_act", "gelu"))
    extra = {"types": keys.whole("type_vocab_size", 2) * width, "pooler": width * width + width}
    return _encoder(keys, name, width, [Layer(attention, ffn)] * _depth(keys), extra)


def _distilbert(keys: Keys, name: str) -> ModelShape:
    width = keys.whole("dim")
    attention = _biased(keys.whole("n_heads"), width, keys, "n_heads", causal=False)
    ffn = Ffn(keys.whole("hidden_dim"), False, True, keys.text("activation", "gelu"))
    return _encoder(keys, name, width, [Layer(attention, ffn)] * _depth(keys, "n_layers"), {})


def _vit(keys: Keys, name: str) -> ModelShape:
    """ViT with its classifier: pre-norm, a token a patch and one more. Patches are projected by the embedding's matrix,
    whose product is counted as a gather (under 1 % of the FLOPs).
    """
    width, patch = keys.whole("hidden_size"), keys.whole("patch_size", 16)
    attention = _biased(keys.whole("num_attention_heads"), width, keys, "num_attention_heads", causal=False)
    ffn = Ffn(keys.whole("intermediate_size"), False, True, keys.text("hidden_act", "gelu"))
    tokens = keys.share("patch_size", patch, "image_size", keys.whole("image_size", 224)) ** 2 + 1
    labels = keys.whole("num_labels", 1000, least=0)
    small = {"positions": tokens * width, "tokens.class": width, "embed.bias": width}
    shape = _encoder(keys, name, width, [Layer(attention, ffn)] * _depth(keys), {})
    return replace(
        shape,
        vocab=keys.whole("num_channels", 3) * patch * patch,
        final_norm=True,
        max_context=tokens,
        extra=(*small.items(), ("classifier", (width + 1) * labels)),
    )


FAMILIES: dict[str, Callable[[Keys, str], ModelShape]] = {
    "llama": _llama,
    "mistral": _mistral,
    "mixtral": _mixtral,
    "qwen2": _qwen2,
    "qwen2_moe": _qwen2_moe,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
    "gpt_oss": _gpt_oss,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
    "kimi_k2": _kimi,
    "minimax_m2": _minimax_m2,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "gemma3_text": _gemma3,
    "gpt2": _gpt2,
    "opt": _opt,
    "bloom": _bloom,
    "t5": _t5,
    "bert": _bert,
    "distilbert": _distilbert,
    "vit": _vit,
}
