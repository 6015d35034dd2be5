"""What measured devices have in common: one fit of all their rows, as shares of each one's datasheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sim.analytic.hardware import Device
from sim.calibration.fit_formulas import seconds
from sim.calibration.fit_kernels import NEUTRAL, Entry, Errors, entry_terms, errors, fit_layouts
from sim.calibration.kernel_profile import GROUP_OF
from sim.calibration.kernel_rows import columns, is_held, layouts
from sim.calibration.kernel_tables import KernelTable

__all__ = ["generic_profile", "left_out", "left_out_seconds"]

Frame = Any
MOST = 4000  # rows of one device in one format: enough, and no device outweighs another
SMALL = "2 us + bytes / (0.8 x bandwidth): what composing kernels into measured engines asked for"
ELEMENTWISE = {**NEUTRAL, "memory": 0.8, "floor_us": 2.0, "provenance": SMALL}


def generic_profile(
    tables: Sequence[KernelTable], devices: Mapping[str, Device], shipped: Mapping[str, Any]
) -> dict[str, Any]:
    """The class default: products and attention by format; collectives are the medians of ``shipped`` profiles."""
    sections: dict[str, Any] = {"collectives": _median_collectives(shipped)}
    for table in tables:
        if table.kind != "collectives":
            formats = sections.setdefault(GROUP_OF[table.kind], {})
            for name, (frame, rows) in _pooled(table, devices).items():
                entries = fit_layouts(table.kind, frame, rows, np.zeros(len(frame), dtype=bool))
                formats[name] = {key: _spread(entry, shipped, table.kind, name) for key, entry in entries.items()}
    return {"device": "generic", "measurements": "all of the shipped ones, pooled", "libraries": {"any": sections},
            "elementwise": ELEMENTWISE}  # fmt: skip


def left_out(table: KernelTable, devices: Mapping[str, Device]) -> dict[tuple[str, str], Errors]:
    """Errors on each (device, format) of fits that never saw the device; formats of a single device are left away."""
    return {key: errors(*seconds) for key, seconds in left_out_seconds(table, devices).items()}


def left_out_seconds(
    table: KernelTable, devices: Mapping[str, Device]
) -> dict[tuple[str, str], tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """(predicted, measured) seconds on each (device, format), likewise."""
    found = {}
    for name, (frame, rows) in _pooled(table, devices).items():
        for gpu in sorted(set(frame["gpu"])):
            out = (frame["gpu"] == gpu).to_numpy()
            if out.all():
                continue
            seen = {column: values[~out] for column, values in rows.items()}
            entries = fit_layouts(table.kind, frame[~out], seen, np.zeros(int((~out).sum()), dtype=bool))
            found[gpu, name] = _judged(table.kind, frame[out], {c: v[out] for c, v in rows.items()}, entries)
    return found


def _judged(
    kind: str, frame: Frame, rows: Any, entries: dict[str, Entry]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    names = np.array(layouts(kind, frame)) if kind != "gemm" else np.full(len(frame), "any")
    predicted = np.empty(len(frame))
    for name in set(names.tolist()):
        chosen = names == name
        part = {column: values[chosen] for column, values in rows.items()}
        predicted[chosen] = seconds(kind, entry_terms(entries.get(name, entries["any"])), part)
    return predicted, frame["seconds"].to_numpy(float)


def _pooled(table: KernelTable, devices: Mapping[str, Device]) -> dict[str, tuple[Frame, dict[str, Any]]]:
    """Rows by format that fits may see, the same number of each device, with the columns of each one's device."""
    frame = table.frame[~is_held(table.kind, table.frame)]
    if table.kind == "gemm":
        names = frame["dtype"]
    else:
        names = frame["kv_dtype"] if table.kind == "decode_attention" else frame["dtype"] + "-" + frame["kv_dtype"]
    found = {}
    for name, part in frame.groupby(names):
        some = [rows.iloc[:: max(1, len(rows) // MOST)] for _, rows in part.groupby("gpu")]
        each = [columns(table.kind, rows, devices[str(rows["gpu"].iloc[0])]) for rows in some]
        merged = {column: np.concatenate([one[column] for one in each]) for column in each[0]}
        found[str(name)] = (pd.concat(some, ignore_index=True), merged)
    return found


def _spread(entry: Entry, shipped: Mapping[str, Any], kind: str, name: str) -> Entry:
    """The entry with intervals that span what the measured devices and libraries had of each term."""
    seen = [
        formats[name]["any"]
        for profile in shipped.values()
        for sections in profile["libraries"].values()
        if name in (formats := sections.get(GROUP_OF[kind], {}))
    ]
    values = {key: [entry[key], *(s[key] for s in seen if key in s)] for key in entry["interval"]}
    spans = {key: [min(found), max(found)] for key, found in values.items()}
    return {**entry, "interval": spans, "provenance": "class default: all measured GPUs, one fit"}


def _median_collectives(shipped: Mapping[str, Any]) -> dict[str, Any]:
    seen: dict[tuple[str, int], list[Entry]] = {}
    for profile in shipped.values():
        for sections in profile["libraries"].values():
            for kind, by_devices in sections.get("collectives", {}).items():
                for devices, entry in by_devices.items():
                    seen.setdefault((kind, int(devices)), []).append(entry)
    found: dict[str, Any] = {}
    for (kind, devices), entries in sorted(seen.items()):
        keys = ("small_us", "small_efficiency", "large_us", "large_efficiency")
        found.setdefault(kind, {})[devices] = {key: float(np.median([e[key] for e in entries])) for key in keys}
    return found
