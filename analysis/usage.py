"""How the hardware was used: seconds by cause and phase, MFU and MBU, KV memory, energy, money, and what is left."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.frames import Run
from analysis.rounds import PHASES, phase_numbers
from sim.account import SECONDS
from sim.analytic.work import Work

__all__ = ["energy", "headroom", "kv", "money", "phases", "utilisation"]

Floats = NDArray[np.float64]
MOVED = (*(f"{cause}_s" for cause in SECONDS), "flops", "hbm_bytes")


def busy_s(run: Run) -> float:
    """Seconds in which rounds ran, summed over replicas."""
    return float(run.round_columns["duration_ns"].sum()) * 1e-9


def phases(run: Run) -> dict[str, dict[str, Any]]:
    """By kind of round: seconds, share of the busy time, seconds by cause, what bound it, MFU and MBU."""
    rounds = run.round_columns
    kinds = phase_numbers(rounds)
    added = {name: np.bincount(kinds, rounds[name], len(PHASES)) for name in ("duration_ns", "n_rounds", *MOVED)}
    added["seats"] = np.bincount(kinds, rounds["batch"] * rounds["n_rounds"], len(PHASES))
    totals = [{name: float(sums[i]) for name, sums in added.items()} for i in range(len(PHASES))]
    return {phase: _phase(run, sums) for phase, sums in zip(PHASES, totals, strict=True) if sums["n_rounds"]}


def _phase(run: Run, sums: dict[str, float]) -> dict[str, Any]:
    seconds = sums["duration_ns"] * 1e-9
    causes = {cause: sums[f"{cause}_s"] for cause in SECONDS}
    return {
        "seconds": seconds,
        "share": seconds / busy_s(run),
        "rounds": int(sums["n_rounds"]),
        "mean_batch": sums["seats"] / sums["n_rounds"],
        "seconds_by_cause": causes,
        "bound_by": max(causes, key=lambda cause: causes[cause]),
        **_against_peaks(run, sums["flops"], sums["hbm_bytes"], seconds),
    }


def _against_peaks(run: Run, flops: float, hbm_bytes: float, seconds: float) -> dict[str, float]:
    """FLOPs of matrix products and bytes of main memory, of one device, against its peaks."""
    device = run.built.device
    return {
        "mfu": flops / (seconds * peak_flops(run)) if seconds else 0.0,
        "mbu": hbm_bytes / (seconds * device.memory_Bps) if seconds else 0.0,
    }


def peak_flops(run: Run) -> float:
    """The device's rate in the format in which the target's linear layers multiply, FLOP/s."""
    ops = [op for op in run.built.costs[0].ops(Work(1, 1)) if op.unit == "tensor"]
    main = max(ops, key=lambda op: op.layers * op.flops)
    return float(run.built.device.peak_flops(main.format).flops)


def utilisation(run: Run, duration_s: float) -> dict[str, float]:
    """Share of the time in which rounds ran, and MFU and MBU over the whole duration, idle time included."""
    rounds, replicas = run.round_columns, run.scenario.replicas
    busy = busy_s(run) / (replicas * duration_s) if duration_s else 0.0
    used = _against_peaks(run, float(rounds["flops"].sum()), float(rounds["hbm_bytes"].sum()), replicas * duration_s)
    return {"busy": busy, **used}


def kv(run: Run, tokens_per_round: float) -> dict[str, float]:
    """KV memory of one device: capacity, mean (over busy time) and peak in use, and the share that held no token.

    Waste is measured at the starts of pure decode rounds, weighted by their duration: allocated bytes against cached
    ones. A leap's recorded context is the mean over its rounds; ``tokens_per_round`` takes it back to its start.
    """
    rounds, capacity = run.round_columns, run.built.setup.kv.capacity_bytes
    held, duration = rounds["kv_bytes"].astype(np.float64), rounds["duration_ns"].astype(np.float64)
    mean = float((held * duration).sum() / max(duration.sum(), 1.0))
    rows = phase_numbers(rounds) == PHASES.index("decode")
    cached = _cached_at_start(run, rows, tokens_per_round)
    allocated = float((held * duration)[rows].sum())
    used = float((np.minimum(cached, held[rows]) * duration[rows]).sum())
    return {
        "capacity_bytes": float(capacity),
        "mean_bytes": mean,
        "peak_bytes": float(held.max(initial=0.0)),
        "mean_share": mean / capacity if capacity else 0.0,
        "peak_share": float(held.max(initial=0.0)) / capacity if capacity else 0.0,
        "waste": 1.0 - used / allocated if allocated else 0.0,
    }


def _cached_at_start(run: Run, rows: NDArray[np.bool_], tokens_per_round: float) -> Floats:
    rounds = run.round_columns
    context = np.asarray(np.ma.filled(rounds["context"][rows], 1.0))
    grown = tokens_per_round * (rounds["n_rounds"][rows] - 1) / 2
    cached: Floats = run.accounts.read_bytes[rows] * np.clip(1.0 - grown / np.maximum(context, 1.0), 0.0, 1.0)
    return cached


def energy(run: Run, duration_s: float, output_tokens: int) -> dict[str, float | None]:
    """Joules of all devices: what requests used while rounds ran, and what idle devices drew between them."""
    used = float(run.accounts.joules.sum())
    idle = run.accounts.idle_W * max(0.0, run.scenario.replicas * duration_s - busy_s(run))
    total = used + idle
    if np.isnan(total):
        return dict.fromkeys(("joules", "busy_joules", "idle_joules", "joules_per_output_token", "mean_W"))
    return {
        "joules": total,
        "busy_joules": used,
        "idle_joules": idle,
        "joules_per_output_token": total / output_tokens if output_tokens else None,
        "mean_W": total / duration_s if duration_s else None,
    }


def money(run: Run, duration_s: float, prompt_tokens: int, output_tokens: int) -> dict[str, Any]:
    """Rent of all devices from start to end; each price a million tokens puts the whole bill on those tokens.

    ``offline``: everything arrived at once (``rate: inf``), so that the makespan and the bill are the answer.
    """
    device = run.built.device
    devices = run.scenario.replicas * run.built.layout.devices
    hourly = device.usd_per_hour
    total = None if hourly is None else hourly * devices * duration_s / 3600
    arrivals = run.request_columns["arrival_ns"]
    return {
        "offline": len(arrivals) > 1 and not np.any(arrivals),
        "usd": total,
        "usd_per_device_hour": hourly,
        "price": device.price_note,
        "devices": devices,
        "makespan_s": duration_s,
        "usd_per_million_input_tokens": _per_million(total, prompt_tokens),
        "usd_per_million_output_tokens": _per_million(total, output_tokens),
        "usd_per_million_tokens": _per_million(total, prompt_tokens + output_tokens),
    }


def _per_million(usd: float | None, tokens: int) -> float | None:
    return None if usd is None or not tokens else usd / tokens * 1e6


def headroom(run: Run, duration_s: float) -> dict[str, float]:
    """Share of each resource in use on average over the whole duration, of those that grow at least with the rate.

    Weights are read once a round whatever the batch, so their traffic is not among them. 1/share bounds from above how
    many times the present rate the resource can carry.
    """
    rounds, seconds = run.round_columns, run.scenario.replicas * duration_s
    if not seconds:
        return {}
    duration = rounds["duration_ns"] * 1e-9
    seats = getattr(run.built.scheduler, "max_sequences", None)
    moved = run.accounts.counts["kv_bytes"] + run.accounts.counts["activation_bytes"]
    shares = {
        "compute": float(run.accounts.counts["compute_time_s"].sum()) / seconds,
        "memory bandwidth for KV and activations": float(moved.sum()) / run.built.device.memory_Bps / seconds,
        "KV memory": float((rounds["kv_bytes"] * duration).sum()) / max(run.built.setup.kv.capacity_bytes, 1) / seconds,
        "host time": float(rounds["host_s"].sum()) / seconds,
        "links": float(rounds["link_s"].sum()) / seconds,
    }
    if seats:
        shares["the batch limit (max_sequences)"] = float((rounds["running"] * duration).sum()) / seats / seconds
    return {name: share for name, share in shares.items() if share > 0}
