"""Rules for plain data and the one function that applies them: exact keys, finite numbers, one-line complaints."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Number:
    """A finite number in (above, most], or [above, most] with `closed`; `whole` asks for an int."""

    above: float = 0.0
    most: float = 1e9
    closed: bool = False
    whole: bool = False
    nullable: bool = False
    infinite: bool = False

    def accepts(self, value: object) -> bool:
        """True for a number of the range; NaN and booleans are none."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        if self.infinite and value == float("inf"):
            return True
        return self.above <= value <= self.most and (self.closed or value > self.above)

    def __str__(self) -> str:
        """What is allowed, in words."""
        kind = "a whole number" if self.whole else "a number"
        low = f"from {self.above:g}" if self.closed else f"above {self.above:g}"
        return f"{kind} {low} up to {self.most:g}" + (" or .inf" if self.infinite else "")


@dataclass(frozen=True)
class Text:
    """A non-empty string, one of `choices` where they are given."""

    choices: tuple[str, ...] = ()
    nullable: bool = False

    def accepts(self, value: object) -> bool:
        """True for a string that is allowed."""
        return isinstance(value, str) and bool(value) and (not self.choices or value in self.choices)

    def __str__(self) -> str:
        """What is allowed, in words."""
        return "one of " + ", ".join(self.choices) if self.choices else "text (quote dates)"


@dataclass(frozen=True)
class Items:
    """A list whose items all follow one rule; `length` where it is fixed."""

    item: Rule
    length: int | None = None
    nullable: bool = False


@dataclass(frozen=True)
class Table:
    """A mapping with exactly the keys of `required` and any of `optional`."""

    required: Mapping[str, Rule]
    optional: Mapping[str, Rule] = field(default_factory=dict)
    nullable: bool = False


Rule: TypeAlias = Number | Text | Items | Table


def check(value: object, rule: Rule, where: str) -> None:
    """Raise ValueError, one line beginning with `where`, if `value` breaks `rule` anywhere inside."""
    if value is None and rule.nullable:
        return
    if isinstance(rule, Table):
        _check_table(value, rule, where)
    elif isinstance(rule, Items):
        _check_items(value, rule, where)
    elif not rule.accepts(value):
        allowed = f"{rule} or null" if rule.nullable else str(rule)
        raise ValueError(f"{where} is {brief(value)}, allowed: {allowed}")


def _check_items(value: object, rule: Items, where: str) -> None:
    if not isinstance(value, list) or rule.length not in (None, len(value)):
        size = "" if rule.length is None else f" of {rule.length}"
        raise ValueError(f"{where} is {brief(value)}, allowed: a list{size}")
    for index, item in enumerate(value):
        check(item, rule.item, f"{where}[{index}]")


def _check_table(value: object, rule: Table, where: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {brief(value)}, allowed: a mapping of {', '.join(rule.required)}")
    rules = {**rule.required, **rule.optional}
    for key in value:
        if key not in rules:
            raise ValueError(f"{_join(where, brief(key, bare=True))} is no known key{did_you_mean(key, rules)}")
    for key, inner in rules.items():
        if key in value:
            check(value[key], inner, _join(where, key))
        elif key in rule.required:
            raise ValueError(f"{_join(where, key)} is missing")


def _join(where: str, key: str) -> str:
    return f"{where}{key}" if where.endswith(" ") else f"{where}.{key}"


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """A hint '; did you mean ...?' for a misspelt word, or the list of what is allowed."""
    names = list(known)
    close = difflib.get_close_matches(str(word)[:80], names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; allowed: {', '.join(names)}"


def brief(value: Any, bare: bool = False) -> str:
    """A short one-line picture of a value for a message."""
    text = "a huge number" if isinstance(value, int) and abs(value) > 10**30 else repr(value)
    text = text.strip("'") if bare else text
    return text if len(text) <= 60 else text[:57] + "..."
