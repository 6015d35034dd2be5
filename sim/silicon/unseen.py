"""A device left out: what the other measured devices and its datasheet say of a user's own kernel timings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sim.analytic.hardware import Device
from sim.calibration.kernel_generic import generic_profile
from sim.calibration.kernel_predict import predicted, textbook
from sim.calibration.kernel_tables import KernelTable
from sim.calibration.ship import devices_of
from sim.silicon.kernels import judge, shipped
from sim.silicon.rows import Judged

__all__ = ["unseen"]

Floats = NDArray[np.float64]
WHAT = "device left out"


def unseen(tables: Sequence[KernelTable], device: Device) -> list[Judged]:
    """Errors of each table as one fit of the shipped devices but ``device`` predicts it; collectives are left away."""
    return [replace(row, section=f"{row.section}, {WHAT}") for table in tables if table.kind != "collectives"
            for row in judge(table, device, _seconds(table, device), textbook(table, device))]  # fmt: skip


def _seconds(table: KernelTable, device: Device) -> Floats:
    """By a fit of the others' rows in the formats that the table has."""
    others = shipped(table.kind)
    names = {gpu: found.name for gpu, found in devices_of([others]).items()}
    rest = others.frame["gpu"].map(names) != device.name
    kept = replace(others, frame=others.frame[rest & others.frame["dtype"].isin(set(table.frame["dtype"]))])
    kept = replace(kept, frame=kept.frame.reset_index(drop=True))
    out = np.full(len(table.frame), np.nan)
    if not len(kept.frame):
        return out
    sections = generic_profile([kept], devices_of([kept]), {})["libraries"]["any"]
    libraries = {name: sections for name in set(table.frame["library"])}
    versions = {f"{a}@{b}" for a, b in zip(table.frame["library"], table.frame["version"], strict=True)}
    return predicted(table, device, {"libraries": libraries | {name: sections for name in versions}})
