"""Device and engine profiles: one checked YAML file each, units in the keys, a source for every number.

>>> load("h100")["memory"]["bandwidth_GBps"]
3350
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from hardware_profiles.check import did_you_mean
from hardware_profiles.kernel_files import kernels
from hardware_profiles.schema import check_device, check_engine
from hardware_profiles.strict_yaml import read

__all__ = ["aliases", "engine", "engine_names", "kernels", "load", "names"]

SUFFIXES = (".yaml", ".yml")


def load(name_or_path: str | PathLike[str]) -> dict[str, Any]:
    """The device profile of that name, alias or YAML path, completely checked; units are in its keys.

    Names ignore case and take `_` for `-`. Raises ValueError, one line, for an unknown name or a broken file.
    """
    text = fspath(name_or_path)
    file: Traversable = Path(text) if _is_path(text) else _folder() / f"{_resolve(text)}.yaml"
    label = text if _is_path(text) else file.name
    profile = read(file, label)
    check_device(profile, label)
    return profile


def names() -> list[str]:
    """The names of the shipped devices, sorted."""
    return _stems(_folder())


def aliases() -> dict[str, str]:
    """Every alias of a shipped device with the name it stands for."""
    return dict(_alias_index())


def engine(name_or_path: str | PathLike[str]) -> dict[str, Any]:
    """The engine profile of that name or YAML path, completely checked. Raises ValueError like `load`."""
    text = fspath(name_or_path)
    name = _normal(text)
    if not _is_path(text) and name not in engine_names():
        raise ValueError(f"no engine profile {name[:80]!r}{did_you_mean(name, engine_names())}")
    file: Traversable = Path(text) if _is_path(text) else _folder() / "engines" / f"{name}.yaml"
    label = text if _is_path(text) else file.name
    profile = read(file, label)
    check_engine(profile, label)
    return profile


def engine_names() -> list[str]:
    """The names of the shipped engine profiles, sorted."""
    return _stems(_folder() / "engines")


def _folder() -> Traversable:
    return files("hardware_profiles")


def _stems(folder: Traversable) -> list[str]:
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def _normal(name: str) -> str:
    return "-".join(name.strip().lower().replace("_", " ").split())


def _is_path(text: str) -> bool:
    return text.lower().endswith(SUFFIXES) or "/" in text or "\\" in text


def _resolve(name: str) -> str:
    wanted = _normal(name)
    if wanted in names():
        return wanted
    known = _alias_index()
    if wanted not in known:
        hint = did_you_mean(wanted, [*names(), *known])
        raise ValueError(f"no device profile {wanted[:80]!r}{hint}")
    return known[wanted]


@cache
def _alias_index() -> dict[str, str]:
    index: dict[str, str] = {}
    for name in names():
        for alias in read(_folder() / f"{name}.yaml", name)["aliases"]:
            if index.setdefault(_normal(alias), name) != name or _normal(alias) in names():
                raise ValueError(f"{name}.yaml: alias {alias!r} is already taken")
    return index
