"""T5 (arXiv 1910.10683) and its version 1.1: encoder and decoder, relative positions, unscaled scores."""

from __future__ import annotations

from dataclasses import replace

from sim.analytic.model import Attention, Ffn, Layer, ModelShape
from sim.reference.config_file import Config
from sim.reference.numerics import ACTIVATIONS, Numerics, RelativeBias
from sim.reference.sources import Family, Source


def t5(config: Config) -> Family:
    """Read a T5 configuration. The head is the embedding unless the checkpoint holds a ``lm_head.weight``."""
    d, heads, dim = config.size("d_model"), config.size("num_heads"), config.size("d_kv")
    kind = Attention(heads, heads, dim, dim, rope=False)
    ffn = _ffn(config)
    encoder, decoder = config.many("num_layers"), config.many("num_decoder_layers", config.many("num_layers"))
    buckets = config.size("relative_attention_num_buckets", 32)
    tied = config.flag("tie_word_embeddings", True)
    shape = ModelShape(
        name=str(config.values.get("_name_or_path") or "t5"),
        d_model=d,
        vocab=config.size("vocab_size"),
        layers=(Layer(kind, ffn, norms=3, cross=replace(kind, causal=False)),) * decoder,
        encoder=(Layer(Attention(heads, heads, dim, dim, causal=False, rope=False), ffn),) * encoder,
        tied=tied,
        extra=(("relative_bias", 2 * buckets * heads),),
    )
    numerics = Numerics(
        eps=config.number("layer_norm_epsilon", 1e-6),
        relative=RelativeBias(buckets, config.size("relative_attention_max_distance", 128)),
        attention_scale=1.0,
        logit_scale=d**-0.5 if config.flag("scale_decoder_outputs", tied) else 1.0,
    )
    return Family(shape, numerics, _sources(shape, buckets))


def _ffn(config: Config) -> Ffn:
    words = config.text("feed_forward_proj").split("-") if "feed_forward_proj" in config.values else ["relu"]
    act = "gelu_new" if words == ["gated", "gelu"] else words[-1]
    if act not in ACTIVATIONS or len(words) > 2 or (len(words) == 2 and words[0] != "gated"):
        raise config.bad("feed_forward_proj", "relu, gated-gelu, or [gated-]ACTIVATION is expected")
    return Ffn(config.size("d_ff"), gated=len(words) == 2, activation=act)


def _sources(shape: ModelShape, buckets: int) -> dict[str, Source]:
    d = shape.d_model
    sources = {
        "embed": Source((("shared.weight", (shape.vocab, d)),)),
        "logits": Source((("lm_head.weight", (shape.vocab, d)),), "transpose", optional=shape.tied),
    }
    for ours, theirs, layers in (("", "decoder.", shape.layers), ("encoder.", "encoder.", shape.encoder)):
        table = f"{theirs}block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        sources[f"{ours}relative"] = Source(((table, (buckets, layers[0].attention.heads)),))
        sources[f"{ours}norm.final"] = Source(((f"{theirs}final_layer_norm.weight", (d,)),))
        for i, layer in enumerate(layers):
            sources |= _layer(f"{ours}layers.{i}.", f"{theirs}block.{i}.layer.", layer, d)
    return sources


def _layer(ours: str, theirs: str, layer: Layer, d: int) -> dict[str, Source]:
    inner, ffn = layer.attention.heads * layer.attention.head_dim, layer.ffn
    last = 1 if layer.cross is None else 2
    sources = {
        f"{ours}norm.attn": Source(((f"{theirs}0.layer_norm.weight", (d,)),)),
        f"{ours}attn.qkv": _matrices(f"{theirs}0.SelfAttention.", "qkv", (inner, d)),
        f"{ours}attn.out": _matrices(f"{theirs}0.SelfAttention.", "o", (d, inner)),
        f"{ours}norm.mlp": Source(((f"{theirs}{last}.layer_norm.weight", (d,)),)),
        f"{ours}mlp.up": _matrices(f"{theirs}{last}.DenseReluDense.", _ups(ffn), (ffn.width, d)),
        f"{ours}mlp.down": _matrices(f"{theirs}{last}.DenseReluDense.", ["wo"], (d, ffn.width)),
    }
    if layer.cross is not None:
        sources[f"{ours}norm.cross"] = Source(((f"{theirs}1.layer_norm.weight", (d,)),))
        for op, names, shape in (("q", "q", (inner, d)), ("kv", "kv", (inner, d)), ("out", "o", (d, inner))):
            sources[f"{ours}cross.{op}"] = _matrices(f"{theirs}1.EncDecAttention.", names, shape)
    return sources


def _ups(ffn: Ffn) -> list[str]:
    return ["wi_0", "wi_1"] if ffn.gated else ["wi"]


def _matrices(module: str, names: str | list[str], shape: tuple[int, int]) -> Source:
    return Source(tuple((f"{module}{name}.weight", shape) for name in names), "transpose")
