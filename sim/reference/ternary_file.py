"""Ternary matrices as BitNet checkpoints pack them: two bits a weight, one scale a matrix (arXiv 2402.17764).

``NAME`` holds bytes [rows / 4, columns]: row r of block i of the rows in bits 2i and 2i + 1, as value + 1;
``NAME_scale`` the number they are multiplied by. On reading they become ordinary float matrices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.reference.safetensors_file import Tensor
from sim.reference.sources import Stored

SHIFTS = (0, 2, 4, 6)


@dataclass(frozen=True)
class Ternary:
    """One packed matrix with its scale, seen as the float matrix it stands for."""

    packed: Tensor
    scale: Tensor

    @property
    def path(self) -> Path:
        """The file it lies in."""
        return self.packed.path

    @property
    def name(self) -> str:
        """Its name there."""
        return self.packed.name

    @property
    def shape(self) -> tuple[int, ...]:
        """[rows, columns] once unpacked."""
        rows, *columns = self.packed.shape
        return (len(SHIFTS) * rows, *columns)

    def read(self) -> NDArray[Any]:
        """Values -1, 0, 1 times the scale, [rows, columns] float32; ValueError where a code is none of them."""
        packed = self.packed.read()
        codes = np.concatenate([packed >> shift & 3 for shift in SHIFTS])
        if (codes == 3).any():
            raise ValueError(f"{self.path}: tensor {self.name}: two-bit code 3 found, allowed are 0, 1 and 2")
        out: NDArray[Any] = (codes.astype(np.float32) - 1) * np.float32(self.scale.read().reshape(()))
        return out


def with_ternary(tensors: Mapping[str, Tensor]) -> dict[str, Stored]:
    """The tensors, packed matrices (bytes that have a scale beside them) unpacked on reading."""
    out: dict[str, Stored] = {}
    for name, tensor in tensors.items():
        scale = tensors.get(f"{name}_scale")
        packed = scale is not None and tensor.format == "U8" and len(tensor.shape) == 2 and scale.shape in ((), (1,))
        out[name] = Ternary(tensor, scale) if packed and scale is not None else tensor
    return out
