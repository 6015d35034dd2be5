"""The fit behind ``tensorrt-llm``: what its collectives cost inside a step, from release 0.15's throughput table.

``python -m sim.calibration.serving_trt FOLDER`` simulates every STEP-th cell of v0.15 of several devices once, without
collectives, adds them with the terms that are sought, and writes the engine's profile into that folder. All requests
are there at once, so that which rounds there are does not depend on how long they last. v0.17 is held out whole.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

import hardware_profiles
from sim.analytic.collectives import kind_of
from sim.analytic.hardware import MICRO
from sim.analytic.kernel_book import Collective, KernelBook
from sim.analytic.work import Work
from sim.build import Built
from sim.calibration.fit_robust import Bounds, fit, intervals
from sim.silicon.at_once import count, ran
from sim.silicon.tensorrt_llm import ENGINE, prepared

__all__ = ["PARAMETERS", "Cell", "cells", "main", "measured"]

Floats = NDArray[np.float64]
DATA, FITTED, STEP = "tensorrt_llm_throughput.csv.gz", "v0.15.0", 4
# name: (start, low, high, what it is), for devices that NVLink joins, then for those on PCIe
PARAMETERS: dict[str, dict[str, tuple[float, float, float, str]]] = {
    "NVLink": {
        "collective_us": (15.0, 0.1, 500.0, "wait in front of a collective"),
        "collective_speed": (0.6, 0.1, 1.2, "share of the pace at which collectives were measured alone"),
    },
    "PCIe": {
        "pcie_us": (100.0, 0.1, 1000.0, "wait in front of a collective over PCIe"),
        "pcie_efficiency": (0.43, 0.05, 1.0, "share of the link that they reach there"),
    },
}


@dataclass(frozen=True)
class Cell:
    """One cell: seconds of all rounds without collectives, and for each leap what is sent, and how often."""

    link: str
    rest_s: float
    sent_bytes: Floats
    times: Floats
    link_Bps: float
    alone: Collective
    measured_s: float

    def seconds(self, at: Sequence[float]) -> float:
        """Seconds of the cell with (wait in microseconds, pace) of its collectives."""
        wait_s, pace = at[0] * MICRO, at[1]
        one = self.alone
        if self.link == "PCIe":
            each = wait_s + self.sent_bytes / (self.link_Bps * pace)
        else:
            small = one.small_s + wait_s, one.small_efficiency * pace
            each = Collective(*small, one.large_s + wait_s, one.large_efficiency * pace).seconds(
                self.sent_bytes, self.link_Bps
            )
        return float(self.rest_s + (self.times * each).sum())


def measured(step: int = STEP) -> pd.DataFrame:
    """Every ``step``-th cell of the release that is fitted, of several devices, suspects aside."""
    raw = (files("analysis") / "data" / "serving" / DATA).read_bytes()
    frame = pd.read_csv(BytesIO(raw), compression="gzip")
    fair = (frame["version"] == FITTED) & (frame["n_gpus"] > 1) & (frame["suspect"] == 0)
    return frame[fair].iloc[::step].reset_index(drop=True)


def cells(frame: pd.DataFrame, engine: str) -> Iterator[Cell]:
    """Each row that an engine without terms for collectives can serve, simulated once."""
    for raw in frame.to_dict("records"):
        row = {str(key): value for key, value in raw.items()}
        try:
            yield _cell(prepared(row, engine), row)
        except ValueError:
            continue


def main(folder: Path) -> None:
    """Fit; write the profile with intervals and provenance."""
    shipped = hardware_profiles.engine(ENGINE)
    dropped = {name for named in PARAMETERS.values() for name in named}
    bare = {key: value for key, value in shipped.items() if key not in dropped | {"interval"}}
    path = Path(tempfile.gettempdir()) / "tensorrt-llm-bare.yaml"
    path.write_text(yaml.safe_dump(bare), "utf-8")
    found = list(cells(measured(), str(path)))
    made: dict[str, Any] = {**bare, "provenance": _said(len(found)), "interval": {}}
    for link, named in PARAMETERS.items():
        for name, (value, low, high) in _fitted([cell for cell in found if cell.link == link], named).items():
            made[name], made["interval"][name] = value, [low, high]
    (folder / f"{ENGINE}.yaml").write_text(yaml.safe_dump(made, sort_keys=False, width=120), "utf-8")


def _fitted(
    found: Sequence[Cell], named: Mapping[str, tuple[float, float, float, str]]
) -> dict[str, tuple[float, float, float]]:
    wanted = np.log([cell.measured_s for cell in found])
    start, low, high = (np.log([row[i] for row in named.values()]) for i in range(3))

    def predicted(at: Floats) -> Floats:
        return np.array([cell.seconds(np.exp(at).tolist()) for cell in found])

    bounds = Bounds(start, low, high)
    at = fit(predicted, wanted, bounds).parameters
    spans = intervals(predicted, wanted, bounds, at, np.arange(len(found)))
    columns = (np.exp(at), np.exp(spans[0]), np.exp(spans[1]))
    rows = zip(*((float(f"{x:.4g}") for x in column) for column in columns), strict=True)
    return {name: (value, min(a, value), max(b, value)) for name, (value, a, b) in zip(named, rows, strict=True)}


def _cell(built: Built, row: Mapping[str, Any]) -> Cell:
    requests, prompt, output = (count(row, key) for key in ("num_requests", "isl", "osl"))
    recorder = ran(built, prompt, output, requests)
    leaps, chunks = recorder.leaps.frame(), recorder.chunks.frame()
    read = np.zeros(len(leaps["rounds"]))
    np.add.at(read, chunks["leap"], chunks["new"])
    tokens = leaps["seats"] + read / leaps["rounds"]
    cost, device = built.costs[0], built.device
    ops = [op for op in cost.ops(Work(tokens, 0)) if op.unit == "link"]
    assert ops and isinstance(device.kernels, KernelBook) and device.link.bandwidth_Bps is not None
    alone = device.kernels.collective(kind_of(ops[0].name), ops[0].group)
    assert alone is not None, "a measured library has all-reduces"
    times = leaps["rounds"].astype(np.float64) * sum(op.layers for op in ops)
    sent = np.asarray(ops[0].link_bytes, dtype=float)
    spent_s = float((times * alone.seconds(sent, device.link.bandwidth_Bps)).sum())
    total_s = float(leaps["duration_ns"].sum()) * 1e-9
    link = "PCIe" if (device.link.name or "").startswith("PCIe") else "NVLink"
    took_s = requests * output / float(row["output_tok_s_total"])
    return Cell(link, total_s - spent_s, sent, times, device.link.bandwidth_Bps, alone, took_s)


def _said(number: int) -> str:
    return (
        f"FITTED by sim/calibration/serving_trt.py (the terms of collectives) to {number} cells of the throughput "
        "table of v0.15 on several devices (NVIDIA/TensorRT-LLM docs, Apache-2.0); v0.17 is held out whole, errors in "
        "docs/validation.md. Host time could not be told from zero there. product_kernels: static scales, as served. "
        "Defaults: TensorRT-LLM's documentation (max_num_tokens 8192, max_batch_size 2048; 0.95 of free memory in the "
        "benchmarks, which is the fraction of what weights and activations leave)."
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
