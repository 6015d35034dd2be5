"""Loading a model: a Hugging Face folder, a GGUF file, or a shipped family member by name."""

from __future__ import annotations

import difflib
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from sim.reference.assembly import build
from sim.reference.config_file import Config
from sim.reference.families import describe
from sim.reference.gguf_model import load_gguf
from sim.reference.safetensors_file import read_index
from sim.reference.ternary_file import with_ternary
from sim.reference.transformer import Transformer

SHIPPED = Path(__file__).with_name("family")


def load(path_or_name: str | Path, dtype: DTypeLike = np.float32, *, exact: bool = False) -> Transformer:
    """A model ready to run, its weights as ``dtype``.

    ``path_or_name``: a folder with ``config.json`` and safetensors, a ``.gguf`` file, or a name under
    ``sim/reference/family``. Raises ValueError naming file and tensor (or key) for anything wrong with it; all shapes
    are checked before the first number is read.
    """
    path = _locate(path_or_name)
    if path.suffix == ".gguf":
        return load_gguf(path, dtype, exact=exact)
    family = describe(Config.read(path / "config.json"))
    return build(family, with_ternary(read_index(path)), path, dtype, exact=exact)


def shipped_names() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(p.parent.name for p in SHIPPED.glob("*/config.json"))


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
