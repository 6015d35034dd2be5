"""Loading a model: a Hugging Face folder, a GGUF file, or a shipped family member by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sim.reference.config_file import Config
from sim.reference.families import describe
from sim.reference.safetensors_file import read_index
from sim.reference.sources import Family, Source, Stored
from sim.reference.transformer import Transformer

Array = NDArray[Any]
SHIPPED = Path(__file__).with_name("family")


def load(path_or_name: str | Path, dtype: DTypeLike = np.float32, *, exact: bool = False) -> Transformer:
    """A model ready to run, its weights as ``dtype``.

    ``path_or_name``: a folder with ``config.json`` and safetensors, a ``.gguf`` file, or a name under
    ``sim/reference/family``. Raises ValueError naming file and tensor (or key) for anything wrong with it; all shapes
    are checked before the first number is read.
    """
    path = _locate(path_or_name)
    if path.suffix == ".gguf":
        from sim.reference.gguf_model import load_gguf  # reads a format of its own

        return load_gguf(path, dtype, exact=exact)
    family = describe(Config.read(path / "config.json"))
    return build(family, read_index(path), path, dtype, exact=exact)


def shipped_names() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(p.parent.name for p in SHIPPED.glob("*/config.json"))


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


def _locate(path_or_name: str | Path) -> Path:
    path = Path(path_or_name)
    if path.exists():
        return path
    names = shipped_names()
    if str(path_or_name) in names:
        return SHIPPED / str(path_or_name)
    near = difflib.get_close_matches(str(path_or_name), names, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ValueError(f"{path_or_name}: no such model folder or file; {hint}shipped: {', '.join(names) or 'none'}")


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
