"""GPT-2: LayerNorm, learned positions, one attention head width, plain GELU FFN, biases everywhere, tied head."""

from __future__ import annotations

from sim.analytic.model import Attention, Ffn, Layer, ModelShape
from sim.reference.config_file import Config
from sim.reference.numerics import Numerics
from sim.reference.sources import Family, Source, activation


def gpt2(config: Config) -> Family:
    """Read a GPT-2 configuration; matrices are stored ``[in, out]`` here, unlike everywhere else."""
    d, heads = config.size("n_embd"), config.size("n_head")
    if d % heads:
        raise config.bad("n_head", f"a divisor of n_embd ({d}) is expected")
    if config.flag("scale_attn_by_inverse_layer_idx", False) or not config.flag("scale_attn_weights", True):
        raise config.bad("scale_attn_by_inverse_layer_idx", "only the usual scaling of scores is supported")
    dim = d // heads
    attention = Attention(heads, heads, dim, dim, qkv_bias=True, out_bias=True, rope=False)
    act = activation(config, "activation_function", default="gelu_new")
    ffn = Ffn(config.size("n_inner", 4 * d), gated=False, bias=True, activation=act)
    context = config.size("n_positions", 1024)
    shape = ModelShape(
        name=str(config.values.get("_name_or_path") or "gpt2"),
        d_model=d,
        vocab=config.size("vocab_size"),
        layers=(Layer(attention, ffn),) * config.many("n_layer"),
        tied=config.flag("tie_word_embeddings", True),
        norm="layer",
        max_context=context,
        extra=(("positions", context * d),),
    )
    return Family(shape, Numerics(eps=config.number("layer_norm_epsilon", 1e-5)), _sources(shape, ffn, context))


def _sources(shape: ModelShape, ffn: Ffn, context: int) -> dict[str, Source]:
    d = shape.d_model
    sources = {
        "embed": Source((("transformer.wte.weight", (shape.vocab, d)),)),
        "positions": Source((("transformer.wpe.weight", (context, d)),)),
        **_both("norm.final", "transformer.ln_f", (d,)),
    }
    if not shape.tied:
        sources["logits"] = Source((("lm_head.weight", (shape.vocab, d)),), "transpose")
    for i in range(len(shape.layers)):
        ours, theirs = f"layers.{i}.", f"transformer.h.{i}."
        sources |= _both(f"{ours}norm.attn", f"{theirs}ln_1", (d,))
        sources |= _both(f"{ours}attn.qkv", f"{theirs}attn.c_attn", (d, 3 * d))
        sources |= _both(f"{ours}attn.out", f"{theirs}attn.c_proj", (d, d))
        sources |= _both(f"{ours}norm.mlp", f"{theirs}ln_2", (d,))
        sources |= _both(f"{ours}mlp.up", f"{theirs}mlp.c_fc", (d, ffn.width))
        sources |= _both(f"{ours}mlp.down", f"{theirs}mlp.c_proj", (ffn.width, d))
    return sources


def _both(ours: str, theirs: str, shape: tuple[int, ...]) -> dict[str, Source]:
    """Weight and bias of one module."""
    bias = Source(((f"{theirs}.bias", shape[-1:]),))
    return {ours: Source(((f"{theirs}.weight", shape),)), f"{ours}.bias": bias}
