"""``cost.json``: what the simulation itself cost. The one file that differs from run to run."""

from __future__ import annotations

from typing import Any

from analysis.frames import Run

__all__ = ["cost_report"]


def cost_report(run: Run) -> dict[str, Any]:
    """CPU and wall seconds of the clock, peak memory of the process, and speed beside bare SimPy on this machine.

    ``process_cpu_s`` has everything up to now: start, clock, metrics, and the files written before this one.
    """
    process_cpu_s = run.process_cpu_s()
    rounds, arrived = int(run.round_columns["n_rounds"].sum()), len(run.request_columns["id"])
    cpu_s = max(run.cpu_s, 1e-9)
    return {
        "cpu_s": run.cpu_s,
        "process_cpu_s": process_cpu_s,
        "wall_s": run.wall_s,
        "peak_memory_bytes": run.peak_memory_bytes,
        "requests": arrived,
        "rounds": rounds,
        "leaps": len(run.round_columns["n_rounds"]),
        "events": run.events,
        "requests_per_cpu_s": arrived / cpu_s,
        "requests_per_process_cpu_s": arrived / process_cpu_s,
        "rounds_per_cpu_s": rounds / cpu_s,
        "events_per_cpu_s": run.events / cpu_s,
        "bare_simpy_events_per_cpu_s": run.bare_events_per_s(),
    }
