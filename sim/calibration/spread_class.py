"""How far the class default is off on a device that it has not seen, and how far a datasheet is: for generic.yaml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.analytic.hardware import Device
from sim.calibration.fit_collectives import collective_of
from sim.calibration.kernel_generic import left_out_seconds
from sim.calibration.kernel_profile import GROUP_OF
from sim.calibration.kernel_rows import is_held, sent
from sim.calibration.kernel_tables import KernelTable
from sim.calibration.spread import LEVELS, SIZES, quantiles, textbook_ratios

__all__ = ["MOST_OF_DEVICE", "class_ratios", "pooled", "with_spreads"]

Floats = NDArray[np.float64]
Profile = dict[str, Any]
MOST_OF_DEVICE = 2000  # rows of one device in a pool: no device outweighs another


def with_spreads(generic: Profile, tables: Sequence[KernelTable], devices: Mapping[str, Device]) -> Profile:
    """The class default with ``ratio`` and ``range`` in its entries, and ``textbook``: what a datasheet is off by.

    A ratio is over devices left out one at a time; a format of one device has the widest of all formats but bf16.
    """
    made = deepcopy(generic)
    sections = made["libraries"]["any"]
    for table in tables:
        if table.kind == "collectives":
            _mark_collectives(sections["collectives"], table, devices)
            continue
        ratios, formats = class_ratios(table, devices), sections[GROUP_OF[table.kind]]
        for name, entries in formats.items():
            for entry in entries.values():
                entry["ratio"] = ratios.get(name) or _widest(ratios)
                entry["range"] = _range(table, name)
    made["textbook"] = textbook_ratios(tables, devices)
    return made


def class_ratios(table: KernelTable, devices: Mapping[str, Device]) -> dict[str, list[float]]:
    """Percentiles of measured over predicted seconds by format, each device predicted by a fit of the others."""
    found: dict[str, list[Floats]] = {}
    for (_, name), (predicted, measured) in left_out_seconds(table, devices).items():
        found.setdefault(name, []).append(measured / predicted)
    return {name: pooled(ratios) for name, ratios in found.items()}


def pooled(ratios: Sequence[Floats]) -> list[float]:
    """Percentiles over devices that count alike."""
    return quantiles(np.concatenate([one[:: max(1, len(one) // MOST_OF_DEVICE)] for one in ratios]))


def _widest(ratios: Mapping[str, list[float]]) -> list[float]:
    known = np.array([ratio for name, ratio in ratios.items() if name != "bf16"])
    return [float(known[:, 0].min()), float(np.median(known[:, 1])), float(known[:, 2].max())]


def _range(table: KernelTable, name: str) -> dict[str, list[float]]:
    frame = table.frame[~is_held(table.kind, table.frame)]
    names = {"gemm": frame["dtype"], "decode_attention": frame["kv_dtype"],
             "prefill_attention": frame["dtype"] + "-" + frame["kv_dtype"]}[table.kind]  # fmt: skip
    own = frame[names == name]
    return {size: [int(own[column].min()), int(own[column].max())] for size, column in SIZES[table.kind].items()}


def _mark_collectives(found: Profile, table: KernelTable, devices: Mapping[str, Device]) -> None:
    """The medians over devices, on each device's own link."""
    frame, moved = table.frame, sent(table.frame)
    links = {gpu: device.link.bandwidth_Bps or np.nan for gpu, device in devices.items()}
    link_Bps, seconds = frame["gpu"].map(links).to_numpy(float), frame["seconds"].to_numpy(float)
    for kind, by_devices in found.items():
        for count, entry in by_devices.items():
            own = ((frame["op"] == kind) & (frame["num_gpus"] == int(count))).to_numpy()
            predicted = np.asarray(collective_of(entry).seconds(moved[own], link_Bps[own]))
            entry["fit"] = {"rows": 0, "judged": int(own.sum()), **_errors(predicted / seconds[own])}
            entry["ratio"] = quantiles(seconds[own] / predicted)
            entry["range"] = {"sent_bytes": [int(moved[own].min()), int(moved[own].max())]}


def _errors(ratio: Floats) -> dict[str, float]:
    size = np.abs(ratio[np.isfinite(ratio)] - 1)
    return {"median_percent": round(100 * float(np.median(size)), 2),
            "p90_percent": round(100 * float(np.quantile(size, LEVELS[-1])), 2)}  # fmt: skip
