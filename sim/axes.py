"""An axis of a study: a scenario's key, or ``batch`` or ``context``, and the values it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from hardware_profiles.strict_yaml import value as yaml_value
from workloads.errors import brief, shown

OWN = {"batch": 16_384, "context": 1 << 20}  # axes that are no keys of a scenario, and the most they may be
MOST_VALUES = 100_000


@dataclass(frozen=True)
class Axis:
    """``path``: ``batch``, ``context`` or a key such as ``policy.gamma``; ``values``: in the order given."""

    path: str
    values: tuple[Any, ...]

    @classmethod
    def parse(cls, text: str, option: str = "--over") -> Axis:
        """``KEY=1,4,16``, ``KEY=1:16`` (every whole number, both ends included) or ``KEY=0.5:0.9:0.1``.

        Raises ValueError, one line.
        """
        path, equals, said = text.partition("=")
        if not equals or not path.strip() or not said.strip():
            raise ValueError(f"{option} {shown(text)}: must be KEY=VALUES, as in policy.gamma=1:16 or batch=1,4,16")
        path = path.strip()
        values = _range(said, f"{option} {path}") if _is_range(said) else _list(said, f"{option} {path}")
        return cls(path, tuple(values)).checked(option)

    def checked(self, option: str = "--over") -> Axis:
        """The axis itself. Raises ValueError for values that its key cannot take."""
        most = OWN.get(self.path)
        for one in self.values if most is not None else ():
            if isinstance(one, bool) or not isinstance(one, int) or not 1 <= one <= (most or 0):
                raise ValueError(f"{option} {self.path}: {shown(one)} is not a whole number from 1 to {most}")
        return self

    @property
    def numeric(self) -> bool:
        """Whether every value is a number."""
        return all(isinstance(v, int | float) and not isinstance(v, bool) for v in self.values)

    def setting(self, value: Any) -> str:
        """``key=value`` as ``--set`` takes it."""
        return f"{self.path}={value if isinstance(value, str) else yaml_text(value)}"


def parse_axes(texts: Sequence[str], option: str = "--over") -> tuple[Axis, ...]:
    """Several axes, each key once, together at most a million combinations. Raises ValueError, one line."""
    axes = tuple(Axis.parse(text, option) for text in texts)
    for i, axis in enumerate(axes):
        if axis.path in [a.path for a in axes[:i]]:
            raise ValueError(f"{option} {axis.path}: given twice; put all of its values into one")
    if (points := prod(len(a.values) for a in axes)) > 1_000_000:
        raise ValueError(f"{option}: {points:,} combinations; at most 1,000,000 are allowed")
    return axes


def yaml_text(value: Any) -> str:
    """A plain value in YAML's flow style on one line."""
    import yaml

    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def bounds(text: str, option: str = "--for") -> tuple[str, float, float] | None:
    """(path, low, high) of ``KEY=LOW:HIGH``; None where it is a list. Raises ValueError, one line."""
    path, _, said = text.partition("=")
    if not _is_range(said):
        return None
    ends = [_number(part, f"{option} {path}") for part in said.split(":")]
    if len(ends) != 2 or not ends[0] < ends[1]:
        raise ValueError(f"{option} {path}: {shown(said)}: must be LOW:HIGH, rising")
    return path.strip(), ends[0], ends[1]


def _is_range(said: str) -> bool:
    return ":" in said and not any(c in said for c in "{[,/")


def _range(said: str, label: str) -> list[Any]:
    parts = [_number(part, label) for part in said.split(":")]
    if len(parts) not in (2, 3):
        raise ValueError(f"{label}: {shown(said)}: a range is FIRST:LAST or FIRST:LAST:STEP")
    first, last, step = (*parts, 1)[:3]
    count = (last - first) / step + 1 if step else 0.0
    if not 1 <= count + 1e-9 <= MOST_VALUES:
        raise ValueError(f"{label}: {shown(said)}: has no values, or more than {MOST_VALUES:,}")
    values = [first + i * step for i in range(int(count + 1e-9))]
    return values if all(isinstance(v, int) for v in values) else [float(f"{v:.12g}") for v in values]


def _number(text: str, label: str) -> Any:
    found = yaml_value(text.strip() or "~", label)
    if isinstance(found, bool) or not isinstance(found, int | float) or not abs(found) < 1e12:
        raise ValueError(f"{label}: {shown(text)} is not a number")
    return found


def _list(said: str, label: str) -> list[Any]:
    """Values between commas; a value may itself be a YAML mapping or list."""
    found = yaml_value(f"[{said}]", label)
    if not isinstance(found, list) or not found or len(found) > MOST_VALUES:
        raise ValueError(f"{label}: {brief(said)!r}: no values")
    return found
