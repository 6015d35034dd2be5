"""Collectives from timings: the faster of two algorithms, each a wait and a share of the link (``Collective``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.analytic.hardware import Device
from sim.analytic.kernel_book import Collective
from sim.calibration.fit_kernels import Entry, errors
from sim.calibration.fit_robust import Bounds, fit
from sim.calibration.kernel_rows import is_held, sent

__all__ = ["collective_of", "fit_collectives"]

Frame = Any
Floats = NDArray[np.float64]
KEYS = ("small_us", "small_efficiency", "large_us", "large_efficiency")
BOUNDS = Bounds(*(np.log(v) for v in ([5.0, 0.1, 15.0, 0.7], [0.3, 1e-4, 0.3, 1e-3], [1e4, 2.0, 1e4, 2.0])))
WAITS = (1.0, 0.3, 3.0, 10.0)  # times the first wait to start from


def fit_collectives(frame: Frame, device: Device, everything: bool = False) -> dict[str, dict[int, Entry]]:
    """Entries by kind and number of devices; every other size is held out, ``everything`` aside."""
    if device.link.bandwidth_Bps is None:
        raise ValueError(f"{device.name}: link.bandwidth_GBps is unknown, so collectives cannot be fitted")
    found: dict[str, dict[int, Entry]] = {}
    for (kind, devices), part in frame.groupby(["op", "num_gpus"]):
        if part["message_size"].nunique() >= 6:
            held = np.zeros(len(part), dtype=bool) if everything else is_held("collectives", part)
            found.setdefault(str(kind), {})[int(devices)] = _entry(part, held, device.link.bandwidth_Bps)
    return found


def collective_of(entry: Mapping[str, Any]) -> Collective:
    """The collective of a profile entry."""
    return Collective.from_profile(entry)


def _entry(part: Frame, held: NDArray[np.bool_], link_Bps: float) -> Entry:
    moved, measured = sent(part), part["seconds"].to_numpy(float)
    log_seconds = np.log(measured[~held])

    def predict(at: Floats) -> Floats:
        return np.asarray(collective_of(_plain(at)).seconds(moved[~held], link_Bps))

    scale = np.array([1.0, 0.0, 0.0, 0.0])
    starts = (Bounds(BOUNDS.start + scale * np.log(w), BOUNDS.low, BOUNDS.high) for w in WAITS)
    best = min((fit(predict, log_seconds, start) for start in starts), key=lambda found: found.misfit)
    entry = _plain(best.parameters)
    judged = held if held.any() else ~held
    error = errors(np.asarray(collective_of(entry).seconds(moved[judged], link_Bps)), measured[judged])
    said = {"median_percent": round(100 * error.median, 2), "p90_percent": round(100 * error.p90, 2)}
    return entry | {"fit": {"rows": int((~held).sum()), "judged": error.n if held.any() else 0, **said}}


def _plain(at: Floats) -> Entry:
    return {key: float(f"{np.exp(x):.5g}") for key, x in zip(KEYS, at.tolist(), strict=True)}
