"""Model families by the ``model_type`` of their ``config.json``: one function each."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from sim.reference import families_llama as llama
from sim.reference.config_file import Config
from sim.reference.families_gpt2 import gpt2
from sim.reference.families_t5 import t5
from sim.reference.sources import Family

FAMILIES: dict[str, Callable[[Config], Family]] = {
    "llama": llama.llama,
    "mistral": llama.mistral,
    "mixtral": llama.mixtral,
    "qwen2": llama.qwen2,
    "qwen3": llama.qwen3,
    "qwen3_moe": llama.qwen3_moe,
    "gemma": llama.gemma,
    "gemma2": llama.gemma2,
    "gemma3_text": llama.gemma3,
    "gpt2": gpt2,
    "t5": t5,
}


def describe(config: Config) -> Family:
    """Understand a configuration. Raises ValueError for an unknown ``model_type`` or a value out of range."""
    kind = config.text("model_type")
    if kind not in FAMILIES:
        near = difflib.get_close_matches(kind, FAMILIES, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise config.bad("model_type", f"{hint}known: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[kind](config)
