"""How the hardware was used: seconds by cause and phase, MFU and MBU, KV memory, clocks, and what is left."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.energy_uptime import uptime
from analysis.frames import Run
from analysis.rounds import PHASES, phase_numbers
from sim.account import SECONDS, pool_places
from sim.analytic.work import Work

__all__ = ["clock", "headroom", "kv", "phases", "utilisation"]

Floats = NDArray[np.float64]
MOVED = (*(f"{cause}_s" for cause in SECONDS), "flops", "hbm_bytes")


def busy_s(run: Run) -> float:
    """Seconds in which rounds ran, summed over replicas."""
    return float(run.round_columns["duration_ns"].sum()) * 1e-9


def phases(run: Run) -> dict[str, dict[str, Any]]:
    """By kind of round: seconds, share of the busy time, seconds by cause, what bound it, MFU and MBU."""
    return phases_of(phase_sums(run), busy_s(run))


def phase_sums(run: Run) -> list[dict[str, float]]:
    """By kind of round, what :func:`phases_of` divides; sums of parts of a run add up to those of the run."""
    rounds = run.round_columns
    kinds = phase_numbers(rounds)
    added = {name: np.bincount(kinds, rounds[name], len(PHASES)) for name in ("duration_ns", "n_rounds", *MOVED)}
    added |= {name: np.bincount(kinds, column, len(PHASES)) for name, column in _could(run).items()}
    added["seats"] = np.bincount(kinds, rounds["batch"] * rounds["n_rounds"], len(PHASES))
    return [{name: float(sums[i]) for name, sums in added.items()} for i in range(len(PHASES))]


def phases_of(totals: list[dict[str, float]], busy_s: float) -> dict[str, dict[str, Any]]:
    """The ``phases`` section from sums, given the seconds in which rounds ran."""
    return {phase: _phase(busy_s, sums) for phase, sums in zip(PHASES, totals, strict=True) if sums["n_rounds"]}


def _phase(busy_s: float, sums: dict[str, float]) -> dict[str, Any]:
    seconds = sums["duration_ns"] * 1e-9
    causes = {cause: sums[f"{cause}_s"] for cause in SECONDS}
    return {
        "seconds": seconds,
        "share": seconds / busy_s,
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
    return pool_places(run.built.pools, run.recorder)[run.round_columns["replica"]]


def _could(run: Run) -> dict[str, Floats]:
    """What one device of each leap's replica could have done meanwhile, in FLOPs and bytes."""
    at, seconds = pool_of(run), run.round_columns["duration_ns"] * 1e-9
    rates = np.array([[peak_flops(one), one.device.memory_Bps] for one, _ in run.built.pools])
    return {"could_flops": seconds * rates[at, 0], "could_bytes": seconds * rates[at, 1]}


def utilisation(run: Run, duration_s: float) -> dict[str, float]:
    """Share of the time in which rounds ran, and MFU and MBU over the whole duration, idle time included."""
    rounds, pools = run.round_columns, run.built.pools
    up_s = _up_s(run, duration_s)
    flops = sum(seconds * peak_flops(one) for (one, _), seconds in zip(pools, up_s, strict=True))
    moved = sum(seconds * one.device.memory_Bps for (one, _), seconds in zip(pools, up_s, strict=True))
    return {
        "busy": busy_s(run) / sum(up_s) if sum(up_s) else 0.0,
        "mfu": float(rounds["flops"].sum()) / flops if flops else 0.0,
        "mbu": float(rounds["hbm_bytes"].sum()) / moved if moved else 0.0,
    }


def _up_s(run: Run, duration_s: float) -> list[float]:
    """Seconds that the replicas of each pool were up, summed."""
    if not len(run.recorder.lives):
        return [count * duration_s for _, count in run.built.pools]
    lives = uptime(run, duration_s)
    summed: list[float] = np.bincount(lives.pool, lives.up_s, len(run.built.pools)).tolist()
    return summed


def kv(run: Run, tokens_per_round: float) -> dict[str, float]:
    """KV memory of one device of each data rank: capacity, mean (over busy time) and peak in use, and the share that
    held no token. Of pools, that of the one that decodes; of a fleet, that of the group that was fullest.

    Waste is measured at the starts of pure decode rounds, weighted by their duration: allocated bytes against cached
    ones. A leap's recorded context is the mean over its rounds; ``tokens_per_round`` takes it back to its start.
    """
    place = _fullest(run)
    return kv_of(run, place, kv_sums(run, place, tokens_per_round))


