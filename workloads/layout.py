"""Which columns of a file mean what, and the raw rows a reader hands to the checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from workloads.columns import Ints

NS_PER = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
"""Nanoseconds in one unit of an arrival column; the fifth unit, "date", is a calendar stamp."""


@dataclass(frozen=True)
class Layout:
    """Names of the columns of a file format.

    `arrival` maps the accepted arrival columns to their unit ("s", "ms", "us", "ns" or "date"); the first one that the
    header has is used. Where it has none, the file holds lengths only (allowed if `arrival_optional`).
    """

    prompt: str
    output: str
    arrival: Mapping[str, str] = field(default_factory=dict)
    arrival_optional: bool = False
    session: str | None = None
    priority: str | None = None
    samples: str | None = None
    tenant: str | None = None

    def arrival_in(self, header: list[str]) -> str | None:
        """The arrival column that this header has, if any."""
        return next((name for name in self.arrival if name in header), None)

    def missing(self, header: list[str]) -> str | None:
        """The first required column that this header lacks, if any."""
        required = [self.prompt, self.output]
        lacking = [name for name in required if name not in header]
        if not lacking and self.arrival and not self.arrival_optional and self.arrival_in(header) is None:
            lacking = [" | ".join(self.arrival)]
        return lacking[0] if lacking else None

    def extras(self, header: list[str]) -> dict[str, str]:
        """Optional columns present, as {field of Columns: column of the file}."""
        optional = ("session", "priority", "samples", "tenant")
        named = {key: getattr(self, key) for key in optional}
        return {key: name for key, name in named.items() if name is not None and name in header}


@dataclass(frozen=True)
class Rows:
    """Raw rows as a reader found them, unchecked: shapes [n], `lines` the line (or row) number of each in the file.

    `keys` gives the file's own names of arrival, prompt and output, for error messages. `epoch` says that stamps are
    calendar times, to be counted from the first row.
    """

    lines: Ints
    prompt: Ints
    output: Ints
    arrival_ns: Ints | None = None
    session: Ints | None = None
    priority: Ints | None = None
    samples: Ints | None = None
    hash_ids: list[Ints] | None = None
    hash_block_tokens: int | None = None
    keys: tuple[str, str, str] = ("arrival", "prompt", "output")
    epoch: bool = False
    tenant: Ints | None = None


@dataclass
class Ids:
    """Numbers conversation names in order of first appearance (-1 for an empty name)."""

    known: dict[str, int] = field(default_factory=dict)

    def number(self, name: str) -> int:
        """The number of one name."""
        return -1 if not name else self.known.setdefault(name, len(self.known))


def seconds_to_ns(values: NDArray[np.float64], ns_per: int) -> NDArray[np.float64]:
    """Float stamps in a unit of `ns_per` ns -> whole ns, still as floats so that the caller can check the range."""
    return np.rint(values * float(ns_per))


def fits_int64(values_ns: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which float stamps [n] are finite and inside int64 ns (292 years)."""
    with np.errstate(invalid="ignore"):
        return np.isfinite(values_ns) & (np.abs(values_ns) < 2.0**63)
