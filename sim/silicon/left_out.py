"""Devices left out one at a time: what the others say of them, from their datasheet alone."""

from __future__ import annotations

import numpy as np

from sim.calibration.fit_kernels import errors
from sim.calibration.kernel_generic import left_out
from sim.calibration.kernel_predict import textbook
from sim.calibration.kernel_tables import KernelTable
from sim.calibration.ship import devices_of, of_device
from sim.silicon.kernels import TITLES, shipped
from sim.silicon.rows import Judged, Verdict, verdict

__all__ = ["judged", "verdicts"]

# No two of the measured devices are of one generation, so this is the harder case, without a sibling.
TARGETS = {"matrix products, bf16": ((0.15, float("inf")), (0.17, 0.6))}


def judged() -> list[Judged]:
    """Errors on each left-out device, by format, of products."""
    table = shipped("gemm")
    devices = devices_of([table])
    title, found = TITLES["gemm"], left_out(table, devices)
    return [
        Judged(title, devices[gpu].name, "all", name, e.n, e.median, e.p90, e.bias, _textbook(table, gpu, name))
        for (gpu, name), e in found.items()
    ]


def verdicts(rows: list[Judged]) -> list[Verdict]:
    """bf16 over the devices; other formats are shown (no two devices run the same kernels in them)."""
    return [verdict(name, [r for r in rows if r.what == "bf16"], *limits) for name, limits in TARGETS.items()]


def _textbook(table: KernelTable, gpu: str, name: str) -> float:
    own = of_device(table, gpu)
    chosen = np.asarray(own.frame["dtype"] == name)
    theirs = textbook(own, devices_of([own])[gpu])
    return errors(theirs[chosen], own.frame["seconds"].to_numpy(float)[chosen]).median
