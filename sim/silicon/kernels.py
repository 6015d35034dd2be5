"""Kernels of four devices under three libraries: the shipped profiles on the half of the shapes that they never saw."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import as_file, files

import numpy as np
from numpy.typing import NDArray

from sim.analytic.hardware import Device
from sim.calibration.fit_kernels import errors, tables_of
from sim.calibration.kernel_predict import predicted, textbook
from sim.calibration.kernel_rows import is_held, without_traps
from sim.calibration.kernel_tables import KINDS, KernelTable, read_table
from sim.calibration.ship import devices_of, of_device
from sim.silicon.rows import Judged, Verdict, verdict

__all__ = ["judge", "judged", "shipped", "verdicts"]

Floats = NDArray[np.float64]
TITLES = {"gemm": "matrix products", "decode_attention": "decode attention", "prefill_attention": "prefill attention",
          "collectives": "collectives"}  # fmt: skip
FEWEST = 700  # held-out rows of an attention table: kernels that a library uses for odd shapes are shown, not judged
# What was asked for (median, p90), and where it now stands with a margin: beyond that, something broke.
TARGETS = {
    "matrix products, bf16": ((0.06, 0.20), (0.062, 0.20)),
    "matrix products, quantised": ((0.075, 0.20), (0.076, 0.25)),
    "decode attention": ((0.075, 0.25), (0.075, 0.25)),
    "prefill attention": ((0.06, 0.25), (0.06, 0.25)),
    "collectives of 2 to 4": ((0.10, float("inf")), (0.10, 0.25)),
    "collectives of 8": ((0.20, float("inf")), (0.20, 0.40)),
}


def shipped(kind: str) -> KernelTable:
    """The shipped table of a kind, without its traps."""
    with as_file(files("analysis") / "data" / f"{kind}.parquet") as path:
        return without_traps(read_table(path))


def judged() -> list[Judged]:
    """Every table of the shipped data, on its held-out half."""
    found = []
    for kind in KINDS:
        table = shipped(kind)
        for gpu, device in devices_of([table]).items():
            own = of_device(table, gpu)
            held = is_held(kind, own.frame)
            found += judge(own, device, predicted(own, device), textbook(own, device), held)
    return found


def judge(
    table: KernelTable, device: Device, ours: Floats, theirs: Floats, held: NDArray[np.bool_] | None = None
) -> list[Judged]:
    """Errors by library, format and kernel; only rows of ``held``, if given."""
    measured = table.frame["seconds"].to_numpy(float)
    seen = np.isfinite(ours) & (held if held is not None else True)
    found = []
    for library, what, index in _tables(table):
        index = index[seen[index]]
        if len(index):
            error, plain = errors(ours[index], measured[index]), errors(theirs[index], measured[index])
            named = TITLES[table.kind], device.name, library, what
            found.append(Judged(*named, error.n, error.median, error.p90, error.bias, plain.median))
    return found


def verdicts(rows: list[Judged]) -> list[Verdict]:
    """The quantities of TARGETS over their tables."""
    return [verdict(name, [r for r in rows if quantity(r) == name], *TARGETS[name]) for name in TARGETS]


def quantity(row: Judged) -> str:
    """Which of TARGETS a row belongs to; "" for none."""
    if row.section == TITLES["gemm"]:
        return f"{row.section}, {'bf16' if row.what.startswith('bf16') else 'quantised'}"
    if row.section == TITLES["collectives"]:
        return f"{row.section} of {'8' if row.what.endswith('of 8') else '2 to 4'}"
    return row.section if row.n >= FEWEST else ""


def _tables(table: KernelTable) -> Iterator[tuple[str, str, NDArray[np.int64]]]:
    """(library and version, format or operation, row numbers) of each table that has its own line."""
    if table.kind == "collectives":
        keys = [table.frame[c] for c in ("library", "op", "num_gpus")]
        for (library, kind, devices), index in table.frame.groupby(keys).indices.items():
            yield str(library), f"{kind} of {devices}", index
        return
    for (library, version, name, kernel), index in tables_of(table.kind, table.frame):
        yield f"{library} {version}".strip(), f"{name} {kernel}".strip(), index
