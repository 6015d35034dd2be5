"""Where the weights of a model come from: what every family's reading of a configuration ends in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from sim.analytic.model import ModelShape
from sim.reference.config_file import Config
from sim.reference.numerics import ACTIVATIONS, Numerics

Layout = Literal["plain", "transpose", "plus_one", "experts"]


@dataclass(frozen=True)
class Source:
    """One weight of ours: checkpoint tensors (name, shape), joined along their first axis, then laid out.

    ``transpose``: [out, in] as PyTorch stores it becomes [in, out]; ``plus_one``: Gemma stores norm weights less 1;
    ``experts``: the parts, ``stack`` of them an expert, become [E, in, out]. ``optional``: may be absent.
    """

    parts: tuple[tuple[str, tuple[int, ...]], ...]
    layout: Layout = "plain"
    stack: int = 1
    optional: bool = False


class Stored(Protocol):
    """A tensor in a file: known by name and shape, read when wanted."""

    @property
    def path(self) -> Path:
        """The file it lies in."""

    @property
    def name(self) -> str:
        """Its name there."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, outermost first."""

    def read(self) -> NDArray[Any]:
        """Its numbers, [shape]."""


@dataclass(frozen=True)
class Family:
    """What a configuration says: the shape, the numerics, the weights by our name (no ``logits``: tied)."""

    shape: ModelShape
    numerics: Numerics
    sources: Mapping[str, Source]


def activation(config: Config, *keys: str, default: str = "silu") -> str:
    """The activation that the first of ``keys`` names; raises ValueError for one that is not known."""
    name = config.text(*keys) if any(config.values.get(k) for k in keys) else default
    if name not in ACTIVATIONS:
        raise config.bad(keys[-1], f"known activations: {', '.join(sorted(ACTIVATIONS))}")
    return name
