"""One measured point of a service: what was asked of it, and what was measured, in vLLM's words."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workloads.errors import shown

__all__ = ["MEASURED", "Lengths", "Point", "known", "number", "text"]

MEASURED = re.compile(r"(mean|median|p\d{1,2}(\.\d+)?)_(ttft|tpot|itl|e2el)_ms|(request|output)_throughput")
MOST_BYTES = 1 << 29
MOST_TOKENS = 1e8
MOST = 1e300


@dataclass(frozen=True)
class Lengths:
    """Tokens of a prompt or an answer: mean, standard deviation, and the ends of a uniform law where one was drawn."""

    mean: float
    std: float = 0.0
    ends: tuple[int, int] | None = None


@dataclass(frozen=True)
class Point:
    """A row of a results file.

    ``where``: file and place, for messages. ``said``: model, engine, hardware, precision and layout as the file names
    them, where it does. ``rate``: requests/s, infinite where all came at once; None in a closed loop
    of ``concurrency``. ``measured``: by names that MEASURED matches, milliseconds or per second. ``rows``: (prompt,
    output) tokens of every request in order, ``starts_s`` their starts, where the file has them.
    """

    where: str
    tool: str
    rate: float | None
    concurrency: int | None
    requests: int
    prompt: Lengths
    output: Lengths
    measured: Mapping[str, float]
    said: Mapping[str, Any] = field(default_factory=dict)
    burstiness: float = 1.0
    rows: tuple[tuple[int, int], ...] = ()
    starts_s: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()


def number(found: Mapping[str, Any], key: str, where: str, most: float = math.inf) -> float:
    """A finite number above 0 of a mapping. Raises ValueError naming place, key and value."""
    value = found.get(key)
    usable = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= min(most, MOST)
    if not usable:
        said = "missing" if key not in found else shown(value)
        raise ValueError(f"{where}: {key}: {said}: must be a number above 0" + (f", at most {most:g}" * (most < 1e300)))
    return float(value)  # type: ignore[arg-type]


def known(found: Mapping[str, Any], where: str) -> tuple[dict[str, float], tuple[str, ...]]:
    """What was measured, by vLLM's names; what is no number above 0 is left out, and said."""
    kept, notes = {}, []
    for key, value in found.items():
        if not isinstance(key, str) or not MEASURED.fullmatch(key) or value is None or value == "":
            continue
        try:
            kept[key] = number(found, key, where)
        except ValueError as error:
            if not (isinstance(value, int | float) and value == 0):  # vLLM writes 0 where it has nothing
                notes.append(f"{error}; left out")
    return kept, tuple(notes)


def text(path: Path) -> str:
    """The file's text. Raises ValueError where there is none, where it is larger than 512 MB, or not UTF-8."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes: must be at most {MOST_BYTES}")
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8: must be JSON, JSONL or CSV") from None
