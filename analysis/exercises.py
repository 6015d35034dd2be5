"""Exercises of the notebooks: ``check("1.2", 120)`` says whether an answer is right, and if not, what may be wrong.

Answers lie in exercises.yaml, hidden from a glance and from nobody who means to look: they spare the reader the sight
of them, no more. Numbers are compared within a tolerance; slips that are often made (bytes for bits, a factor of two,
the reciprocal) are named.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from math import isfinite
from pathlib import Path
from struct import pack, unpack
from typing import Any

import yaml

from sim.plugin import suggest

__all__ = ["Exercise", "Verdict", "check", "exercises", "hide"]

FILE = Path(__file__).with_name("exercises.yaml")
KEYS = ("unit", "within_percent", "answer", "choices", "slips")

SLIPS: tuple[tuple[float, str], ...] = (
    (2, "a factor of two off: a multiply-add is two FLOP, a 16-bit number two bytes, a cache keys and values"),
    (8, "a factor of eight off: bits are not bytes"),
    (100, "a factor of a hundred off: a share is not a percentage"),
    (1.024, "2.4 % off: a kibibyte is 1,024 bytes"),
    (1.048576, "4.9 % off: a mebibyte is 1,048,576 bytes"),
    (1.073741824, "7.4 % off: a GiB is not a GB"),
    (1e3, "a factor of a thousand off: look at the unit"),
    (1e6, "a factor of a million off: look at the unit"),
    (1e9, "a factor of 10^9 off: look at the unit"),
)


@dataclass(frozen=True)
class Exercise:
    """One exercise: its number, what it asks for, how near an answer must be, and hidden answers.

    ``slips``: (hidden wrong answer, what leads to it). ``choices``: the words to choose from, where it asks for one.
    """

    number: str
    unit: str
    within: float
    answer: str
    choices: tuple[str, ...] = ()
    slips: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What ``check`` found: ``right`` is None where nothing was answered. True in a condition if right."""

    number: str
    right: bool | None
    message: str

    def __bool__(self) -> bool:
        return bool(self.right)

    def __repr__(self) -> str:
        return f"{self.number}: {self.message}"


def check(number: str, answer: object) -> Verdict:
    """Judge an answer, a number or a word; ``...`` and None stand for no answer yet.

    Raises ValueError, one line, for an exercise that does not exist and for an answer of the wrong kind.
    """
    known = exercises()
    if number not in known:
        raise ValueError(f"exercise {str(number)[:40]!r}; allowed: {', '.join(known)}{suggest(str(number), known)}")
    asked = known[number]
    if answer is ... or answer is None:
        return Verdict(number, None, f"not answered yet ({asked.unit})")
    return _word(asked, answer) if asked.choices else _number(asked, answer)


def hide(number: str, answer: float | str) -> str:
    """An answer as exercises.yaml holds it: a number veiled by the exercise's own key, a word as its hash."""
    if isinstance(answer, str):
        return sha256(f"{number} {answer}".encode()).hexdigest()[:16]
    return b64encode(_veil(number, pack(">d", answer))).decode()


@cache
def exercises() -> Mapping[str, Exercise]:
    """All exercises by number, in order. Raises ValueError naming the file and the entry that is not one."""
    found = yaml.safe_load(FILE.read_text("utf-8"))
    return {number: _exercise(number, entry) for number, entry in found.items()}


def _exercise(number: str, entry: Mapping[str, Any]) -> Exercise:
    if not isinstance(number, str) or not isinstance(entry, dict) or set(entry) - set(KEYS):
        raise ValueError(f"{FILE.name}: {number!r}: not an exercise with keys of {', '.join(KEYS)}")
    choices, slips = tuple(entry.get("choices", ())), tuple(map(tuple, entry.get("slips", ())))
    made = Exercise(number, entry["unit"], entry.get("within_percent", 1) / 100, entry["answer"], choices, slips)
    for hidden in () if choices else (made.answer, *(slip for slip, _ in slips)):
        _shown(number, hidden)
    return made


def _shown(number: str, hidden: str) -> float:
    try:
        veiled = b64decode(hidden, validate=True)
        return float(unpack(">d", _veil(number, veiled))[0])
    except (NotBase64, ValueError, TypeError) as error:
        raise ValueError(f"{FILE.name}: {number}: {hidden!r} hides no number: {error}") from None


def _veil(number: str, plain: bytes) -> bytes:
    key = sha256(f"decodesim exercise {number}".encode()).digest()[:8]
    return bytes(a ^ b for a, b in zip(plain, key, strict=True))


def _word(asked: Exercise, answer: object) -> Verdict:
    if not isinstance(answer, str):
        raise ValueError(f"exercise {asked.number}: {answer!r} is not one of {', '.join(asked.choices)}")
    said = answer.strip().lower()
    if said not in asked.choices:
        hint = suggest(said, asked.choices)
        raise ValueError(f"exercise {asked.number}: {said[:40]!r} is not one of {', '.join(asked.choices)}{hint}")
    if hide(asked.number, said) == asked.answer:
        return Verdict(asked.number, True, "right")
    return Verdict(asked.number, False, next(iter(_said(asked, said)), "not that one"))


def _said(asked: Exercise, said: str) -> Iterator[str]:
    return (hint for word, hint in asked.slips if word == hide(asked.number, said))


def _number(asked: Exercise, answer: object) -> Verdict:
    try:
        said = float(answer) if not isinstance(answer, bool | str) else None  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        said = None
    if said is None or not isfinite(said):
        raise ValueError(f"exercise {asked.number}: {str(answer)[:40]!r} is not a number ({asked.unit})")
    right = _shown(asked.number, asked.answer)
    if _near(said, right, asked.within):
        return Verdict(asked.number, True, f"right, {right:,.6g} {asked.unit}")
    return Verdict(asked.number, False, next(_hints(asked, said, right)))


def _hints(asked: Exercise, said: float, right: float) -> Iterator[str]:
    """What may have gone wrong, likeliest first."""
    near = min(asked.within, 0.01)
    yield from (hint for slip, hint in asked.slips if _near(said, _shown(asked.number, slip), near))
    for factor, hint in SLIPS:
        narrow = min(near, (factor - 1) / 4)
        if _near(said, right * factor, narrow) or _near(said, right / factor, narrow):
            yield hint
    if _near(said * right, 1.0, near):
        yield "the other way round: this is the reciprocal"
    if _near(-said, right, near):
        yield "the sign is wrong"
    if _near(said, right, 10 * asked.within):
        yield f"near, but not within {asked.within:.1%}: round less on the way"
    yield "too small" if said < right else "too large"


def _near(a: float, b: float, within: float) -> bool:
    return abs(a - b) <= within * abs(b)
