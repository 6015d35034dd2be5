"""A user's own kernel timings: predicted row by row, and fitted; what ``--kernels FILE`` means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import hardware_profiles
from hardware_profiles.kernel_files import LIBRARIES, read_kernels
from sim.analytic.hardware import Device
from sim.calibration.fit_kernels import fit_table, tables_of
from sim.calibration.kernel_predict import predicted, textbook
from sim.calibration.kernel_profile import kernel_profile, save
from sim.calibration.kernel_rows import TRAPS, plausible, shapes, without_traps
from sim.calibration.kernel_tables import KernelTable, read_table
from sim.calibration.spread import annotated
from sim.silicon.kernels import judge
from sim.silicon.rows import Judged
from sim.silicon.unseen import unseen

__all__ = ["Calibrated", "Predicted", "calibrated", "predict", "write_rows"]

Floats = NDArray[np.float64]
FOLDS = 5


@dataclass(frozen=True)
class Predicted:
    """Every usable row of a file with what is predicted of it, and errors by table, traps aside."""

    table: KernelTable
    ours: Floats
    theirs: Floats
    rows: list[Judged]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Calibrated:
    """A kernel profile fitted to files, its errors on shapes that the fold at hand had left out, and those of a fit
    that has seen other devices only.
    """

    profile: dict[str, Any]
    folds: list[Judged]
    notes: tuple[str, ...]
    measured: Floats
    fitted: Floats

    def save(self, path: Path) -> None:
        """Write the profile, whole or not at all."""
        save(self.profile, path)


def predict(file: str, device: str, engine: str | None = None, profile: str | None = None) -> Predicted:
    """Predict every row of ``file`` on ``device``; ``engine``: a kernel library or engine profile over the rows' own.

    ``profile``: a kernel profile instead of the shipped ones. Raises ValueError naming file and column.
    """
    found = Device.from_profile(hardware_profiles.load(device))
    table, notes = _of_one(read_table(file, to_fit=False), found)
    if len(table.frame) >= 100:
        plausible(table, found)
    said = None if profile is None else read_kernels(profile)
    ours, theirs = predicted(table, found, said, library_of(engine)), textbook(table, found)
    fair = np.full(len(table.frame), True)
    for kind, choose, why in TRAPS:
        chosen = choose(table.frame).to_numpy(bool) if kind == table.kind else ~fair & False
        fair &= ~chosen
        notes += (f"{int(chosen.sum())} rows are predicted but not judged: {why}",) if chosen.any() else ()
    return Predicted(table, ours, theirs, judge(table, found, ours, theirs, fair), (*table.dropped, *notes))


def library_of(engine: str | None) -> str | None:
    """The kernel library of an engine profile, or the library itself. Raises ValueError."""
    if engine is None or engine in LIBRARIES:
        return engine
    try:
        library = hardware_profiles.engine(engine).get("kernels")
    except ValueError as error:
        raise ValueError(f"--engine: {error}; or a kernel library: {', '.join(LIBRARIES)}") from None
    if library is None:
        raise ValueError(f"--engine: {engine} names no kernel library; allowed: {', '.join(LIBRARIES)}")
    return str(library)


def write_rows(found: Predicted, path: Path) -> None:
    """All rows as CSV or Parquet: the file's columns, ``ms``, ``predicted_ms`` and ``textbook_ms``."""
    frame = found.table.frame.rename(columns={"seconds": "ms"})
    frame = frame.assign(ms=frame["ms"] * 1e3, predicted_ms=found.ours * 1e3, textbook_ms=found.theirs * 1e3)
    beside = path.with_name(path.name + ".tmp")
    frame.to_parquet(beside, index=False) if path.suffix == ".parquet" else frame.to_csv(beside, index=False)
    beside.replace(path)


def calibrated(files: Sequence[str], device: str) -> Calibrated:
    """Fit ``device`` to kernel timings; errors by k-fold over shapes. Raises ValueError."""
    found = Device.from_profile(hardware_profiles.load(device))
    pairs = [_of_one(without_traps(read_table(file)), found) for file in files]
    tables = [table for table, _ in pairs]
    notes = tuple(note for table, said in pairs for note in (*table.dropped, *said))
    kinds = [table.kind for table in tables]
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"--kernels: several files of {max(kinds, key=kinds.count)}; allowed: one of each kind")
    names = ", ".join(table.file for table in tables)
    profile = kernel_profile(tables, found, f"decodesim calibrate --kernels {names}", everything=True)
    profile = annotated(profile, tables, found, everything=True)
    folds = [row for table in tables if table.kind != "collectives" for row in _folded(table, found)]
    folds += unseen(tables, found)
    fitted = np.concatenate([predicted(table, found, profile) for table in tables])
    measured = np.concatenate([table.frame["seconds"].to_numpy(float) for table in tables])
    return Calibrated(profile, folds, notes, measured, fitted)


def _folded(table: KernelTable, device: Device) -> list[Judged]:
    """Each fold of the shapes predicted by a fit of the others."""
    fold = np.unique(shapes(table.kind, table.frame), return_inverse=True)[1] % FOLDS
    ours = np.full(len(table.frame), np.nan)
    for k in range(FOLDS):
        marked = replace(table, frame=table.frame.assign(held=fold == k))
        libraries: dict[str, Any] = {}
        for key, index in tables_of(table.kind, table.frame):
            if (fold[index] != k).sum() >= 72 and (fold[index] == k).any():
                _place(libraries, table.kind, key, fit_table(marked, index, device))
        if libraries:
            part = predicted(table, device, {"libraries": libraries})
            ours[fold == k] = part[fold == k]
    return judge(table, device, ours, textbook(table, device))


def _place(libraries: dict[str, Any], kind: str, key: tuple[str, ...], entries: Any) -> None:
    library, version, name, kernel = key
    group = "matmul" if kind == "gemm" else kind
    libraries.setdefault(f"{library}@{version}", {}).setdefault(group, {})[f"{name}@{kernel}"] = entries


def _of_one(table: KernelTable, device: Device) -> tuple[KernelTable, tuple[str, ...]]:
    """The rows of ``device``, by the file's names. Raises ValueError where it has several others."""
    names = sorted(set(table.frame["gpu"]))
    own = [name for name in names if _resolved(name) == device.name]
    if own:
        rest = table.frame["gpu"].isin(own)
        return table.keep(rest, f"of other devices than {device.name}"), ()
    if len(names) > 1:
        raise ValueError(f"{table.file}: gpu: {', '.join(names)}: none is {device.name}; allowed: rows of one device")
    said = names[0]
    return table, (f"rows say {said!r} and are taken for {device.name}",) if said else ()


def _resolved(name: str) -> str:
    try:
        return str(hardware_profiles.load(name)["name"]) if name else ""
    except ValueError:
        return name
