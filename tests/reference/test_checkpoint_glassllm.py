"""A second oracle: ``glassllm``, a Llama in NumPy by someone else, with trained weights of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sim.analytic.model import Attention, Ffn, Layer, ModelShape
from sim.reference.numerics import Numerics
from sim.reference.rope import Rope
from sim.reference.transformer import Transformer

glassllm = pytest.importorskip("glassllm")
pytestmark = pytest.mark.parity


def _halves(columns: np.ndarray, heads: int) -> np.ndarray:
    """Columns of [d, heads * dim] from pairs side by side to pairs half a head apart."""
    paired = columns.reshape(len(columns), heads, -1, 2)
    return paired.swapaxes(2, 3).reshape(columns.shape)


def _twin(theirs: Any) -> Transformer:
    """The same weights in our model."""
    cfg, params = theirs.cfg, {k: p.data for k, p in theirs.named_parameters().items()}
    dim = cfg.d_model // cfg.n_heads
    kind = Attention(cfg.n_heads, cfg.n_kv_heads, dim, dim)
    layer = Layer(kind, Ffn(params["blocks.0.ffn.W1"].shape[1]))
    shape = ModelShape("glassllm", cfg.d_model, cfg.vocab_size, (layer,) * cfg.n_layers, tied=True)
    weights = {"embed": params["E"], "logits": params["E"].T, "norm.final": params["norm_f.gamma"]}
    for i in range(cfg.n_layers):
        ours, block = f"layers.{i}.", {k: params[f"blocks.{i}.{k}"] for k in _PARTS}
        queries, keys = _halves(block["attn.W_Q"], cfg.n_heads), _halves(block["attn.W_K"], cfg.n_kv_heads)
        weights[f"{ours}attn.qkv"] = np.concatenate([queries, keys, block["attn.W_V"]], axis=1)
        weights[f"{ours}attn.out"] = block["attn.W_O"]
        weights[f"{ours}mlp.up"] = np.concatenate([block["ffn.W1"], block["ffn.W3"]], axis=1)
        weights[f"{ours}mlp.down"] = block["ffn.W2"]
        weights[f"{ours}norm.attn"], weights[f"{ours}norm.mlp"] = block["norm1.gamma"], block["norm2.gamma"]
    return Transformer(shape, Numerics(eps=cfg.eps, rope=Rope(dim, cfg.rope_base)), weights)


_PARTS = ("attn.W_Q", "attn.W_K", "attn.W_V", "attn.W_O", "ffn.W1", "ffn.W3", "ffn.W2", "norm1.gamma", "norm2.gamma")


@pytest.mark.parametrize("language", ["en", "pt"])
def test_logits_equal_those_of_glassllm(language: str) -> None:
    """Prefill and cached decode of a trained third-party model, to 1e-4 of the largest logit."""
    theirs, tokenizer = glassllm.load_pretrained(language)
    ours = _twin(theirs)
    assert ours.shape.total_parameters == 852_608
    ids = np.array(tokenizer.encode("the rabbit took a watch out of its waistcoat pocket and looked at it"))[:60]
    want = theirs.forward(ids).data[0]
    assert np.abs(want).max() > 1
    cache = ours.new_cache()
    got = [ours.forward([ids[:9]], cache, rows="all")]
    got += [ours.forward([ids[i : i + 1]], cache) for i in range(9, len(ids))]
    assert np.abs(np.concatenate(got) - want).max() < 1e-4 * np.abs(want).max()
