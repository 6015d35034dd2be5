"""What this machine allows: memory in use, and where a run has to stop before the machine stops it."""

from __future__ import annotations

import os
import resource
import sys
from functools import cache
from pathlib import Path

__all__ = ["memory_is_short", "memory_limit_bytes", "peak_memory_bytes"]

SHARE = 0.5  # the other half is for the tables that metrics and files are made of
CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def peak_memory_bytes() -> int:
    """The most memory that this process has held at once."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@cache
def memory_limit_bytes() -> int:
    """Physical memory, or what the container or the shell leaves of it."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), resource.getrlimit(resource.RLIMIT_AS)[0]]
    limits += [int(text) for text in map(_text, CGROUPS) if text.isdigit()]
    return min(limit for limit in limits if limit > 0)


def memory_is_short() -> bool:
    """Whether a run holds as much as it may, with room left to save what it has."""
    return peak_memory_bytes() > SHARE * memory_limit_bytes()


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
