"""Putting a model together out of a family's description and a checkpoint's tensors, all checked before any is read."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sim.reference.sources import Family, Source, Stored
from sim.reference.transformer import Transformer

Array = NDArray[Any]


def build(
    family: Family, tensors: Mapping[str, Stored], path: Path, dtype: DTypeLike, *, exact: bool = False
) -> Transformer:
    """Assemble the model that ``family`` describes out of ``tensors``, after checking that all of them fit."""
    names = _Names(family, tensors)
    sources = {k: s for k, s in family.sources.items() if not s.optional or names(s.parts[0][0]) in tensors}
    for source in sources.values():
        for name, shape in source.parts:
            _check(path, names(name), shape, tensors)
    weights = {key: _assemble(source, tensors, names, dtype) for key, source in sources.items()}
    tied = "logits" not in weights
    if tied:
        weights["logits"] = weights["embed"].T
    return Transformer(replace(family.shape, tied=tied), family.numerics, weights, exact=exact)


class _Names:
    """Tensor names as this checkpoint writes them: some are saved without (or with one more) leading module."""

    def __init__(self, family: Family, tensors: Mapping[str, Stored]) -> None:
        first = family.sources["embed"].parts[0][0]
        self.cut, self.add = "", ""
        for module in ("model.", "transformer.", "language_model."):
            if first not in tensors and first.removeprefix(module) in tensors:
                self.cut = module
            if first not in tensors and module + first in tensors:
                self.add = module

    def __call__(self, name: str) -> str:
        return self.add + name.removeprefix(self.cut)


def _check(path: Path, name: str, shape: tuple[int, ...], tensors: Mapping[str, Stored]) -> None:
    if name not in tensors:
        near = difflib.get_close_matches(name, list(tensors), 1)
        raise ValueError(f"{path}: tensor {name}: missing" + (f"; nearest is {near[0]}" if near else ""))
    found = tensors[name]
    if found.shape != shape:
        raise ValueError(f"{found.path}: tensor {found.name}: shape {found.shape} is not allowed, {shape} is expected")


def _assemble(source: Source, tensors: Mapping[str, Stored], names: _Names, dtype: DTypeLike) -> Array:
    parts = [tensors[names(name)].read() for name, _ in source.parts]
    if source.layout == "experts":
        each = [np.concatenate(parts[i : i + source.stack]).T for i in range(0, len(parts), source.stack)]
        return np.stack(each).astype(dtype)
    if len(parts) > 1:
        out = np.concatenate([np.asarray(p, dtype) for p in parts])
    else:
        out = np.array(parts[0], dtype, order="C")  # a copy: the file need not outlive the model
    if source.layout == "plus_one":
        out += 1
    return out.T if source.layout == "transpose" else out
