"""Acceptance measured token by token: for each token of a text, how likely a draft of it was to be kept.

A file is CSV with the columns ``text`` (which text: a whole number, ascending) and ``beta`` (0 to 1), a token a row;
SOURCES.md says how the shipped ones were measured.

>>> len(load("primary--drafter")) > 1000
True
"""

from __future__ import annotations

import csv
import difflib
from importlib.resources import files
from importlib.resources.abc import Traversable
from io import StringIO
from os import PathLike, fspath
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["load", "names"]

MOST_TOKENS = 200_000
MAX_BYTES = 64 * MOST_TOKENS
COLUMNS = ["text", "beta"]


def names() -> list[str]:
    """The shipped pairs, as TARGET--DRAFT, sorted."""
    found = (f.name for f in files("workloads.acceptance").iterdir())
    return sorted(name.removesuffix(".csv") for name in found if name.endswith(".csv"))


def load(name_or_path: str | PathLike[str]) -> NDArray[np.float64]:
    """Acceptance probabilities of all texts end to end, shape [tokens].

    Raises ValueError, one line naming file, line and value, for an unknown pair or a file that is not as described.
    """
    text = fspath(name_or_path)
    if text in names():
        return _read(files("workloads.acceptance") / f"{text}.csv", f"{text}.csv")
    if not text.endswith(".csv") and "/" not in text:
        close = difflib.get_close_matches(text[:80], names(), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"allowed: a CSV file, or {', '.join(names())}"
        raise ValueError(f"no measured acceptance {text[:80]!r}; {hint}")
    if not Path(text).is_file():
        raise ValueError(f"{text}: no such file")
    return _read(Path(text), text)


def _read(file: Traversable, label: str) -> NDArray[np.float64]:
    with file.open("rb") as stream:
        data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"{label}: larger than {MAX_BYTES} bytes; allowed: at most {MOST_TOKENS} tokens")
    try:
        rows = list(csv.reader(StringIO(data.decode("utf-8")), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{label}: not CSV: {' '.join(str(error).split())}") from None
    if not rows or rows[0] != COLUMNS:
        raise ValueError(f"{label}: line 1: {str(rows[:1])[:80]}; allowed: the columns text,beta")
    return np.array([_beta(row, f"{label}: line {i}") for i, row in enumerate(rows[1:], 2)], dtype=np.float64)


def _beta(row: list[str], where: str) -> float:
    try:
        _, beta = int(row[0]), float(row[1])
    except (ValueError, IndexError):
        raise ValueError(f"{where}: {str(row)[:80]}; allowed: a whole number and a probability") from None
    if len(row) != 2 or not 0.0 <= beta <= 1.0:
        raise ValueError(f"{where}: {str(row)[:80]}; allowed: a whole number and a probability from 0 to 1")
    return beta
