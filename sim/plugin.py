"""Plug-ins: one file, one frozen dataclass, found by its ``name``. No registry to edit, no base class to inherit."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import Any

from workloads.errors import brief, shown


@cache
def discover(package: str) -> dict[str, type]:
    """Every plug-in class of a package such as ``sim.policies``, by name, in alphabetical order."""
    found: dict[str, type] = {}
    root = importlib.import_module(package)
    for info in pkgutil.iter_modules(root.__path__):
        module = importlib.import_module(f"{package}.{info.name}")
        for thing in vars(module).values():
            if isinstance(thing, type) and is_dataclass(thing) and thing.__module__ == module.__name__:
                name = getattr(thing, "name", None)
                if isinstance(name, str):
                    found[name] = thing
    return dict(sorted(found.items()))


def suggest(word: str, allowed: Any) -> str:
    """``; did you mean 'x'?`` when something allowed is close to ``word``, else nothing."""
    close = difflib.get_close_matches(str(word)[:80], [str(a) for a in allowed], n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def build(package: str, key: str, spec: Any) -> Any:
    """The plug-in that a scenario's ``key`` asks for: a name, or a mapping of ``name`` and options.

    Raises ValueError naming key, value and what is allowed.
    """
    options = dict(spec) if isinstance(spec, Mapping) else {"name": spec}
    known = discover(package)
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in known:
        said = "name: missing" if name is None else shown(name)
        raise ValueError(f"{key}: {said}: must be one of {', '.join(known) or '(none yet)'}{suggest(str(name), known)}")
    allowed = {f.name: f for f in fields(known[name])}
    for option in options:
        if option not in allowed:
            takes = ", ".join(allowed) or "no options"
            where = f"{key}.{brief(str(option))}"
            raise ValueError(f"{where}: unknown option of {name}, which takes {takes}{suggest(option, allowed)}")
    for option, f in allowed.items():
        if f.default is MISSING and f.default_factory is MISSING and option not in options:
            raise ValueError(f"{key}.{option}: missing; {name} needs this option")
    try:
        return known[name](**options)
    except (TypeError, ArithmeticError) as error:  # a plug-in checks its values; whatever slips through is still input
        raise ValueError(f"{key}: {name} cannot take {shown(options, 200)}: {error}") from None


def catalogue(package: str) -> list[dict[str, Any]]:
    """Name, options with defaults, and what the first lines of its documentation say, of every plug-in."""
    rows = []
    for name, plugin in discover(package).items():
        options = {f.name: _default(f) for f in fields(plugin)}
        module = importlib.import_module(plugin.__module__)
        text = " ".join((module.__doc__ or "").split())
        rows.append({"name": name, "options": options, "about": text})
    return rows


def _default(f: Field[Any]) -> Any:
    """An option's default, None where a scenario has to give one."""
    if f.default is not MISSING:
        return f.default
    return None if f.default_factory is MISSING else f.default_factory()
