"""Calibration: this machine measured, as a hardware profile and an engine profile with intervals.

What is calibrated is the machine as the witness uses it: NumPy in float32, one process. The measuring runs in a process
of its own, so that the number of threads is set before NumPy loads. :func:`on_torch`: through torch, GPU or CPU.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from sim.calibration.cases import fitted
from sim.calibration.fit import Machine, fit_session
from sim.calibration.probes import RATES, STREAM_MB
from sim.calibration.profile import device_profile, engine_profile
from sim.calibration.session import Session
from sim.calibration.torch_device import facts, measured

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
PATIENCE_S = 900


@dataclass(frozen=True)
class Calibration:
    """What one calibration found: the machine, the range of each number over repeats, and both profiles."""

    machine: Machine
    ranges: Mapping[str, tuple[float, float]]
    device: dict[str, Any]
    engine: dict[str, Any]
    by_threads: Mapping[int, Mapping[str, float]]
    session: Session

    def save(self, path: Path) -> tuple[Path, Path]:
        """Write the hardware profile to ``path`` and the engine profile beside it, each whole or not at all."""
        files = path, path.with_name(f"{path.stem}-engine{path.suffix}")
        for file, profile in zip(files, (self.device, self.engine), strict=True):
            beside = file.with_name(file.name + ".tmp")
            beside.write_text(yaml.safe_dump(profile, sort_keys=False, width=120), "utf-8")
            beside.replace(file)
        return files


def calibrate(name: str, year: int, threads: int = 1, repeats: int = 3) -> Calibration:
    """Measure this machine with ``threads`` BLAS threads, everything ``repeats`` times over.

    Raises ValueError where a profile cannot be made of what was measured.
    """
    by_threads = {n: rates(n) for n in sorted({1, threads, os.cpu_count() or 1})}
    return of_session(timed(threads, repeats, "fit"), name, year, threads, by_threads)


def on_torch(device: str, name: str, year: int, threads: int = 1, repeats: int = 3) -> Calibration:
    """The same through torch, on ``cuda`` or ``torch-cpu``; its session holds judged steps too.

    Raises ValueError where torch or the GPU is missing, and where a profile cannot be made of what was measured.
    """
    session = measured(device, threads, repeats)
    about = facts(device, threads, session)
    found = of_session(session, name, year, threads, {threads: table(session.probes[0])}, about)
    kind = {"kind": "gpu" if device == "cuda" else "cpu"}
    notes = {"name": f"torch-on-{name}", "notes": "stand-ins of two to seven layers in eager torch; see provenance"}
    return replace(found, device={**found.device, **kind}, engine={**found.engine, **notes})


def of_session(
    session: Session,
    name: str,
    year: int,
    threads: int,
    by_threads: Mapping[int, Mapping[str, float]],
    about: Mapping[str, Any] | None = None,
) -> Calibration:
    """The calibration that a session holds; ``about``: facts of a device that is not this machine's CPU under NumPy."""
    machine, ranges = fit_session(session, fitted())
    said = {
        "name": name,
        "processor": processor(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "year": year,
        "how": f"measured by decodesim calibrate: NumPy, float32, {threads} thread{'s' * (threads > 1)}, "
        f"best of {len(session.probes)} repeats, fitted to {len(session.steps)} steps of other models",
        "table": "; ".join(f"{n} threads: {_sentence(rate)}" for n, rate in by_threads.items()),
        **(about or {}),
    }
    device, engine = device_profile(machine, ranges, said), engine_profile(machine, ranges, said)
    return Calibration(machine, ranges, device, engine, by_threads, session)


def timed(threads: int, repeats: int, what: str) -> Session:
    """Run a session (probes, fit or judge) in a process with that many threads. Raises ValueError if it fails."""
    environment = {**os.environ, **dict.fromkeys(THREADS, str(threads))}
    root = str(Path(__file__).resolve().parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "sim.calibration", str(threads), str(repeats), what]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        last = str(error.stderr or "").strip().splitlines()[-1:] or [f"no answer within {PATIENCE_S} s"]
        raise ValueError(f"calibration: measuring with {threads} threads failed: {last[0]}") from None
    return Session.of(json.loads(done.stdout))


def rates(threads: int) -> dict[str, float]:
    """GB/s of streaming by megabytes and GFLOP/s of products by ``rows x k x n``, with that many threads."""
    return table(timed(threads, 1, "probes").probes[0])


def table(probes: Mapping[str, float]) -> dict[str, float]:
    """Rates by size from the seconds of every probe."""
    return {
        **{f"{mb} MB": mb * 1e-3 / probes[f"stream.{mb}"] for mb in STREAM_MB},
        **{f"{m} x {k} x {n}": 2e-9 * m * k * n / probes[f"rate.{m}.{k}.{n}"] for m, k, n in RATES},
    }


def processor() -> str:
    """What the machine calls its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(named), platform.processor() or platform.machine() or "unknown")


def _sentence(found: Mapping[str, float]) -> str:
    return ", ".join(f"{what} {rate:.3g} {'GB/s' if 'MB' in what else 'GFLOP/s'}" for what, rate in found.items())
