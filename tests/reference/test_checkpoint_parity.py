"""Logits of random checkpoints of each family equal those of the ``transformers`` library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.reference import load

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

pytestmark = pytest.mark.parity
TOLERANCE = 1e-4  # relative to the largest logit
VOCAB, TOKENS = 97, 26
SMALL = {
    "vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
WINDOWED = {"sliding_window": 7, "attn_implementation": "eager"}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16, "rope_theta": 500.0}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-mha-tied-biased": ("Llama", {"num_key_value_heads": 4, "tie_word_embeddings": True,
                                        "attention_bias": True, "mlp_bias": True}),
    "llama-mqa-wide-heads": ("Llama", {"num_key_value_heads": 1, "head_dim": 20}),
    "llama-rope-llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama-rope-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
    "llama-rope-dynamic": ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
                                     "max_position_embeddings": 16}),
    "llama-rope-yarn": ("Llama", {"rope_parameters": YARN}),
    "llama-rope-yarn-untruncated": ("Llama", {"rope_parameters": {**YARN, "truncate": False}}),
    "mistral-windowed": ("Mistral", WINDOWED),
    "qwen2": ("Qwen2", {}),
    "qwen2-windowed": ("Qwen2", {**WINDOWED, "use_sliding_window": True, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3-moe": ("Qwen3Moe", {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
                               "head_dim": 12}),
    "gemma": ("Gemma", {"head_dim": 16}),
    "gemma2": ("Gemma2", {"head_dim": 16, "query_pre_attn_scalar": 24, **WINDOWED}),
    "gemma3": ("Gemma3", {"head_dim": 16, "query_pre_attn_scalar": 24, **WINDOWED}),
    "gemma3-scaled": ("Gemma3", {"head_dim": 16, **WINDOWED, "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}),
    "mixtral": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "gpt2": ("GPT2", {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64}),
}  # fmt: skip


def _config_class(kind: str) -> Any:
    return getattr(transformers, {"Gemma3": "Gemma3TextConfig"}.get(kind, f"{kind}Config"))


def _model_class(kind: str) -> Any:
    return getattr(transformers, {"GPT2": "GPT2LMHeadModel"}.get(kind, f"{kind}ForCausalLM"))


def _save(kind: str, options: dict[str, Any], folder: Path, **save: Any) -> Any:
    """A random model, its norms and biases too (they start as ones and zeros), saved to ``folder``."""
    torch.manual_seed(7)
    sizes = {"vocab_size": VOCAB} if kind in ("GPT2", "T5") else SMALL
    config = _config_class(kind)(**{**sizes, **options})
    cls = transformers.T5ForConditionalGeneration if kind == "T5" else _model_class(kind)
    model = cls(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.3 if parameter.ndim == 1 else 2.5 * parameter.shape[-1] ** -0.5
            parameter.add_(torch.randn_like(parameter) * spread * 0.5)
    model.save_pretrained(folder, **save)
    return model


def _error(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.abs(got - want).max() / np.abs(want).max())


@pytest.mark.parametrize("case", CASES)
def test_prefill_matches_transformers(case: str, tmp_path: Path) -> None:
    """One pass over a prompt gives the library's logits at every position."""
    kind, options = CASES[case]
    theirs = _save(kind, options, tmp_path)
    ours = load(tmp_path)
    prompt = np.random.default_rng(1).integers(0, VOCAB, TOKENS)
    with torch.no_grad():
        want = theirs(torch.tensor(prompt[None])).logits[0].numpy()
    assert np.abs(want).max() > 0.5  # a model whose logits all vanish would prove nothing
    assert _error(ours.forward([prompt], ours.new_cache(), rows="all"), want) < TOLERANCE
    assert ours.shape.total_parameters == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("case", CASES)
