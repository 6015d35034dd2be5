"""Model configs: one Hugging Face style ``config.json`` a file (SOURCES.md says where each was checked).

>>> find("meta-llama/Llama-3.1-8B-Instruct").name
'llama-3.1-8b'
"""

from __future__ import annotations

import difflib
import json
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from os import PathLike, fspath
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

__all__ = ["Found", "aliases", "find", "names", "released"]

MAX_BYTES = 1_000_000
SHORT = {"mistral-7b": "mistral-7b-v0.1"}
VARIANTS = {"instruct", "chat", "hf", "it", "pt"}


class Found(NamedTuple):
    """A config as plain values, the model's name, and the file for messages: what ``shape_from_config`` takes."""

    config: dict[str, Any]
    name: str
    source: str


def find(name_or_path: str | PathLike[str]) -> Found:
    """The config of a shipped model (name or Hugging Face id, any case), of a JSON file, or of a model folder.

    Fine-tuned variants share a shape: ``-Instruct``, ``-chat``, ``-it``, ``-hf`` and ``-pt`` are ignored in names.
    Raises ValueError, one line, for an unknown name, and for a file that is no JSON object of at most 1 MB.
    """
    text = fspath(name_or_path)
    name = _resolve(text)
    if name is not None:
        file = files("workloads.models") / f"{name}.json"
        return Found(_read(file, file.name), name, file.name)
    path = Path(text)
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        _unknown(text)
    return Found(_read(path, str(path)), path.parent.name if path.name == "config.json" else path.stem, str(path))


def names() -> list[str]:
    """The names of the shipped models, sorted."""
    return sorted(f.name.removesuffix(".json") for f in files("workloads.models").iterdir() if f.name.endswith(".json"))


def released() -> list[str]:
    """Those of :func:`names` whose weights were published, sorted; the others are shapes out of papers."""
    return [name for name in names() if not find(name).config["_name_or_path"].startswith("arxiv/")]


def aliases() -> dict[str, str]:
    """Every Hugging Face id and short name with the shipped model that it stands for."""
    ids = {_read(files("workloads.models") / f"{name}.json", name)["_name_or_path"]: name for name in names()}
    return {**ids, **SHORT}


def _resolve(text: str) -> str | None:
    return _index().get(_canonical(text))


@cache
def _index() -> dict[str, str]:
    index: dict[str, str] = {}
    for known, name in [*((name, name) for name in names()), *aliases().items()]:
        if index.setdefault(_canonical(known), name) != name:
            raise ValueError(f"{name}.json: alias {known!r} is already taken")
    return index


def _canonical(text: str) -> str:
    """Lower case, without owner, leading ``Meta-`` and the word for a fine-tuned variant."""
    owner, _, rest = text.strip().lower().rpartition("/")
    if owner.startswith((".", "~")) or "/" in owner:
        return ""  # a path with folders, not owner/model
    words = [word for word in rest.removeprefix("meta-").split("-") if word not in VARIANTS]
    return "-".join(words)


def _unknown(text: str) -> NoReturn:
    if text.endswith(".json"):
        raise ValueError(f"{text}: no such file")
    known = [*names(), *aliases()]
    close = difflib.get_close_matches(text[:80], known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"allowed: a path to a config.json, or {', '.join(names())}"
    raise ValueError(f"no model config {text[:80]!r}; {hint}")


def _read(file: Traversable, label: str) -> dict[str, Any]:
    with file.open("rb") as stream:
        data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"{label}: larger than {MAX_BYTES} bytes, which no config.json is")
    try:
        config = json.loads(data, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{label}: not valid JSON: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{label}: a config must be a JSON object of keys and values")
    return config


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(k for k in keys if keys.count(k) > 1)[:60]!r} is given twice")
    return result


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON number")
