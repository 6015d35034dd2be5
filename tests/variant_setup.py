"""Example options of every variant, for the suites that run over all of them; a new variant adds its line here."""

from __future__ import annotations

from typing import Any

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "attention": [
        {"kind": "standard"},
        {"kind": "block_sparse", "density": 0.4},
        {"kind": "local", "window": 20},
        {"kind": "linear"},
        {"kind": "performer", "features": 12},
    ],  # linformer, reformer and smyrf are for encoders alone: tests/test_variant_attention.py
    "kv_eviction": [
        {"budget": 24, "sinks": 2},
        {"budget": 24, "method": "h2o"},
        {"budget": 24, "method": "window"},
    ],
    "moe": [{}, {"skew": 0.8}, {"alike": 0.5}, {"capacity": 1.25}, {"popularity": [3.0] * 8 + [1.0] * 8}],
    "offload": [{"weights": 0.5}, {"weights": 1.0, "kv": 0.5, "overlap": False}, {"weights": 1.0, "loaded": 0.2}],
    "peft": [
        {"adapters": 4},
        {"targets": ["q", "k", "v", "o"], "rank": 2, "adapters": 4, "in_batch": 2},
        {"method": "adapter", "bottleneck": 8},
        {"method": "prompt", "tokens": 5, "adapters": 3},
    ],
    "contextual_sparsity": [{}, {"neurons": 20, "heads": 0.5, "rank": 4, "lookahead": False}, {"overlap": 0.3}],
    "hire": [
        {},
        {"softmax": {"candidates": 40, "keep": 8, "bits": None}, "ffn": {"candidates": 0.3, "overlap": 0.5}},
        {"softmax": None, "attention": {"candidates": 12, "dims": 4}},
        {"softmax": None, "attention": {"candidates": [[1, 24], [8, 6]]}, "ffn": {"candidates": [[1, 64], [2, 32]]}},
    ],
    "distilled": [{}, {"every": 3}],
    "early_exit": [{"layers": 1}, {"layers": [1]}, {"layers": [0, 1]}],
    "kv_sharing": [
        {"kind": "mha"},
        {"kind": "gqa", "groups": 4},
        {"kind": "mqa"},
        {"kind": "mla"},
        {"kind": "mla", "rank": 24, "rope": 8, "q_rank": 12},
    ],
    "matformer": [{"size": "S"}, {"size": "XL"}, {"size": 40}, {"size": ["L", "XL"]}],
    "packed_products": [{}, {"small": 0}],
    "pruning": [
        {},
        {"layers": 1, "heads": 4, "ffn": 24},
        {"layers": [0, 1], "heads": [4, 4], "ffn": [40, 20], "d_model": 32},
        {"unstructured": 0.5},
    ],
    "token_routing": [{"shares": {"S": 0.5, "XL": 0.5}}, {"shares": {"S": 0.25, "M": 0.25, "L": 0.5}}],
    "quantization": [{"format": "awq"}, {"format": "smoothquant"}, {"format": "llm_int8"}, {"kv": 8}],
}
