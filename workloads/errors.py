"""The one exception a damaged trace raises."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TraceError(ValueError):
    """A trace that cannot be read on: one line `FILE line N: key: value: what is allowed`.

    `rows_ok` counts the rows already yielded, so that a caller can keep them and mark the run as partial.
    """

    def __init__(self, file: str, line: int, key: str, value: object, allowed: str, rows_ok: int = 0) -> None:
        """The parts of that line."""
        self.file, self.line, self.key, self.value, self.allowed = file, line, key, value, allowed
        self.rows_ok = rows_ok
        super().__init__(f"{file} line {line}: {brief(key)}: {shown(value)}: {brief(allowed, 400)}")


class Word(str):
    """Our own word in a message ("missing"), not text from a file: shown without quotes."""


def shown(value: object, width: int = 60) -> str:
    """`value` on one line of at most `width` characters."""
    quoted = isinstance(value, str | bytes | list | dict | tuple) and not isinstance(value, Word)
    try:
        return brief(repr(value) if quoted else str(value), width)
    except ValueError:  # Python refuses to print integers of more than 4300 digits
        return "a very long number"


def brief(text: str, width: int = 60) -> str:
    """`text` with its white space folded, cut to `width` characters."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 3] + "..."


def hint(word: str, allowed: Iterable[str]) -> str:
    """`did you mean 'x'? ` where a name is misspelt (else nothing), then every allowed name."""
    names = sorted(brief(name) for name in allowed)
    near = difflib.get_close_matches(word[:60], names, n=1, cutoff=0.6)
    return (f"did you mean {near[0]!r}? " if near else "") + "allowed: " + ", ".join(names)
