"""How the hardware was used: seconds by cause and phase, MFU and MBU, KV memory, energy, money, and what is left."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.frames import Run
from analysis.rounds import PHASES, phase_numbers
from sim.account import SECONDS
from sim.analytic.work import Work

__all__ = ["clock", "energy", "headroom", "kv", "money", "phases", "utilisation"]

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
    added |= {name: np.bincount(kinds, column, len(PHASES)) for name, column in _could(run).items()}
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
        "mfu": sums["flops"] / sums["could_flops"] if seconds else 0.0,
        "mbu": sums["hbm_bytes"] / sums["could_bytes"] if seconds else 0.0,
    }


def peak_flops(built: Any) -> float:
    """The device's rate in the format in which the target's linear layers multiply, FLOP/s."""
    ops = [op for op in built.costs[0].ops(Work(1, 1)) if op.unit == "tensor"]
    main = max(ops, key=lambda op: op.layers * op.flops)
    return float(built.device.peak_flops(main.format).flops)


def pool_of(run: Run) -> NDArray[np.int64]:
    """Place in ``built.pools`` of the replica of each leap, shape [leaps]."""
    numbers = np.repeat(np.arange(len(run.built.pools)), [count for _, count in run.built.pools])
    places: NDArray[np.int64] = numbers[run.round_columns["replica"]]
    return places


def _could(run: Run) -> dict[str, Floats]:
    """What one device of each leap's replica could have done meanwhile, in FLOPs and bytes."""
    at, seconds = pool_of(run), run.round_columns["duration_ns"] * 1e-9
    rates = np.array([[peak_flops(one), one.device.memory_Bps] for one, _ in run.built.pools])
    return {"could_flops": seconds * rates[at, 0], "could_bytes": seconds * rates[at, 1]}


def utilisation(run: Run, duration_s: float) -> dict[str, float]:
    """Share of the time in which rounds ran, and MFU and MBU over the whole duration, idle time included."""
    rounds, pools = run.round_columns, run.built.pools
    flops = sum(count * peak_flops(one) for one, count in pools) * duration_s
    moved = sum(count * one.device.memory_Bps for one, count in pools) * duration_s
    return {
        "busy": busy_s(run) / (replicas(run) * duration_s) if duration_s else 0.0,
        "mfu": float(rounds["flops"].sum()) / flops if flops else 0.0,
        "mbu": float(rounds["hbm_bytes"].sum()) / moved if moved else 0.0,
    }


def replicas(run: Run) -> int:
    """Replicas of all pools."""
    return int(sum(count for _, count in run.built.pools))


def kv(run: Run, tokens_per_round: float) -> dict[str, float]:
    """KV memory of one device of each data rank: capacity, mean (over busy time) and peak in use, and the share that
    held no token. Of pools, that of the one that decodes.

    Waste is measured at the starts of pure decode rounds, weighted by their duration: allocated bytes against cached
    ones. A leap's recorded context is the mean over its rounds; ``tokens_per_round`` takes it back to its start.
    """
    rounds, capacity = run.round_columns, run.built.setup.kv.capacity_bytes
    last = pool_of(run) == len(run.built.pools) - 1
    held, duration = rounds["kv_bytes"].astype(np.float64) * last, rounds["duration_ns"].astype(np.float64) * last
    mean = float((held * duration).sum() / max(duration.sum(), 1.0))
    rows = (phase_numbers(rounds) == PHASES.index("decode")) & last
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
    idle = sum(max(0.0, count * duration_s - busy) * idle_W for count, busy, idle_W in _idle(run))
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


def clock(run: Run) -> dict[str, float] | None:
    """MHz of governed compute units, by time; None where every clock is fixed. Rounds count, idle time does not."""
    powers = [one.setup.power for one, _ in run.built.pools]
    if not any(powers):
        return None
    leaps = run.recorder.leaps.frame()
    MHz, ns = leaps["clock_MHz"], leaps["duration_ns"]
    governed = MHz > 0
    if not governed.any():
        return None
    busy = float((MHz * ns).sum() / ns[governed].sum())
    return {"busy_MHz": busy, "lowest_MHz": float(MHz[governed].min()), "highest_MHz": float(MHz.max())}


def _idle(run: Run) -> list[tuple[int, float, float]]:
    """(replicas, busy seconds, idle watts of one) by pool."""
    at, seconds = pool_of(run), run.round_columns["duration_ns"] * 1e-9
    found = []
    for i, (one, count) in enumerate(run.built.pools):
        energy = one.device.energy
        idle_W = energy.idle_W * one.layout.devices if energy is not None else float("nan")
        found.append((count, float(seconds[at == i].sum()), idle_W))
    return found


def money(run: Run, duration_s: float, prompt_tokens: int, output_tokens: int) -> dict[str, Any]:
    """Rent of all devices from start to end; each price a million tokens puts the whole bill on those tokens.

    ``offline``: everything arrived at once (``rate: inf``), so that the makespan and the bill are the answer.
    """
    device, pools = run.built.device, run.built.pools
    each = [(one.device.usd_per_hour, count * one.layout.devices) for one, count in pools]
    devices = sum(count for _, count in each)
    known = [usd * count for usd, count in each if usd is not None]
    hourly = sum(known) / devices if len(known) == len(each) else None
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
    rounds, seconds = run.round_columns, replicas(run) * duration_s
    if not seconds:
        return {}
    duration = rounds["duration_ns"] * 1e-9
    seats = getattr(run.built.scheduler, "max_sequences", None)
    could = np.maximum(_could(run)["could_bytes"], 1.0)
    moved = run.accounts.counts["kv_bytes"] + run.accounts.counts["activation_bytes"]
    shares = {
        "compute": float(run.accounts.counts["compute_time_s"].sum()) / seconds,
        "memory bandwidth for KV and activations": float((moved * duration / could).sum()) / seconds,
        "KV memory": float((rounds["kv_bytes"] * duration).sum()) / max(run.built.setup.kv.capacity_bytes, 1) / seconds,
        "host time": float(rounds["host_s"].sum()) / seconds,
        "links": float(rounds["link_s"].sum()) / seconds,
    }
    if seats:
        shares["the batch limit (max_sequences)"] = float((rounds["running"] * duration).sum()) / seats / seconds
    return {name: share for name, share in shares.items() if share > 0}
