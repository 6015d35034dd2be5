"""Where a result comes from: versions, seed and commit, as comments above the resolved scenario."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np

from sim._version import __version__

__all__ = ["commit", "header"]


def header(seed: int) -> str:
    """Comment lines; together with the scenario below them they are enough to repeat the run bit for bit."""
    found = commit(Path(__file__).parents[1])
    lines = [
        "As resolved: every default written out. `decodesim run` takes this file.",
        f"decodesim {__version__}" + (f", commit {found}" if found else ""),
        f"python {platform.python_version()}, numpy {np.__version__}, {platform.system()} {platform.machine()}",
        f"seed {seed}",
    ]
    return "".join(f"# {line}\n" for line in lines)


def commit(root: Path) -> str | None:
    """The commit that a checkout stands at, read off its files; None where there is no checkout."""
    try:
        head = (root / ".git" / "HEAD").read_text("utf-8").strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        loose = root / ".git" / name
        if loose.is_file():
            return loose.read_text("utf-8").strip()
        packed = (root / ".git" / "packed-refs").read_text("utf-8").splitlines()
        return next((line.split()[0] for line in packed if line.endswith(f" {name}")), None)
    except (OSError, UnicodeDecodeError):
        return None
