"""Policies that really run, one a file: ``twins/NAME.py`` holds the frozen dataclass ``Twin`` of policy NAME.

There is no registry: a file in this folder is a twin, found by its name.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import pkgutil
from collections.abc import Iterable, Mapping

from sim.reference.decoding import Twin


def names() -> list[str]:
    """The policies that have a twin, sorted; helper modules start with an underscore."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def make(name: str, options: Mapping[str, object] | None = None) -> Twin:
    """The twin of policy ``name`` with its options set. Raises ValueError for an unknown policy or option."""
    if name not in names():
        raise ValueError(f"policy: {name!r} has no twin{_hint(name, names())}; allowed: {', '.join(names())}")
    cls = importlib.import_module(f"{__name__}.{name}").Twin
    fields = [f.name for f in dataclasses.fields(cls)]
    for key in options or {}:
        if key not in fields:
            allowed = ", ".join(fields) or "no options"
            raise ValueError(f"policy {name}: unknown option {key!r}{_hint(key, fields)}; allowed: {allowed}")
    twin: Twin = cls(**(options or {}))
    return twin


def _hint(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {near[0]!r}?" if near else ""
