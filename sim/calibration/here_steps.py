"""The steps that ``calibrate --here`` was fitted to, as its profile predicts them: the picture of residuals."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim.analytic.memory import weight_bytes
from sim.calibration.cases import fitted
from sim.calibration.fit import FEATURES, FP32, Machine, features
from sim.calibration.session import Session

__all__ = ["series"]

Floats = NDArray[np.float64]


def series(machine: Machine, session: Session) -> dict[str, tuple[Floats, Floats]]:
    """(measured, predicted) seconds of every fitted step, by phase; measured is the best of the repeats."""
    costs = _costs(machine)
    found: dict[str, tuple[list[float], list[float]]] = {}
    for case, times in session.times(fitted()).items():
        resident = sum(weight_bytes(case.shape, FP32).values()) <= machine.onchip_bytes
        measured, predicted = found.setdefault(case.phase, ([], []))
        measured.append(min(times))
        predicted.append(float(features(case.shape, case, resident) @ costs))
    return {phase: (np.array(measured), np.array(predicted)) for phase, (measured, predicted) in found.items()}


def _costs(machine: Machine) -> Floats:
    """Seconds of one unit of each of FEATURES."""
    rates = {name: machine.peak_flops * getattr(machine, name) for name in FEATURES[:4]}
    rates |= {"memory": machine.memory_Bps * machine.memory_share, "onchip": machine.onchip_Bps}
    times = {name: getattr(machine, f"{name}_s") for name in ("pack", "step", "layer", "sequence")}
    return np.array([times[name] if name in times else 1 / rates[name] for name in FEATURES])
