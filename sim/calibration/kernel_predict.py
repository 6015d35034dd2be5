"""What a kernel profile says of every row of a table, beside what was measured and what the datasheet alone says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import as_file, files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.kernel_files import LIBRARIES, kernels, measured, read_kernels
from sim.analytic.fused import layout_keys
from sim.analytic.hardware import Device, Terms
from sim.calibration.fit_collectives import collective_of
from sim.calibration.fit_formulas import seconds
from sim.calibration.fit_kernels import entry_terms, tables_of
from sim.calibration.kernel_profile import GROUP_OF
from sim.calibration.kernel_rows import columns, sent
from sim.calibration.kernel_tables import KernelTable

__all__ = ["entries_of", "entries_of_collectives", "names_of", "predicted", "textbook"]

Floats = NDArray[np.float64]
Profile = Mapping[str, Any]


def predicted(table: KernelTable, device: Device, profile: Profile | None = None, library: str | None = None) -> Floats:
    """Seconds of every row on ``device``: by ``profile``, else by the shipped ones; ``library`` over the rows' own.

    Raises ValueError for number formats that the device has no rate for.
    """
    out = np.full(len(table.frame), np.nan)
    if table.kind == "collectives":
        return _collectives(table, device, profile, library)
    rows = columns(table.kind, table.frame, device)
    for key, index in tables_of(table.kind, table.frame):
        entries = entries_of(GROUP_OF[table.kind], (library or key[0], *key[1:]), device, profile)
        frame = table.frame.iloc[index]
        names = np.full(len(frame), "any", dtype=object) if table.kind == "gemm" else names_of(frame, entries)
        for name in sorted(set(names)):
            chosen = index[names == name]
            part = {column: values[chosen] for column, values in rows.items()}
            out[chosen] = seconds(table.kind, entry_terms(entries[name]), part)
    return out


def textbook(table: KernelTable, device: Device) -> Floats:
    """Seconds by the datasheet alone."""
    if table.kind == "collectives":
        return np.asarray(sent(table.frame) / (device.link.bandwidth_Bps or np.inf), dtype=np.float64)
    return seconds(table.kind, Terms(), columns(table.kind, table.frame, device))


def entries_of(group: str, key: tuple[str, ...], device: Device, profile: Profile | None = None) -> Profile:
    """Entries by head layout for (library, version, format, kernel): as close a fit as there is."""
    library, version, name, kernel = key
    own = profile["libraries"] if profile is not None else _shipped(device.name)
    for place in (f"{library}@{version}", library):
        formats = own.get(place, {}).get(group, {})
        for known in (f"{name}@{kernel}", name):
            if known in formats:
                return dict(formats[known])
    rest: Profile = kernels(device.name, library if library in LIBRARIES else LIBRARIES[0])
    return _entries(rest, group, name)


def _entries(merged: Profile, group: str, name: str) -> Profile:
    """The format's own, or those of the nearest format that anything was measured in."""
    near = (name, name.removesuffix("_block"), "bf16", "bf16-fp8" if name.endswith("fp8") else "bf16-bf16")
    known: Profile = merged[group]
    return dict(known[next((n for n in near if n in known), next(iter(known)))])


@cache
def _shipped(device: str) -> Profile:
    if device not in measured():
        return {}
    with as_file(files("hardware_profiles") / "kernels" / f"{device}.yaml") as path:
        found: Profile = read_kernels(path)["libraries"]
    return found


def names_of(frame: Any, entries: Profile) -> Any:
    """Which entry each row's head layout takes."""
    columns = (frame["heads"], frame["kv_heads"], frame["head_dim"], frame["window"] > 0)
    layouts = [(int(h), int(k), int(d), bool(w)) for h, k, d, w in zip(*columns, strict=True)]
    found = {layout: next(key for key in layout_keys(*layout) if key in entries) for layout in set(layouts)}
    return np.array([found[layout] for layout in layouts], dtype=object)


def _collectives(table: KernelTable, device: Device, profile: Profile | None, library: str | None) -> Floats:
    out, moved = np.full(len(table.frame), np.nan), sent(table.frame)
    link_Bps = device.link.bandwidth_Bps or float("nan")
    for entry, index in entries_of_collectives(table, device, profile, library):
        out[index] = collective_of(entry).seconds(moved[index], link_Bps)
    return out


def entries_of_collectives(
    table: KernelTable, device: Device, profile: Profile | None = None, library: str | None = None
) -> Iterator[tuple[Profile, Any]]:
    """The entry of each collective among so many devices of a library, and the numbers of its rows."""
    keys = [table.frame[c] for c in ("library", "version", "op", "num_gpus")]
    own = profile["libraries"] if profile is not None else _shipped(device.name)
    for (name, version, kind, devices), index in table.frame.groupby(keys).indices.items():
        wanted = library or str(name)
        merged = kernels(device.name, wanted if wanted in LIBRARIES else LIBRARIES[0])
        places = [own.get(f"{wanted}@{version}", {}), own.get(wanted, {}), merged]
        found = next(c for c in (*(p.get("collectives", {}).get(kind) for p in places), {}) if c is not None)
        if found:
            near = min(found, key=lambda n: (abs(np.log2(float(n) / devices)), -int(n)))
            yield found[near], index
