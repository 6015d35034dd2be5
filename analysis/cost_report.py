"""``cost.json``: what the simulation itself cost. The one file that differs from run to run."""

from __future__ import annotations

from typing import Any

from analysis.frames import Run

__all__ = ["cost_report"]


def cost_report(run: Run, counts: tuple[int, int, int] | None = None) -> dict[str, Any]:
    """CPU and wall seconds of the clock, peak memory of the process, and speed beside bare SimPy on this machine.

    ``process_cpu_s`` has everything up to now: start, clock, metrics, and the files written before this one.
    ``counts``: requests, rounds and leaps, where the tables are not at hand.
    """
    process_cpu_s = run.process_cpu_s()
    arrived, rounds, leaps = counts or _counts(run)
    cpu_s = max(run.cpu_s, 1e-9)
    return {
        "cpu_s": run.cpu_s,
        "process_cpu_s": process_cpu_s,
        "wall_s": run.wall_s,
        "peak_memory_bytes": run.peak_memory_bytes,
        "requests": arrived,
        "rounds": rounds,
        "leaps": leaps,
        "events": run.events,
        "requests_per_cpu_s": arrived / cpu_s,
        "requests_per_process_cpu_s": arrived / process_cpu_s,
        "rounds_per_cpu_s": rounds / cpu_s,
        "events_per_cpu_s": run.events / cpu_s,
        "bare_simpy_events_per_cpu_s": run.bare_events_per_s(),
    }


def _counts(run: Run) -> tuple[int, int, int]:
    rounds = run.round_columns["n_rounds"]
    return len(run.request_columns["id"]), int(rounds.sum()), len(rounds)
