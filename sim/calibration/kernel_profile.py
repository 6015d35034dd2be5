"""Kernel profiles from tables: which fit goes where in the file, the newest version first, kernels by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from hardware_profiles.kernel_files import check_kernels
from sim.analytic.hardware import Device
from sim.calibration.fit_collectives import fit_collectives
from sim.calibration.fit_kernels import Entry, fit_table, tables_of
from sim.calibration.kernel_rows import plausible
from sim.calibration.kernel_tables import FEWEST, KernelTable

__all__ = ["GROUP_OF", "kernel_profile", "save"]

GROUP_OF = {"gemm": "matmul", "decode_attention": "decode_attention", "prefill_attention": "prefill_attention"}


def kernel_profile(
    tables: Sequence[KernelTable], device: Device, said: str, everything: bool = False
) -> dict[str, Any]:
    """The profile of ``device``, whose rows alone ``tables`` hold. Raises ValueError where nothing could be fitted."""
    libraries: dict[str, Any] = {}
    for table in tables:
        plausible(table, device)
        add = _add_collectives if table.kind == "collectives" else _add_kernels
        add(libraries, table, device, everything)
    if not libraries:
        raise ValueError(f"{', '.join(t.file for t in tables)}: no table of {3 * FEWEST} rows to fit")
    return {"device": device.name, "measurements": said, "libraries": libraries}


def save(profile: dict[str, Any], path: Path) -> None:
    """Write the profile, checked, whole or not at all; numbers with four digits."""
    plain = _rounded(profile)
    check_kernels(plain, path.name)
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(yaml.safe_dump(plain, sort_keys=False, width=120, default_flow_style=None), "utf-8")
    beside.replace(path)


def newest(version: str) -> tuple[int, ...]:
    """A version's numbers, for sorting."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:6])


def _add_kernels(libraries: dict[str, Any], table: KernelTable, device: Device, everything: bool) -> None:
    """Older versions under ``library@version``; kernels that few rows use under ``format@kernel``."""
    found = [(key, index) for key, index in tables_of(table.kind, table.frame) if len(index) >= 3 * FEWEST]
    latest = {(key[0], key[2]): max((k[0][1] for k in found if (k[0][0], k[0][2]) == (key[0], key[2])), key=newest)
              for key, _ in found}  # fmt: skip
    for (library, version, name, kernel), index in sorted(found, key=lambda item: -len(item[1])):
        place = library if version == latest[library, name] else f"{library}@{version}"
        formats = libraries.setdefault(place, {}).setdefault(GROUP_OF[table.kind], {})
        formats[f"{name}@{kernel}" if name in formats else name] = _said(
            fit_table(table, index, device, everything), f"{library} {version} {kernel}".strip()
        )


def _said(entries: dict[str, Entry], what: str) -> dict[str, Entry]:
    return {key: {**entry, "provenance": f"fitted to {what}"} for key, entry in entries.items()}


def _add_collectives(libraries: dict[str, Any], table: KernelTable, device: Device, everything: bool) -> None:
    """By library and version, the newest under the library's own name; of several number types the commonest."""
    for library, rows in table.frame.groupby("library"):
        latest = max(rows["version"].unique(), key=newest)
        for version, part in rows.groupby("version"):
            found = fit_collectives(part[part["dtype"] == part["dtype"].mode()[0]], device, everything)
            place = str(library) if version == latest else f"{library}@{version}"
            if found:
                libraries.setdefault(place, {})["collectives"] = found


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
