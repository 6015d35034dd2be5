"""What the seconds of a policy's round are spent on, at mean totals; the parts add up to the round."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.analytic.roofline import CAUSES
from sim.analytic.staged import Cost
from sim.analytic.work import Work
from sim.policies import Policy
from sim.serving.rounds import Rounds
from sim.speedup import law_of, round_seconds

__all__ = ["round_parts"]

Floats = NDArray[np.float64]
COUNTED = ("tokens", "logit_rows", "everywhere")


def round_parts(rounds: Rounds, policy: Policy, batch: NDArray[np.int64], context: int) -> dict[str, Floats]:
    """Seconds by cause (``CAUSES`` and ``host``), each of shape [batches]; their sum is ``speedup.round_seconds``.

    A mean count of tokens lies between its two whole neighbours, as there; what a table of measured kernels is off
    from them (under 1 %) is shared out. Host time beside the device counts as far as it is longer.
    """
    rounds = replace(rounds, policy=policy)
    _, totals = law_of(policy, rounds, batch, np.full(batch.shape, context, dtype=np.int64))
    whole_s = round_seconds(rounds, policy, batch, totals)
    passes = rounds.passes(batch, totals, None)
    parts = {cause: np.zeros(batch.shape) for cause in CAUSES}
    for one in passes:
        for cause, seconds in _pass_parts(rounds.costs[one.model], one.work).items():
            parts[cause] = parts[cause] + (seconds.sum(axis=0) if seconds.ndim == 2 else seconds)
    host_s: Any = rounds.host_s(batch, batch, rounds.layers_run(passes), None) + np.zeros(batch.shape)
    device_s = sum(parts.values(), start=np.zeros(batch.shape))
    if rounds.beside:
        host_s = np.maximum(0.0, host_s - device_s)
    share = (whole_s - host_s * rounds.slots) / device_s
    return {**{cause: seconds * share for cause, seconds in parts.items()}, "host": host_s * rounds.slots}


def _pass_parts(cost: Cost, work: Work) -> dict[str, Floats]:
    low = work._replace(**{name: _whole(getattr(work, name)) for name in COUNTED})
    at_low = _causes(cost, low)
    parts = dict(at_low)
    for name in COUNTED:
        rest = getattr(work, name) - getattr(low, name)
        if np.any(rest):
            more = _causes(cost, low._replace(**{name: getattr(low, name) + 1}))
            parts = {cause: parts[cause] + rest * (more[cause] - at_low[cause]) for cause in parts}
    return parts


def _causes(cost: Cost, work: Work) -> dict[str, Floats]:
    shape = np.shape(cost.seconds(work))
    return {cause: np.broadcast_to(np.asarray(s, dtype=np.float64), shape) for cause, s in cost.causes(work).items()}


def _whole(count: Any) -> Any:
    return np.floor(np.asarray(count) + 1e-9).astype(np.int64)
