"""Traces that ship with the package, by short name or alias."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from workloads.errors import hint

FOLDER = Path(__file__).parent / "traces"


@dataclass(frozen=True)
class Shipped:
    """One shipped trace: its file (two for a length distribution: prompt, output), where it is from, its licence.

    `quantum_s` is the grid its stamps lie on, where it is coarse (see `workloads.shape.spread_quantum`).
    """

    name: str
    files: tuple[Path, ...]
    source: str
    licence: str
    aliases: tuple[str, ...] = ()
    quantum_s: float | None = None


@cache
def shipped() -> dict[str, Shipped]:
    """Every shipped trace by its name."""
    index = json.loads((FOLDER / "index.json").read_text())
    return {
        name: Shipped(
            name=name,
            files=tuple(FOLDER / file for file in entry["files"]),
            source=entry["source"],
            licence=entry["licence"],
            aliases=tuple(entry["aliases"]),
            quantum_s=entry.get("quantum_s"),
        )
        for name, entry in index.items()
    }


def find(name: str) -> Shipped | None:
    """The shipped trace of that name or alias, if any."""
    aliases = {alias: entry for entry in shipped().values() for alias in entry.aliases}
    return shipped().get(name) or aliases.get(name)


def locate(name_or_path: str | Path, where: str = "trace") -> Shipped | Path:
    """A shipped trace, or the path of a file that exists.

    A shipped name wins over a file of the same name; write `./NAME` for the file. Raises ValueError otherwise.
    """
    found = find(name_or_path) if isinstance(name_or_path, str) else None
    if found is not None:
        return found
    path = Path(name_or_path)
    try:
        if path.is_file():
            return path
    except (OSError, ValueError):  # a name no file system takes
        pass
    names = [*shipped(), *(alias for entry in shipped().values() for alias in entry.aliases)]
    said = str(name_or_path)
    raise ValueError(f"{where}: {said!r}: no such file, nor a shipped trace: {hint(said, names)}")
