"""Checked access to a ``config.json``: every complaint names the file, the key and what is allowed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT = 1 << 24  # no width or length of a model reaches this; larger is a broken file
MANY = 512  # nor has any more layers or experts: each is an object here, whatever the checkpoint holds


@dataclass(frozen=True)
class Config:
    """The keys of one configuration, with the file they came from."""

    path: str
    values: Mapping[str, Any]

    @staticmethod
    def read(path: Path) -> Config:
        """Read a JSON object; raises ValueError when the file is missing or is something else."""
        try:
            values = json.loads(path.read_bytes())
        except OSError:
            raise ValueError(f"{path}: no such file (a model folder holds config.json)") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: not JSON ({error})") from None
        if not isinstance(values, dict):
            raise ValueError(f"{path}: {type(values).__name__} is not allowed, an object is expected")
        return Config(str(path), values)

    def bad(self, key: str, allowed: str) -> ValueError:
        """The error to raise for a value that is not allowed."""
        shown = " ".join(repr(self.values.get(key))[:80].split())
        return ValueError(f"{self.path}: {key}: {shown} is not allowed, {allowed}")

    def size(self, key: str, default: int | None = None, most: int = LIMIT) -> int:
        """A whole number from 1 to ``most``; the default stands in for a missing key or null."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if type(value) is not int or not 1 <= value <= most:
            raise self.bad(key, f"a whole number from 1 to {most} is expected")
        return value

    def many(self, key: str, default: int | None = None) -> int:
        """A number of layers or experts, from 1 to 512."""
        return self.size(key, default, MANY)

    def optional_size(self, key: str) -> int | None:
        """A whole number from 1 to 2^24, or None for a missing key or null."""
        return None if self.values.get(key) is None else self.size(key)

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above 0."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
            raise self.bad(key, "a number above 0 is expected")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        """A finite number above 0, or None for a missing key or null."""
        return None if self.values.get(key) is None else self.number(key)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.bad(key, "true or false is expected")
        return value

    def text(self, *keys: str) -> str:
        """The first of ``keys`` that is set; a string is expected."""
        for key in keys:
            if self.values.get(key) is not None:
                if not isinstance(self.values[key], str):
                    raise self.bad(key, "text is expected")
                return str(self.values[key])
        raise self.bad(keys[0], "text is expected")

    def section(self, *keys: str) -> Config | None:
        """The first of ``keys`` that holds an object, as a configuration of its own; None where none is set."""
        for key in keys:
            value = self.values.get(key)
            if value is not None:
                if not isinstance(value, dict):
                    raise self.bad(key, "an object is expected")
                return Config(f"{self.path}: {key}", value)
        return None
