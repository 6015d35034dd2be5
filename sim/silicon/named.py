"""What measured data call a model, a device, an engine and a number format, as the simulator calls them."""

from __future__ import annotations

import re
from functools import cache

import hardware_profiles
from sim.plugin import suggest
from workloads import models
from workloads.errors import shown

__all__ = ["device_of", "engine_of", "model_of", "precision_of"]

NOISE = re.compile(
    r"\(.*?\)|\bnvidia\b|\btesla\b|\bgeforce\b|\bgpus?\b|\bhbm\d?e?\b|\b\d+ ?gi?b\b(?= hbm)", re.IGNORECASE
)
ENGINES = {
    "vllm": "vllm-v1", "sglang": "sglang", "tensorrt": "tensorrt-llm", "trtllm": "tensorrt-llm", "trt": "tensorrt-llm",
    "tgi": "tgi", "ollama": "ollama", "llama": "llama-cpp", "llamacpp": "llama-cpp", "transformers": "hf-eager",
}  # fmt: skip
FORMATS = {"float16": "fp16", "half": "fp16", "bfloat16": "bf16", "auto": "bf16", "float32": "fp32", "float": "fp32",
           "fp8_e4m3": "fp8", "fp8_block": "fp8", "float8": "fp8"}  # fmt: skip


@cache
def model_of(said: str) -> str:
    """The shipped model, or the path of a config. Raises ValueError naming what is known."""
    return models.find(said).name if not _is_file(said) else said


@cache
def device_of(said: str) -> str:
    """The hardware profile: by its name or alias, words in brackets and of the maker's trade left away."""
    bare = " ".join(NOISE.sub(" ", said).split())
    dashed = "-".join(re.split(r"[\s_-]+", bare))
    for text in (said, "-".join(re.split(r"[\s_-]+", re.sub(r"\(.*?\)", "", said).strip())), bare, dashed):
        try:
            return str(hardware_profiles.load(text)["name"])
        except ValueError:
            continue
    known = [*hardware_profiles.names(), *hardware_profiles.aliases()]
    raise ValueError(f"{shown(said)}: no such device{suggest(bare.lower(), known)}")


@cache
def engine_of(said: str) -> str:
    """The engine profile: by its name or path, or by the first word of a product's name and version."""
    if _is_file(said) or said in hardware_profiles.engine_names():
        return said
    words = re.findall(r"[a-z]+", said.lower())
    found = next((ENGINES[word] for word in words if word in ENGINES), None)
    if found is None:
        raise ValueError(f"{shown(said)}: no such engine{suggest(said.lower(), hardware_profiles.engine_names())}")
    return found


def precision_of(said: str) -> dict[str, str]:
    """``precision`` of a scenario: 8-bit weights multiply as such, others leave activations and cache at 16 bits."""
    name = FORMATS.get(said.lower(), said.lower())
    wide = name if name in ("bf16", "fp16", "fp32") else "bf16"
    return {"weights": name, "activations": "fp8" if name == "fp8" else wide, "kv": wide}


def _is_file(said: str) -> bool:
    return said.lower().endswith((".yaml", ".yml", ".json"))
