"""What a scenario says of HiRE: the two phases of one matrix, and those of attention; every value checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import ceil
from typing import Any

import numpy as np

from sim.plugin import suggest
from sim.variants.number_grid import Grid, check_grid
from sim.variants.options import whole
from sim.variants.topk import recall, shard_recall
from workloads.errors import brief, shown

__all__ = ["Phases", "Reach", "chunk", "parsed", "share", "size", "step_of"]

Count = Any
Size = int | float  # a number of units, or a share of them in (0, 1]
MOST = 1 << 24


@dataclass(frozen=True)
class Phases:
    """Two phases of one matrix. ``candidates``: k', the units fetched for each row; ``keep``: k of them, the true best.

    Both are a whole number of units or a share of them; ``candidates`` may be a list of [rows, k'], from 1 row on.
    ``rank`` (phase 1, LR): numbers that inputs are projected to, or that share of them; None: all. ``bits`` (phase 1,
    Q): of the approximate matrix, with a scale for each ``block`` of a column's numbers; None: as wide as activations.
    ``group``: neighbouring units chosen together. ``overlap``: see sim.variants.topk.union. ``dense_rows``: rows of a
    pass from which the dense product runs instead; None: from where two phases would move more bytes.
    """

    candidates: Any
    keep: Size
    rank: Size | None = None
    bits: int | None = 4
    block: int | str = "channel"
    group: int = 1
    overlap: float | None = None
    dense_rows: int | None = None

    def checked(self, key: str) -> Phases:
        """Itself. Raises ValueError naming option, value and what is allowed."""
        for _, wanted in _steps(f"{key}.candidates", self.candidates):
            size(f"{key}.candidates", wanted)
        size(f"{key}.keep", self.keep)
        if self.rank is not None:
            size(f"{key}.rank", self.rank)
        if self.bits is not None:
            check_grid(f"{key}.bits", Grid(self.bits, self.block))
        whole(f"{key}.group", self.group, 1, 1 << 16)
        if self.rank is None and self.bits is None:
            raise ValueError(f"{key}.rank: none, and bits: none: phase 1 then is the exact product; give one of them")
        share(f"{key}.overlap", self.overlap)
        if self.dense_rows is not None:
            whole(f"{key}.dense_rows", self.dense_rows, 1)
        return self

    @property
    def grid(self) -> Grid | None:
        """How the approximate matrix is stored; None: in the activations' format."""
        return None if self.bits is None else Grid(self.bits, self.block)

    @property
    def steps(self) -> tuple[tuple[int, Size], ...]:
        """(rows from which it holds, k') in order."""
        return _steps("", self.candidates)

    def units(self, said: Size, total: int, shards: int) -> int:
        """``said`` of a matrix cut over ``shards``, of which ``total`` units are here, in whole groups."""
        wanted = ceil(said * total - 1e-9) if isinstance(said, float) else ceil(said / shards)
        return min(total, ceil(wanted / self.group) * self.group)

    def each(self, rows: Count, total: int, shards: int) -> Count:
        """k' of this device's ``total`` units, by the rows of the pass; an int where it does not depend on them."""
        found = [self.units(wanted, total, shards) for _, wanted in self.steps]
        return found[0] if len(found) == 1 else np.asarray(found)[step_of(self.steps, rows)]

    def height(self, inputs: int) -> int | None:
        """Rank of phase 1 as a number."""
        if self.rank is None:
            return None
        return max(1, ceil(self.rank * inputs - 1e-9)) if isinstance(self.rank, float) else min(self.rank, inputs)

    def recall(self, noise: float, total: int, shards: int = 1) -> float:
        """Expected share of the true ``keep`` best of ``total`` among the candidates of a single row.

        ``noise``: standard deviation of phase 1's error over that of the scores (Gaussian); each of ``shards`` names
        its own share. The two losses multiply, to first order. Raises ValueError.
        """
        keep, each = (self.units(said, total, 1) for said in (self.keep, self.steps[0][1]))
        return recall(noise, each, keep, total) * shard_recall(max(1, each // shards), keep, total, shards)

    def check_fits(self, key: str, total: int, inputs: int) -> None:
        """Raise ValueError where a matrix of ``total`` units and ``inputs`` inputs has fewer than asked for."""
        if total % self.group:
            raise ValueError(f"{key}.group: {self.group} does not divide the {total} units")
        if isinstance(self.rank, int) and self.rank > inputs:
            raise ValueError(f"{key}.rank: {self.rank}: must be at most {inputs}, the width of the model")
        keep = self.units(self.keep, total, 1)
        for _, wanted in self.steps:
            if isinstance(wanted, int) and wanted > total:
                raise ValueError(f"{key}.candidates: {wanted}: there are {total}")
            if self.units(wanted, total, 1) < keep:
                raise ValueError(f"{key}.candidates: {shown(wanted)}: must be at least keep, {shown(self.keep)}")


@dataclass(frozen=True)
class Reach:
    """Two phases of attention at decode: ``dims`` of the key dimensions score every cached token (a number or a share).

    Each query attends to its own key and the ``candidates`` best of the others (a number, or a list of [rows, k']).
    """

    candidates: Any
    dims: Size = 0.25

    def checked(self, key: str) -> Reach:
        """Itself. Raises ValueError naming option, value and what is allowed."""
        for _, count in _steps(f"{key}.candidates", self.candidates):
            whole(f"{key}.candidates", count, 1)
        size(f"{key}.dims", self.dims)
        return self

    @property
    def steps(self) -> tuple[tuple[int, int], ...]:
        """(decoding rows from which it holds, k') in order."""
        return _steps("", self.candidates)

    def width(self, head_dim: int) -> int:
        """Key dimensions read in phase 1."""
        return ceil(self.dims * head_dim - 1e-9) if isinstance(self.dims, float) else min(self.dims, head_dim)


def parsed(kind: type[Any], key: str, said: Any, **defaults: Any) -> Any:
    """A Phases or Reach from a mapping of its options, True (all defaults) or None or False (None).

    Raises ValueError naming option, value and what is allowed.
    """
    if said is None or said is False:
        return None
    if isinstance(said, kind):
        return said.checked(key)
    if said is not True and not isinstance(said, Mapping):
        raise ValueError(f"{key}: {shown(said)}: must be a mapping of options, true or false")
    options: dict[str, Any]
    options, allowed = {**defaults, **({} if said is True else said)}, [f.name for f in fields(kind)]
    for option in options:
        if option not in allowed:
            near = suggest(str(option), allowed)
            raise ValueError(f"{key}.{brief(str(option))}: unknown option; it takes {', '.join(allowed)}{near}")
    if isinstance(options.get("candidates"), list):
        options["candidates"] = _steps(f"{key}.candidates", options["candidates"])
    return kind(**options).checked(key)


def step_of(steps: tuple[tuple[int, Any], ...], rows: Count) -> Count:
    """Number of the step that holds for that many rows (fewer than the first: the first)."""
    starts = np.array([start for start, _ in steps])
    return np.maximum(np.searchsorted(starts, rows, side="right") - 1, 0)


def _steps(key: str, said: Any) -> tuple[tuple[int, Any], ...]:
    if not isinstance(said, list | tuple):
        return ((1, said),)
    pairs = [tuple(step) if isinstance(step, list | tuple) else () for step in said]
    if not pairs or any(len(p) != 2 or isinstance(p[0], bool) or not isinstance(p[0], int) for p in pairs):
        raise ValueError(f"{key}: {shown(said)}: must be a number or a list of [rows, number]")
    starts = [p[0] for p in pairs]
    if starts[0] != 1 or starts != sorted(set(starts)):
        raise ValueError(f"{key}: {shown(said)}: rows must rise from 1")
    return tuple((p[0], p[1]) for p in pairs)


def size(key: str, value: Any) -> None:
    """Raise ValueError naming ``key`` unless it is a number of units or a share of them."""
    count = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST
    if not count and not (isinstance(value, float) and 0 < value <= 1):
        raise ValueError(f"{key}: {shown(value)}: must be a whole number of at least 1, or a share above 0, up to 1.0")


def share(key: str, value: Any) -> None:
    """Raise ValueError naming ``key`` unless it is None or a number from 0 to 1."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1):
        raise ValueError(f"{key}: {shown(value)}: must be a number from 0 to 1")


def chunk(key: str, value: Any) -> None:
    """Raise ValueError naming ``key`` unless it is a number of bytes from 0 to a megabyte."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1 << 20:
        raise ValueError(f"{key}: {shown(value)}: must be a number from 0 to {1 << 20}")
