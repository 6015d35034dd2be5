"""What is done already of a long study, kept beside its place until the whole of it can be written.

One line of JSON a row, after a first line that says what the rows are of. Rows of another scenario, or computed by
other code, are refused, never mixed in.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sim._version import __version__
from sim.scenario import Scenario

__all__ = ["Journal", "code_stamp", "scenario_stamp"]

PACKAGES = ("analysis", "hardware_profiles", "sim", "workloads")
CODE = (".py", ".yaml", ".json")


@lru_cache(maxsize=1)
def code_stamp() -> str:
    """What computed a row: version, a digest of program and profiles, and numpy's version, on which last bits hang."""
    root, digest = Path(__file__).parents[2], hashlib.sha256()
    files = sorted(file for room in PACKAGES for file in (root / room).rglob("*") if file.suffix in CODE)
    for file in files:
        digest.update(f"{file.relative_to(root)}\n".encode() + file.read_bytes())
    return f"decodesim {__version__} ({digest.hexdigest()[:12]}), numpy {np.__version__}"


def scenario_stamp(scenario: Scenario) -> str:
    """A digest of the scenario as written and of the files that it names."""
    said = scenario.model_dump(exclude_unset=True)
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode())
    for name in sorted(set(_texts(said))):
        if len(name) < 4096 and os.path.isfile(name):
            with open(name, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, str) and "\0" not in value:
        yield value


class Journal:
    """Rows by key. ``about`` says what they are of; a journal of something else is refused."""

    def __init__(self, target: Path, about: Mapping[str, Any], fresh: bool = False) -> None:
        """Open the journal beside ``target``; ``fresh`` throws away what an earlier one holds.

        Raises ValueError, one line, for a journal of other code or another scenario, a damaged one, one that somebody
        else writes, or no permission.
        """
        self.path = target.with_name(f".{target.name}.journal")
        self.target, self.rows = target, dict[str, Any]()
        try:
            self.file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise ValueError(f"{self.path}: cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.file.close()
            raise ValueError(f"{target}: somebody else is at work on it") from None
        try:
            self._read(json.loads(json.dumps(dict(about))), fresh)
        except ValueError:
            self.file.close()
            raise

    def _read(self, about: dict[str, Any], fresh: bool) -> None:
        self.file.seek(0)
        lines = [] if fresh else self.file.read().split("\n")
        whole = [_parsed(line) for line in lines[:-1]]  # the last line was cut short, or is empty
        if None in whole:
            bad = whole.index(None) + 1
            raise ValueError(f"{self.path}: line {bad}: is damaged; --restart begins anew")
        if not whole:
            self._truncate("")
            self._write(about)
            return
        self._check(whole[0], about)
        self.rows = {str(row["key"]): row["row"] for row in whole[1:] if row}
        self._truncate("".join(f"{line}\n" for line in lines[:-1]))

    def _check(self, found: Any, about: dict[str, Any]) -> None:
        for key, wanted in about.items():
            had = found.get(key) if isinstance(found, dict) else None
            if had != wanted:
                raise ValueError(
                    f"{self.path}: holds results of another {key} ({str(had)[:80]}, not {str(wanted)[:80]}), which are "
                    "not mixed in; --restart begins anew"
                )

    def _truncate(self, text: str) -> None:
        """Keep whole lines only: a row that was cut short is computed again."""
        self.file.seek(0)
        self.file.truncate(len(text.encode()))
        self.file.seek(0, os.SEEK_END)

    def _write(self, value: Any) -> None:
        self.file.write(json.dumps(value, allow_nan=False) + "\n")
        self.file.flush()

    def add(self, key: str, row: Any) -> None:
        """Keep a row, at once. Raises ValueError where it cannot be written."""
        try:
            self._write({"key": key, "row": row})
        except OSError as error:
            raise ValueError(f"{self.path}: cannot be written: {error.strerror}") from None
        self.rows[key] = row

    def close(self, done: bool = False) -> None:
        """Leave the journal for a resumption, or take it away because the whole is written or nothing is known yet."""
        self.file.close()
        if done or not self.rows:
            self.path.unlink(missing_ok=True)


def _parsed(line: str) -> Any:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and ("row" not in found or "key" in found) else None
