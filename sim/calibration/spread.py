"""How far a kernel profile is off beside what it was fitted to, and where its measurements end: ``ratio``, ``range``.

``ratio`` holds the 10th, 50th and 90th percentile of measured over predicted seconds, on every other one of the shapes
that no fit has seen; the rest of them are left for checking how often intervals made of it hold
(sim/silicon/coverage.py). ``range`` holds the smallest and largest of each size among the rows that were fitted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.analytic.hardware import Device
from sim.calibration.fit_kernels import tables_of
from sim.calibration.kernel_predict import entries_of, names_of, predicted, textbook
from sim.calibration.kernel_profile import GROUP_OF
from sim.calibration.kernel_rows import is_held, sent, shapes
from sim.calibration.kernel_tables import KernelTable

__all__ = [
    "FEWEST_JUDGED",
    "LEVELS",
    "SIZES",
    "annotated",
    "for_checking",
    "for_spread",
    "quantiles",
    "textbook_ratios",
]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Profile = dict[str, Any]
LEVELS = (0.1, 0.5, 0.9)
FEWEST_JUDGED = 60  # rows of which a spread is taken; an entry with fewer has that of its table
LARGE_S = 20e-6  # of a datasheet's time: below it, launches are what is compared, which serving hides in graphs
# A profile's name for a size, and the column of a table that has it.
SIZES: Mapping[str, Mapping[str, str]] = {
    "gemm": {"m": "m", "n": "n", "k": "k"},
    "decode_attention": {"batch": "batch", "context": "kv_len", "heads": "heads", "head_dim": "head_dim"},
    "prefill_attention": {"batch": "batch", "context": "isl", "heads": "heads", "head_dim": "head_dim"},
}


def for_spread(table: KernelTable) -> Mask:
    """Rows of the held-out shapes that spreads are taken from."""
    first: Mask = shapes(table.kind, table.frame) // 2 % 2 == 0
    return is_held(table.kind, table.frame) & first


def for_checking(table: KernelTable) -> Mask:
    """Rows of the held-out shapes that neither a fit nor a spread has seen."""
    return is_held(table.kind, table.frame) & ~for_spread(table)


def quantiles(ratios: Floats) -> list[float]:
    """The percentiles of ``ratio``, in four digits; NaN are left out."""
    found = np.quantile(ratios[np.isfinite(ratios)], LEVELS)
    return [float(f"{value:.4g}") for value in found]


def annotated(profile: Profile, tables: Sequence[KernelTable], device: Device, everything: bool = False) -> Profile:
    """The profile of ``device``, whose rows alone ``tables`` hold, with ``ratio`` and ``range`` in every entry.

    ``everything``: take spreads from all rows, where a user's own profile was fitted to all.
    """
    made = deepcopy(profile)
    for table in tables:
        if not len(table.frame):
            continue
        seconds = table.frame["seconds"].to_numpy(float) / predicted(table, device, made)
        chosen = np.ones(len(seconds), dtype=bool) if everything else for_spread(table)
        fitted = chosen if everything else ~is_held(table.kind, table.frame)
        mark = _mark_collectives if table.kind == "collectives" else _mark_kernels
        mark(made, table, device, seconds, chosen, fitted)
    return made


def _mark_kernels(
    made: Profile, table: KernelTable, device: Device, ratios: Floats, chosen: Mask, fitted: Mask
) -> None:
    for entries, index in _placed(made, table, device):
        names = np.full(len(index), "any", dtype=object)
        if table.kind != "gemm":
            names = names_of(table.frame.iloc[index], entries)
        whole = ratios[index[chosen[index]]]
        for name, entry in entries.items():
            own = index if name == "any" else index[names == name]
            some = ratios[own[chosen[own]]]
            spread = some if np.isfinite(some).sum() >= FEWEST_JUDGED else whole
            if np.isfinite(spread).any():
                entry["ratio"] = quantiles(spread)
            seen = table.frame.iloc[own[fitted[own]]]
            if len(seen):
                entry["range"] = {
                    size: [int(seen[c].min()), int(seen[c].max())] for size, c in SIZES[table.kind].items()
                }


def _placed(made: Profile, table: KernelTable, device: Device) -> Iterator[tuple[dict[str, Any], Any]]:
    """Entries by head layout of the profile itself, and the rows of ``table`` that they predict."""
    rows: dict[int, list[Any]] = {}
    known = {id(e["any"]): e for s in made["libraries"].values()
             for e in s.get(GROUP_OF[table.kind], {}).values()}  # fmt: skip
    for key, index in tables_of(table.kind, table.frame):
        found = id(entries_of(GROUP_OF[table.kind], key, device, made)["any"])
        if found in known:
            rows.setdefault(found, []).append(index)
    for found, parts in rows.items():
        yield known[found], np.concatenate(parts)


def _mark_collectives(
    made: Profile, table: KernelTable, device: Device, ratios: Floats, chosen: Mask, fitted: Mask
) -> None:
    """Sizes are few: all operations and libraries of a device among so many devices share one spread."""
    moved, among = sent(table.frame), table.frame["num_gpus"].to_numpy(int)
    for sections in made["libraries"].values():
        for kind, by_devices in sections.get("collectives", {}).items():
            for devices, entry in by_devices.items():
                same = among == int(devices)
                entry["ratio"] = quantiles(ratios[same & chosen])
                own = same & fitted & (table.frame["op"] == kind).to_numpy()
                if own.any():
                    entry["range"] = {"sent_bytes": [int(moved[own].min()), int(moved[own].max())]}


def textbook_ratios(tables: Sequence[KernelTable], devices: Mapping[str, Device]) -> dict[str, dict[str, list[float]]]:
    """Measured over the datasheet's seconds by kind of kernel and format, ``any`` over all formats.

    One-sided: nothing runs faster than its datasheet says, whatever a cache did in a benchmark. Only what takes
    ``LARGE_S`` or longer by the datasheet.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for table in tables:
        ideal = _ideal(table, devices)
        ratios = np.maximum(table.frame["seconds"].to_numpy(float) / ideal, 1.0)
        large = (ideal >= LARGE_S) & for_spread(table)
        formats = found.setdefault(GROUP_OF.get(table.kind, table.kind), {"any": quantiles(ratios[large])})
        names = table.frame["dtype"].to_numpy(str)
        for name in sorted(set(names)) if table.kind == "gemm" else ():
            chosen = large & (names == name)
            if chosen.sum() >= FEWEST_JUDGED:
                formats[str(name)] = quantiles(ratios[chosen])
    return found


def _ideal(table: KernelTable, devices: Mapping[str, Device]) -> Floats:
    """The datasheet's seconds of every row."""
    ideal = np.full(len(table.frame), np.nan)
    for gpu, device in devices.items():
        own = (table.frame["gpu"] == gpu).to_numpy()
        if own.any():
            part = replace(table, frame=table.frame[own].reset_index(drop=True))
            ideal[own] = textbook(part, device)
    return ideal
