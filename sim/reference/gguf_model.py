"""A model out of a GGUF file: its metadata read as a Hugging Face configuration, its tensors under those names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sim.reference.assembly import build
from sim.reference.config_file import Config
from sim.reference.families import describe
from sim.reference.gguf_file import Gguf, GgufTensor, read_gguf
from sim.reference.transformer import Transformer

Array = NDArray[Any]
ARCHITECTURES = ("llama", "qwen2", "qwen3")
KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True)
class Unturned:
    """Query or key projection of a Llama GGUF file, its rows put back into the order of the half-rotation.

    The converter lays the two numbers of a rotated pair side by side; here they lie half a head apart.
    """

    tensor: GgufTensor
    heads: int

    @property
    def path(self) -> Path:
        """The file it lies in."""
        return self.tensor.path

    @property
    def name(self) -> str:
        """Its name there."""
        return self.tensor.name

    @property
    def shape(self) -> tuple[int, ...]:
        """[heads * head_dim, d]."""
        return self.tensor.shape

    def read(self) -> Array:
        """The numbers, [shape]."""
        raw = self.tensor.read()
        paired = raw.reshape(self.heads, -1, 2, *raw.shape[1:])  # [heads, dim / 2, 2, d]
        return paired.swapaxes(1, 2).reshape(raw.shape)


def load_gguf(path: Path, dtype: DTypeLike = np.float32, *, exact: bool = False) -> Transformer:
    """Load a GGUF file of the Llama, Qwen 2 or Qwen 3 architecture; weights are widened to ``dtype``.

    Raises ValueError naming file and key or tensor when anything is missing, cut off or not supported.
    """
    file = read_gguf(path)
    config = _config(file)
    family = describe(config)
    return build(family, _renamed(file, config), path, dtype, exact=exact)


def _config(file: Gguf) -> Config:
    kind = file.metadata.get("general.architecture")
    if kind not in ARCHITECTURES:
        allowed = ", ".join(ARCHITECTURES)
        raise ValueError(f"{file.path}: general.architecture: {kind!r} is not supported, known: {allowed}")
    _refuse(file, str(kind))
    values: dict[str, Any] = {"model_type": kind, "_name_or_path": file.metadata.get("general.name")}
    values |= {ours: file.metadata.get(f"{kind}.{theirs}") for theirs, ours in KEYS.items()}
    embedding = file.tensors.get("token_embd.weight")
    values["vocab_size"] = embedding.shape[0] if embedding is not None else None
    values["tie_word_embeddings"] = "output.weight" not in file.tensors
    values["attention_bias"] = kind == "llama" and "blk.0.attn_q.bias" in file.tensors
    return Config(str(file.path), values)


def _refuse(file: Gguf, kind: str) -> None:
    """What would change the numbers and is not implemented must not be passed over in silence."""
    scaling = file.metadata.get(f"{kind}.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in file.tensors:
        raise ValueError(f"{file.path}: {kind}.rope.scaling.type: RoPE scaling in GGUF files is not supported")
    if file.metadata.get(f"{kind}.expert_count", 0):
        raise ValueError(f"{file.path}: {kind}.expert_count: experts in GGUF files are not supported")


def _renamed(file: Gguf, config: Config) -> dict[str, GgufTensor | Unturned]:
    """The tensors under their Hugging Face names."""
    turned = {}
    if config.values["model_type"] == "llama":
        heads = config.size("num_attention_heads")
        turned = {"attn_q": heads, "attn_k": config.size("num_key_value_heads", heads)}
    out: dict[str, GgufTensor | Unturned] = {}
    for name, tensor in file.tensors.items():
        stem, _, suffix = name.rpartition(".")
        if stem in TOP:
            out[f"{TOP[stem]}.{suffix}"] = tensor
        elif stem.startswith("blk.") and stem.count(".") == 2 and stem.split(".")[2] in LAYER:
            _, layer, part = stem.split(".")
            key = f"model.layers.{layer}.{LAYER[part]}.{suffix}"
            heads = turned.get(part, 0)
            out[key] = Unturned(tensor, heads) if heads and tensor.shape[0] % (2 * heads) == 0 else tensor
    return out
