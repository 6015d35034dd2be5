"""The keys of a model config, read with their checks: ranges, types, divisors, and one line of complaint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

MOST_LAYERS, MOST_WIDTH, MOST_TOKENS = 4096, 1 << 20, 1 << 26
MISSING: Any = object()


@dataclass(frozen=True)
class Keys:
    """A config's keys with their checks; complaints name the file, the key, the value and what is allowed."""

    config: Mapping[str, Any]
    source: str

    def whole(self, key: str, default: Any = MISSING, most: int = MOST_WIDTH, least: int = 1) -> int:
        """A whole number in [least, most]; the default where the key is absent or null."""
        value = self.config.get(key)
        if value is None:
            if default is MISSING:
                raise ValueError(f"{self.source}: key {key!r} is missing, allowed: a whole number")
            return int(default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.refuse(key, f"a whole number from {least} to {most}")
        return int(value)

    def window(self, key: str = "sliding_window") -> int | None:
        """An attention window in tokens, or None for full attention."""
        return None if self.config.get(key) is None else self.whole(key, most=MOST_TOKENS)

    def flag(self, key: str, default: bool) -> bool:
        """A boolean; the default where the key is absent or null."""
        value = self.config.get(key)
        if value is not None and not isinstance(value, bool):
            self.refuse(key, "true or false")
        return default if value is None else bool(value)

    def text(self, key: str, default: str) -> str:
        """A string; the default where the key is absent or null."""
        value = self.config.get(key)
        if value is not None and not isinstance(value, str):
            self.refuse(key, "text")
        return default if value is None else str(value)

    def words(self, key: str, length: int, allowed: Sequence[str]) -> tuple[str, ...] | None:
        """A list of `length` words out of `allowed`, or None where the key is absent or null."""
        value = self.config.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != length or any(word not in allowed for word in value):
            self.refuse(key, f"a list of {length} words out of {', '.join(allowed)}")
        return tuple(value)

    def share(self, key: str, part: int, of: str, whole: int) -> int:
        """`whole / part`, which must come out even (heads into a width, key heads into heads)."""
        if whole % part:
            self.refuse(key, f"a divisor of {of} ({whole})")
        return whole // part

    def at_most(self, key: str, value: int, of: str, most: int) -> int:
        """`value`, which may not exceed another key's."""
        if value > most:
            self.refuse(key, f"at most {of} ({most})")
        return value

    def refuse(self, key: str, allowed: str) -> NoReturn:
        """Raise the one-line ValueError about a key."""
        raise ValueError(f"{self.source}: {key} is {short(self.config.get(key))}, allowed: {allowed}")


def short(value: object) -> str:
    """A one-line picture of a value; numbers too long to print are named so."""
    text = "a huge number" if isinstance(value, int) and abs(value) > 10**30 else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
