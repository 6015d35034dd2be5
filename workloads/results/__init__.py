"""Results that users of serving benchmarks already have, as plain measured points: recognised by content.

>>> read("bench.json")  # doctest: +SKIP
[Point(where='bench.json', tool='vllm bench serve', ...)]
"""

from __future__ import annotations

import json
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from workloads.errors import shown
from workloads.results import aiperf, guidellm, table, vllm
from workloads.results.point import Lengths, Point, text

__all__ = ["Lengths", "Point", "read"]

FORMATS = "vllm bench serve JSON, GuideLLM JSON, AIPerf profile_export.jsonl, or the CSV of docs/calibration.md"


def read(path: str | PathLike[str]) -> list[Point]:
    """The measured points of a file. Raises ValueError, one line naming file, key, value and what is allowed."""
    file = fspath(path)
    said = text(Path(file))
    first = said.lstrip()[:1]
    if not first:
        raise ValueError(f"{file}: empty: must be {FORMATS}")
    found = list(table.points(said, file)) if first not in "{[" else _of_json(said, file)
    if not found:
        raise ValueError(f"{file}: holds no measured point: must be {FORMATS}")
    return found


def _of_json(said: str, file: str) -> list[Point]:
    whole = _parsed(said)
    objects = whole if isinstance(whole, list) else [whole] if whole is not None else _lines(said, file)
    if not objects:
        raise ValueError(f"{file}: holds nothing: must be {FORMATS}")
    if guidellm.matches(objects[0]):
        return [one for found in objects if guidellm.matches(found) for one in guidellm.points(found, file)]
    if all(map(aiperf.matches, objects)):
        return [aiperf.point(objects, file)]
    if all(map(vllm.matches, objects)):
        many = len(objects) > 1
        return [vllm.point(one, f"{file} result {n}" if many else file) for n, one in enumerate(objects, 1)]
    raise ValueError(f"{file}: {shown(_keys(objects))}: must be {FORMATS}")


def _keys(objects: list[Any]) -> str:
    """The keys of the first object that is of no format."""
    odd = next((o for o in objects if not (aiperf.matches(o) or vllm.matches(o))), objects[0])
    return "keys " + ", ".join(map(str, list(odd)[:8])) if isinstance(odd, dict) else f"a {type(odd).__name__}"


def _parsed(said: str) -> Any:
    """The whole text as one JSON value, None where it is none."""
    try:
        return json.loads(said)
    except (ValueError, RecursionError):
        return None


def _lines(said: str, file: str) -> list[Any]:
    """One JSON object a line. Raises ValueError naming the line that is none."""
    found = []
    for number, line in enumerate(said.splitlines(), 1):
        if line.strip():
            try:
                found.append(json.loads(line))
            except (ValueError, RecursionError):
                raise ValueError(f"{file} line {number}: {shown(line)}: not JSON, neither as a line nor all") from None
    return found