def test_cached_decode_matches_transformers(case: str, tmp_path: Path) -> None:
    """Chunked prefill, then one token at a time beside another sequence, gives what the library's cache gives."""
    kind, options = CASES[case]
    theirs = _save(kind, options, tmp_path)
    ours = load(tmp_path)
    rng = np.random.default_rng(2)
    prompt, other = rng.integers(0, VOCAB, TOKENS), rng.integers(0, VOCAB, TOKENS)
    cut = TOKENS if case == "llama-rope-dynamic" else 9  # dynamic NTK: chunks rotate with another base, by design
    want = _decoded(theirs, prompt, first=15)
    cache = ours.new_cache(2)
    ours.forward([prompt[: min(cut, 15)], other[:3]], cache, rows="none")
    if cut < 15:
        ours.forward([prompt[cut:15]], cache, rows="none")
    got = [ours.forward([prompt[i : i + 1], other[i - 12 : i - 11]], cache)[0] for i in range(15, TOKENS)]
    assert _error(np.stack(got), want) < TOLERANCE


def _decoded(model: Any, prompt: np.ndarray, first: int) -> np.ndarray:
    """The library's logits for tokens from ``first`` on, each decoded with its cache."""
    out = []
    with torch.no_grad():
        past = model(torch.tensor(prompt[None, :first]), use_cache=True).past_key_values
        for token in prompt[first:]:
            step = model(torch.tensor([[token]]), past_key_values=past, use_cache=True)
            out.append(step.logits[0, -1].numpy())
            past = step.past_key_values
    return np.stack(out)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_files_load(dtype: str, tmp_path: Path) -> None:
    """Numbers stored in 16 bits are widened, not reinterpreted."""
    model = _save("Llama", {}, tmp_path / "single").to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "half")
    want_model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "half", dtype=torch.float32).eval()
    prompt = np.arange(12)
    with torch.no_grad():
        want = want_model(torch.tensor(prompt[None])).logits[0].numpy()
    ours = load(tmp_path / "half")
    assert _error(ours.forward([prompt], ours.new_cache(), rows="all"), want) < TOLERANCE


def test_sharded_checkpoint_equals_single_file(tmp_path: Path) -> None:
    """A sharded index gives the same model as one file, bit for bit."""
    model = _save("Llama", {}, tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="40KB")
    assert len(json.loads((tmp_path / "many/model.safetensors.index.json").read_text())["weight_map"]) > 10
    one, many = load(tmp_path / "one"), load(tmp_path / "many")
    assert all((one.weights[key] == many.weights[key]).all() for key in one.weights)


T5_CASES: dict[str, dict[str, Any]] = {
    "t5": {"feed_forward_proj": "relu"},
    "t5-v1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_decoder_layers": 2},
}


@pytest.mark.parametrize("case", T5_CASES)
def test_t5_matches_transformers(case: str, tmp_path: Path) -> None:
    """Encoder, cross attention and relative positions, prefill and cached decode, two texts of unequal length."""
    sizes = {"d_model": 48, "d_kv": 10, "d_ff": 64, "num_layers": 3, "num_heads": 4,
             "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20}  # fmt: skip
    theirs = _save("T5", {**sizes, **T5_CASES[case]}, tmp_path)
    ours = load(tmp_path)
    rng = np.random.default_rng(3)
    source, other, target = rng.integers(0, VOCAB, 33), rng.integers(0, VOCAB, 9), rng.integers(0, VOCAB, TOKENS)
    with torch.no_grad():
        want = theirs(input_ids=torch.tensor(source[None]), decoder_input_ids=torch.tensor(target[None]))
    cache = ours.new_cache(2)
    states = ours.encode([source, other], cache)
    assert _error(states[0], want.encoder_last_hidden_state[0].numpy()) < TOLERANCE
    whole = ours.forward([target], cache.copy(), rows="all")
    ours.forward([target[:8], target[:2]], cache, rows="none")
    steps = [ours.forward([target[i : i + 1]], cache)[0] for i in range(8, TOKENS)]
    assert _error(whole, want.logits[0].numpy()) < TOLERANCE
    assert _error(np.stack(steps), want.logits[0, 8:].numpy()) < TOLERANCE
