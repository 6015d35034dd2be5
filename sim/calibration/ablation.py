"""Which terms pay: held-out errors of fits that have more and more of them, the median over all tables of a kind."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sim.analytic.hardware import Device
from sim.calibration.fit_formulas import seconds
from sim.calibration.fit_kernels import (
    TILES,
    Errors,
    best_fit,
    entry_terms,
    errors,
    parameters,
    plain_entry,
    tables_of,
)
from sim.calibration.kernel_rows import columns, is_held, layouts
from sim.calibration.kernel_tables import KernelTable

__all__ = ["LADDERS", "ladder"]

# What each step adds; "by layout" fits each head layout by itself.
LADDERS: Mapping[str, tuple[str, ...]] = {
    "gemm": ("compute memory", "floor_us", "overlap_p", "depth_us", "quantise", "hot_share hot_cost", "depth_limit",
             "tile_rows", "wave_columns", "output"),
    "decode_attention": ("compute memory", "floor_us", "overlap_p", "hot_share hot_cost", "tile_tokens", "sequence_ns",
                         "split_us split_tokens", "walk_ns", "by layout"),
    "prefill_attention": ("compute memory", "floor_us", "tile_tokens", "walk_ns", "hot_share hot_cost", "by layout"),
}  # fmt: skip
FEWEST = 1500  # rows of a table


def ladder(table: KernelTable, devices: Mapping[str, Device]) -> list[tuple[str, Errors]]:
    """(what was added, median errors over the tables of that kind) for each step, the bare datasheet first."""
    steps = LADDERS[table.kind]
    found: list[list[Errors]] = [[] for _ in range(len(steps) + 1)]
    for gpu, rows in table.frame.groupby("gpu").indices.items():
        part = KernelTable(table.kind, table.frame.iloc[rows].reset_index(drop=True), table.file)
        for _, index in tables_of(table.kind, part.frame):
            if len(index) >= FEWEST:
                for i in range(len(steps) + 1):
                    found[i].append(_errors(part, index, devices[str(gpu)], steps[:i]))
    said = ("datasheet", *("fits by head layout" if s == "by layout" else s.replace(" ", ", ") for s in steps))
    return [(name, _median(each)) for name, each in zip(said, found, strict=True)]


def _errors(table: KernelTable, index: np.ndarray, device: Device, steps: tuple[str, ...]) -> Errors:
    frame, keys = table.frame.iloc[index], set(" ".join(steps).split())
    rows, held = columns(table.kind, frame, device), is_held(table.kind, frame)
    measured = frame["seconds"].to_numpy(float)
    predicted = np.empty(len(frame))
    names = np.array(layouts(table.kind, frame)) if "layout" in keys else np.full(len(frame), "any")
    wanted = tuple(p for p in parameters(table.kind, str(frame["dtype"].iloc[0])) if p.key in keys)
    tiles = TILES if "tile_rows" in keys else (1,)
    for name in set(names.tolist()):
        chosen = names == name
        train = chosen & ~held if (chosen & ~held).sum() >= 72 else ~held
        entry = {}
        if wanted:
            seen = {column: values[train] for column, values in rows.items()}
            _, tile, at = best_fit(table.kind, wanted, tiles, seen, np.log(measured[train]))
            entry = plain_entry(table.kind, wanted, tile, at)
            entry = {**entry, **({} if "overlap_p" in keys or table.kind[0] == "p" else {"overlap_p": float("inf")})}
        predicted[chosen] = seconds(table.kind, entry_terms(entry), {c: v[chosen] for c, v in rows.items()})
    return errors(predicted[held], measured[held])


def _median(each: list[Errors]) -> Errors:
    values = np.median([[e.median, e.p90, e.bias] for e in each], axis=0).tolist()
    return Errors(values[0], values[1], values[2], len(each))
