"""Samples of what a scenario was built to: the same models, policy, scheduler and memory, on hardware drawn anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sim.build import Built, build_scenario
from sim.scenario import Scenario
from sim.serving.governor import Power
from sim.uncertain.draws import Draw
from sim.uncertain.hardware import drawn_device, drawn_engine

__all__ = ["drawn", "pass_factors", "sampled"]

Floats = NDArray[np.float64]


def sampled(scenario: Scenario | Built, samples: int, widen: Mapping[str, float] | None = None) -> Iterator[Built]:
    """``samples`` of a scenario, one at a time; the seed is the scenario's, so the same ones every time.

    ``widen``: how many times wider by kind of kernel (``sim.uncertain.ranges``). A policy that fits itself to its
    hardware stays as it was fitted to the point. Raises ValueError for a scenario that makes no sense.
    """
    built = scenario if isinstance(scenario, Built) else build_scenario(scenario)
    for number in range(samples):
        yield drawn(built, Draw(built.scenario.seed, number), widen or {})


def drawn(built: Built, draw: Draw, widen: Mapping[str, float]) -> Built:
    """One sample."""
    device = drawn_device(built.device, built.engine, draw, widen)
    engine = drawn_engine(built.engine, draw)
    costs = tuple(cost.on(device) for cost in built.costs)
    rounds = replace(built.setup.rounds, costs=costs, engine=engine)
    power = built.setup.power
    if power is not None and device.clock is not None and device.energy is not None:
        power = Power(rounds, device.clock, device.energy.idle_W, power.devices)
    setup = replace(built.setup, rounds=rounds, power=power)
    prefill = None if built.prefill is None else drawn(built.prefill, draw, widen)
    mover = built.mover
    if mover is not None:
        by = device.link.efficiency / built.device.link.efficiency
        mover = replace(mover, link_Bps=mover.link_Bps * by, latency_s=mover.latency_s / by)
    return replace(built, device=device, engine=engine, costs=costs, setup=setup, prefill=prefill, mover=mover)


def pass_factors(built: Built, samples: int, batch: int = 1, context: int = 1024) -> Floats:
    """Seconds of a decode round over the point's, shape [samples]: what a plan may scale its answers by where a run of
    every sample would take too long.

    Capacity that a round's time alone sets goes with its inverse; queues do not.
    """
    from sim.speedup import Grid

    sizes = np.array([batch], dtype=np.int64)

    def seconds(one: Built) -> float:
        return float(Grid.of(one, one.policy, sizes, context).round_s[0])

    point = seconds(built)
    return np.array([seconds(one) / point for one in sampled(built, samples)], dtype=np.float64)
