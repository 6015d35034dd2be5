"""What ships with the project, made again: ``python -m sim.calibration.ship MEASURED OUT`` fits all kernel profiles.

MEASURED holds gemm.parquet and the like; OUT gets one profile per device and ``generic.yaml``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import hardware_profiles
from sim.analytic.hardware import Device
from sim.calibration.kernel_generic import generic_profile
from sim.calibration.kernel_profile import kernel_profile, save
from sim.calibration.kernel_rows import without_traps
from sim.calibration.kernel_tables import KINDS, KernelTable, read_table
from sim.calibration.spread import annotated
from sim.calibration.spread_class import with_spreads

__all__ = ["devices_of", "main", "of_device"]

SAID = "aiconfigurator-core 0.12 tables (Apache-2.0), the half of the shapes that analysis/data does not mark as held"


def main(measured: Path, out: Path) -> None:
    """Fit and write everything. Raises ValueError."""
    tables = [without_traps(read_table(measured / f"{kind}.parquet")) for kind in KINDS]
    devices = devices_of(tables)
    made = {}
    for gpu, device in devices.items():
        own = [of_device(table, gpu) for table in tables]
        made[gpu] = annotated(kernel_profile(own, device, SAID), own, device)
        save(made[gpu], out / f"{device.name}.yaml")
    save(with_spreads(generic_profile(tables, devices, made), tables, devices), out / "generic.yaml")


def devices_of(tables: list[KernelTable]) -> Mapping[str, Device]:
    """The devices that tables name, by the name they use. Raises ValueError for one that has no profile."""
    names = sorted({str(gpu) for table in tables for gpu in table.frame["gpu"].unique()} - {""})
    return {gpu: Device.from_profile(hardware_profiles.load(gpu)) for gpu in names}


def of_device(table: KernelTable, gpu: str) -> KernelTable:
    """The rows of one device."""
    return replace(table, frame=table.frame[table.frame["gpu"] == gpu].reset_index(drop=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
