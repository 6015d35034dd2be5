"""Who was up when: busy, idle and up seconds of every replica, from the round table and a table of lives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.frames import Run
from sim.account import pool_places

__all__ = ["Uptime", "up_seconds", "uptime"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Uptime:
    """Seconds of every replica, shape [replicas] each, and ``pool``: its place in ``built.pools``.

    ``pools``: how many there are. ``idle_s`` is what is left of ``up_s`` beside ``busy_s``; a replica that is down is
    neither.
    """

    pools: int
    pool: Ints
    up_s: Floats
    busy_s: Floats

    @property
    def idle_s(self) -> Floats:
        """Seconds in which a replica was up and no round ran."""
        idle: Floats = np.maximum(self.up_s - self.busy_s, 0.0)
        return idle

    def by_pool(self, seconds: Floats) -> Floats:
        """Seconds of replicas summed by pool, shape [pools]."""
        return np.bincount(self.pool, seconds, self.pools).astype(np.float64)


def uptime(run: Run, duration_s: float) -> Uptime:
    """Of every replica of a run from the start to ``duration_s``; by ``recorder.lives`` where there is such a table."""
    pool = pool_places(run.built.pools, run.recorder)
    rounds, lives = run.round_columns, getattr(run.recorder, "lives", None)
    busy_s = np.bincount(rounds["replica"], rounds["duration_ns"] * 1e-9, len(pool)).astype(np.float64)
    frame = None if lives is None or not len(lives) else lives.frame()
    return Uptime(len(run.built.pools), pool, up_seconds(frame, len(pool), duration_s), busy_s)


def up_seconds(lives: Mapping[str, Any] | None, replicas: int, duration_s: float) -> Floats:
    """Seconds up of each replica. ``lives``: a row per time up (``replica``, ``up_ns``, ``down_ns``; -1: to the end).

    A replica without a row was up from start to end; so were all without a table. Times behind the end do not count.
    """
    whole: Floats = np.full(replicas, float(duration_s))
    if lives is None:
        return whole
    who, up_s = np.asarray(lives["replica"]), np.asarray(lives["up_ns"]) * 1e-9
    down_s = np.where(np.asarray(lives["down_ns"]) < 0, duration_s, np.asarray(lives["down_ns"]) * 1e-9)
    spans = np.maximum(np.minimum(down_s, duration_s) - np.maximum(up_s, 0.0), 0.0)
    told = np.bincount(who, minlength=replicas) > 0
    return np.where(told, np.bincount(who, spans, replicas), whole)
