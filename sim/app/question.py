"""What the page may be asked: names that come along and numbers within bounds, checked before anything is built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import hardware_profiles
from sim.build import load_shape
from sim.plugin import suggest
from workloads import models
from workloads.errors import shown

__all__ = ["BATCHES", "DEVICES", "FORMATS", "LENGTHS", "MOST_ALPHA", "MOST_GAMMA", "POLICIES", "Question", "choices"]

DEVICES = (1, 2, 4, 8)
BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
LENGTHS = tuple(part << k for k in range(6, 17) for part in (2, 3) if part << k <= 1 << 17)
MOST_ALPHA, MOST_GAMMA = 0.99, 16
FORMATS: Mapping[str, str] = {
    "bf16": "16 bits",
    "fp8": "W8A8, fp8",
    "smoothquant": "W8A8, int8",
    "int8": "W8A16",
    "awq": "W4A16, groups of 128",
    "nvfp4": "W4A4, fp4",
}
"""As ``variants: [quantization: {format: ...}]`` names them; ``bf16`` is none."""
POLICIES: Mapping[str, tuple[str, ...]] = {
    "autoregressive": (),
    "speculative": ("acceptance", "gamma"),
    "tandem": ("acceptance", "gamma"),
    "ngram": ("acceptance", "gamma"),
    "medusa": (),
    "eagle": (),
    "eagle3": (),
}
"""The options that alpha and gamma stand for; a tree has the acceptance measured for it."""


@dataclass(frozen=True)
class Question:
    """One position of all the controls.

    ``batch`` sequences decode at ``context`` tokens each; a prompt of ``prompt`` tokens comes to an idle replica of
    ``devices`` (tensor parallel). ``alpha``: probability that a drafted token is kept; ``gamma``: drafted tokens a
    round. Raises ValueError, one line naming key, value and what is allowed.
    """

    device: str = "h100-sxm"
    devices: int = 1
    model: str = "llama-3.1-8b"
    format: str = "bf16"
    engine: str = "vllm-v1"
    policy: str = "speculative"
    batch: int = 8
    context: int = 2048
    prompt: int = 1024
    alpha: float = 0.8
    gamma: int = 4

    def __post_init__(self) -> None:
        for key, allowed in choices().items():
            _one_of(key, getattr(self, key), allowed)
        _whole("devices", self.devices, 1, max(DEVICES))
        _one_of("devices", str(self.devices), tuple(map(str, DEVICES)))
        _whole("batch", self.batch, 1, BATCHES[-1])
        _whole("context", self.context, 1, LENGTHS[-1])
        _whole("prompt", self.prompt, 1, LENGTHS[-1])
        _whole("gamma", self.gamma, 1, MOST_GAMMA)
        alpha = self.alpha
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0.0 <= alpha <= MOST_ALPHA:
            raise ValueError(f"alpha: {shown(alpha)}: must be a number from 0 to {MOST_ALPHA}")

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Question:
        """From what a page sends: numbers may be text. Raises ValueError, also for a key that is not there."""
        known = [field.name for field in fields(cls)]
        for key in said:
            if key not in known:
                raise ValueError(f"{shown(key)}: must be one of {', '.join(known)}{suggest(str(key), known)}")
        numbers = {"devices", "batch", "context", "prompt", "gamma", "alpha"}
        return cls(**{key: _number(value) if key in numbers else value for key, value in said.items()})

    @property
    def options(self) -> tuple[str, ...]:
        """Which options of the policy the sliders alpha and gamma stand for."""
        return POLICIES[self.policy]

    def scenario(self) -> dict[str, Any]:
        """The same as a scenario's mapping, its traffic left out."""
        values = {"acceptance": float(self.alpha), "gamma": self.gamma}
        return {
            "model": self.model,
            "hardware": self.device,
            "engine": self.engine,
            "layout": {"tensor": self.devices},
            "variants": [] if self.format == "bf16" else [{"quantization": {"format": self.format}}],
            "policy": {"name": self.policy, **{option: values[option] for option in self.options}},
        }


@lru_cache(maxsize=1)
def choices() -> Mapping[str, tuple[str, ...]]:
    """What the lists offer: everything that comes along and decodes by itself."""
    shapes = {name: load_shape(name, "model") for name in models.names()}
    decoders = tuple(name for name, shape in shapes.items() if shape.layers and not shape.encoder)
    return {
        "device": tuple(hardware_profiles.names()),
        "model": decoders,
        "format": tuple(FORMATS),
        "engine": tuple(hardware_profiles.engine_names()),
        "policy": tuple(POLICIES),
    }


def _one_of(key: str, value: Any, allowed: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in allowed:
        some = ", ".join(allowed[:8]) + (f" and {len(allowed) - 8} more" if len(allowed) > 8 else "")
        raise ValueError(f"{key}: {shown(value)}: must be one of {some}{suggest(str(value), allowed)}")


def _whole(key: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{key}: {shown(value)}: must be a whole number from {low} to {high}")


def _number(value: Any) -> Any:
    """Text of at most twenty characters as the number it spells; everything else as it is, for the checks to refuse."""
    if not isinstance(value, str) or len(value) > 20:
        return value
    try:
        found = float(value)
    except ValueError:
        return value
    return int(found) if math.isfinite(found) and found == int(found) else found