def kv_sums(run: Run, place: int, tokens_per_round: float) -> dict[str, float]:
    """Of the pool ``place``, what :func:`kv_of` divides: all but ``peak`` add up over parts of a run."""
    rounds, last = run.round_columns, pool_of(run) == place
    held, duration = rounds["kv_bytes"].astype(np.float64) * last, rounds["duration_ns"].astype(np.float64) * last
    rows = (phase_numbers(rounds) == PHASES.index("decode")) & last
    cached = _cached_at_start(run, rows, tokens_per_round)
    return {
        "held_ns": float((held * duration).sum()),
        "ns": float(duration.sum()),
        "peak": float(held.max(initial=0.0)),
        "allocated": float((held * duration)[rows].sum()),
        "used": float((np.minimum(cached, held[rows]) * duration[rows]).sum()),
    }


def kv_of(run: Run, place: int, sums: dict[str, float]) -> dict[str, float]:
    """The ``kv`` section from the sums of a pool."""
    capacity = run.built.pools[place][0].setup.kv.capacity_bytes
    mean, allocated = sums["held_ns"] / max(sums["ns"], 1.0), sums["allocated"]
    return {
        "capacity_bytes": float(capacity),
        "mean_bytes": mean,
        "peak_bytes": sums["peak"],
        "mean_share": mean / capacity if capacity else 0.0,
        "peak_share": sums["peak"] / capacity if capacity else 0.0,
        "waste": 1.0 - sums["used"] / allocated if allocated else 0.0,
    }


def _fullest(run: Run) -> int:
    """The pool whose memory is told of: the last one, or the group of a fleet with the highest peak by share."""
    pools = run.built.pools
    if run.scenario.fleet is None or not len(run.round_columns["kv_bytes"]):
        return len(pools) - 1
    at, held = pool_of(run), run.round_columns["kv_bytes"]
    peaks = [held[at == i].max(initial=0) / max(one.setup.kv.capacity_bytes, 1) for i, (one, _) in enumerate(pools)]
    return int(np.argmax(peaks))


def _cached_at_start(run: Run, rows: NDArray[np.bool_], tokens_per_round: float) -> Floats:
    rounds = run.round_columns
    context = np.asarray(np.ma.filled(rounds["context"][rows], 1.0))
    grown = tokens_per_round * (rounds["n_rounds"][rows] - 1) / 2
    cached: Floats = run.accounts.read_bytes[rows] * np.clip(1.0 - grown / np.maximum(context, 1.0), 0.0, 1.0)
    return cached


def clock(run: Run) -> dict[str, float] | None:
    """MHz of governed compute units, by time; None where every clock is fixed. Rounds count, idle time does not."""
    powers = [one.setup.power for one, _ in run.built.pools]
    if not any(powers):
        return None
    return clock_of(clock_sums(run))


def clock_sums(run: Run) -> tuple[int, int, int, int]:
    """MHz times nanoseconds and nanoseconds of governed rounds (sums), their lowest and highest MHz; 0 for none."""
    leaps = run.recorder.leaps.frame()
    MHz, ns = leaps["clock_MHz"], leaps["duration_ns"]
    governed = MHz > 0
    if not governed.any():
        return 0, 0, 0, 0
    return int((MHz * ns).sum()), int(ns[governed].sum()), int(MHz[governed].min()), int(MHz.max())


def clock_of(sums: tuple[int, int, int, int]) -> dict[str, float] | None:
    """The ``clock`` section from sums."""
    MHz_ns, ns, lowest, highest = sums
    if not ns:
        return None
    return {"busy_MHz": MHz_ns / ns, "lowest_MHz": float(lowest), "highest_MHz": float(highest)}


def headroom(run: Run, duration_s: float) -> dict[str, float]:
    """Share of each resource in use on average over the whole duration, of those that grow at least with the rate.

    Weights are read once a round whatever the batch, so their traffic is not among them. 1/share bounds from above how
    many times the present rate the resource can carry.
    """
    rounds, seconds = run.round_columns, sum(_up_s(run, duration_s))
    if not seconds:
        return {}
    duration = rounds["duration_ns"] * 1e-9
    pools, at = [one for one, _ in run.built.pools], pool_of(run)
    limits = [getattr(one.scheduler, "max_sequences", None) for one in pools]
    capacity = np.array([max(one.setup.kv.capacity_bytes, 1) for one in pools])[at]
    could = np.maximum(_could(run)["could_bytes"], 1.0)
    moved = run.accounts.counts["kv_bytes"] + run.accounts.counts["activation_bytes"]
    shares = {
        "compute": float(run.accounts.counts["compute_time_s"].sum()) / seconds,
        "memory bandwidth for KV and activations": float((moved * duration / could).sum()) / seconds,
        "KV memory": float((rounds["kv_bytes"] / capacity * duration).sum()) / seconds,
        "host time": float(rounds["host_s"].sum()) / seconds,
        "links": float(rounds["link_s"].sum()) / seconds,
    }
    if all(limits):
        seats = np.array(limits, dtype=float)[at]
        shares["the batch limit (max_sequences)"] = float((rounds["running"] / seats * duration).sum()) / seconds
    return {name: share for name, share in shares.items() if share > 0}
