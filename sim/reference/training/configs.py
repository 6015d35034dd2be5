"""Shapes and training budgets of every member of the shipped family.

One place for the numbers: the trainer reads them, `config.json` is written from them, the tests compare the two.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

VOCAB_SIZE = 1024
CONTEXT_TOKENS = 256


@dataclass(frozen=True)
class NetConfig:
    """A decoder in the words of Hugging Face's `LlamaConfig`; every width is in elements, every matrix without bias.

    `mlp_gated=False` with `hidden_act="relu"` is the one departure from Llama: `down(relu(up(x)))`.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_act: str = "silu"
    mlp_gated: bool = True
    vocab_size: int = VOCAB_SIZE
    max_position_embeddings: int = CONTEXT_TOKENS
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` of this shape, head tied to the embedding."""
        fixed = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "tie_word_embeddings": True,
            "attention_bias": False,
            "mlp_bias": False,
            "rope_scaling": None,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "dtype": "float16",
        }
        own = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**fixed, **own}


@dataclass(frozen=True)
class Budget:
    """How long and how hard one stage trains: optimiser steps of 8 windows of 256 tokens, peak learning rate."""

    steps: int
    lr: float


PRIMARY = NetConfig(160, 448, 4, 4, 2, 40)
DRAFTER = NetConfig(96, 192, 2, 3, 1, 32)
TINY = NetConfig(64, 160, 1, 2, 1, 32)
MATFORMER = NetConfig(128, 512, 3, 4, 2, 32)
RELU = NetConfig(128, 768, 2, 4, 2, 32, hidden_act="relu", mlp_gated=False)
TANDEM = replace(DRAFTER)

MATFORMER_FFN = (64, 128, 256, 512)
RELU_TOPK = (768, 192, 96, 48)
MEDUSA_HEADS = 4
TANDEM_LAYER_MAP = (2, 4)
TANDEM_BLOCKS = (2, 3, 4, 6, 8)

BUDGETS = {
    "primary": Budget(1700, 4e-3),
    "drafter": Budget(2400, 6e-3),
    "drafter-distilled": Budget(600, 3e-3),
    "drafter-tiny": Budget(800, 8e-3),
    "matformer": Budget(1100, 5e-3),
    "relu": Budget(900, 5e-3),
    "medusa": Budget(1000, 2e-2),
    "tandem": Budget(500, 3e-3),
    "ternary": Budget(700, 4e-3),
}
