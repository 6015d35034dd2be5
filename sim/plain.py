"""A scenario as plain values: nothing without end, numbers read as numbers, files found beside the scenario."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hardware_profiles.strict_yaml import MAX_DEPTH
from workloads.errors import shown

__all__ = ["beside", "plain"]

MOST_VALUES = 20_000  # in one scenario
POWER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d{1,4}", re.ASCII)
LEVEL = re.compile(r"[+-]?\d{1,18}", re.ASCII)
FILE = re.compile(r"\.(json|yaml|yml|csv|jsonl|parquet|gz|txt)$", re.IGNORECASE)
PATHS = ("model", "hardware", "engine", "trace", "file", "lengths", "draft", "betas", "over")


def plain(data: Any, label: str) -> dict[str, Any]:
    """The mapping with 1e3 as a number (YAML 1.1 reads text) and levels of priority and tenant as whole numbers.

    Raises ValueError, one line, for what no scenario file can hold: other types, values without end, too many or too
    deep.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{label}: {shown(data)}: a scenario is a mapping of keys to values")
    result: dict[str, Any] = _Plain(label).value(data, "", 0)
    return result


def beside(value: Any, base: Path, key: str = "") -> Any:
    """The same values, with the files they name relative to ``base`` (names of shipped things stay names)."""
    if isinstance(value, dict):
        return {k: beside(v, base, k) for k, v in value.items()}
    if isinstance(value, list):
        return [beside(v, base, key) for v in value]
    if key not in PATHS or not isinstance(value, str):
        return value
    named = bool(FILE.search(value)) or value.startswith(("./", "../", "/"))
    return str(base / value) if named or ("/" in value and os.path.exists(base / value)) else value


def _number(text: str) -> int | float:
    """1e3 as a whole number, 1.5e-3 and 1e300 as they are."""
    number = float(text)
    return int(number) if number.is_integer() and abs(number) < 1e15 else number


class _Plain:
    """Counts what it has seen, so that a value that contains itself ends as an error."""

    def __init__(self, label: str) -> None:
        self.label, self.seen = label, 0

    def value(self, value: Any, path: str, depth: int) -> Any:
        self.seen += 1
        if depth > MAX_DEPTH or self.seen > MOST_VALUES:
            self._refuse(path, f"nested deeper than {MAX_DEPTH} levels, or more than {MOST_VALUES} values")
        if isinstance(value, Mapping):
            return {self._key(k, path): self.value(v, f"{path}.{shown(k)}", depth + 1) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(v, f"{path}[{i}]", depth + 1) for i, v in enumerate(value)]
        if isinstance(value, str):
            return _number(value) if POWER.fullmatch(value) else value
        if value is not None and not isinstance(value, bool | int | float):
            self._refuse(path, f"{type(value).__name__}: must be text, a number, a list or a mapping")
        return value

    def _key(self, key: Any, path: str) -> str | int:
        level = path.endswith(("'priority'", "'tenant'", "'points'"))
        if isinstance(key, str):
            return int(key) if level and LEVEL.fullmatch(key) else key
        if not isinstance(key, int) or not level:
            self._refuse(path, f"{shown(key)}: a key must be a word")
        return int(key)

    def _refuse(self, path: str, reason: str) -> None:
        place = path.replace("'", "").lstrip(".")[:80]
        raise ValueError(f"{self.label}: {place + ': ' if place else ''}{reason}")
