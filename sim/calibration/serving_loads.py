"""The sustained loads of the measured A100 service, simulated: energies fitted, clock and power compared.

Power of a card at its cap is the cap, so what the loads tell is how far the clock had to fall: cap = idle + busy *
clock * voltage^2 + pJ per FLOP and byte times what the loads compute and move, with rates from runs at the measured
clocks. That is linear in ``busy_W`` and the energy of a FLOP; the clock below which the voltage falls no further is
searched for step by step. Memory energy can hardly be told from ``busy_W``, which holds what memory draws however much
it moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sim.account import account
from sim.build import Built, build_scenario
from sim.calibration.serving_a100 import HARDWARE, MODEL, Load
from sim.request import Request
from sim.scenario import Scenario
from sim.serving.cluster import Cluster
from sim.serving.record import Recorder

__all__ = ["MEMORY_pJ", "Outcome", "fit_power", "outcome", "service"]

Floats = NDArray[np.float64]
HOLD_S, KV_TOKENS = 180.0, 158_864
MEMORY_pJ = 12.0


@dataclass(frozen=True)
class Outcome:
    """What a load came to: the time until all is answered, means over it, latencies of requests in milliseconds."""

    duration_s: float
    mean_MHz: float
    mean_W: float
    tpot_ms: float
    ttft_ms: float
    e2el_ms: float


def service(clock: str = "governed") -> Built:
    """The measured service as a scenario; its KV cache holds what vLLM reported, within one percent."""
    workload = {"rate": 1, "prompt": 256, "output": 96, "requests": 1}
    said = {"model": MODEL, "hardware": HARDWARE, "engine": "vllm-v1", "clock": clock, "workload": workload}
    formats = {"precision": dict.fromkeys(("weights", "activations", "kv"), "fp16"), "kv": {"memory_fraction": 0.925}}
    return build_scenario(Scenario.parse({**said, **formats}))


def requests(rate: float, seed: int) -> list[Request]:
    """As many Poisson arrivals as expected over the hold, with the stated clipped log-normal lengths."""
    luck = np.random.Generator(np.random.Philox(seed))
    times_s = np.sort(luck.uniform(0, HOLD_S, round(rate * HOLD_S)))
    sides = ((256, 0.8, 16, 4096), (96, 0.6, 8, 768))
    prompts, outputs = (
        np.clip(np.rint(median * np.exp(sigma * luck.standard_normal(len(times_s)))), low, high).astype(int).tolist()
        for median, sigma, low, high in sides
    )
    rows = zip(np.rint(times_s * 1e9).astype(int).tolist(), prompts, outputs, strict=True)
    return [Request(i, at, prompt, output) for i, (at, prompt, output) in enumerate(rows)]


def outcome(built: Built, load: Load, seed: int = 1) -> Outcome:
    """One load through a governed service. Between rounds the clock is the highest one and the card idles."""
    recorder, clock, energy = run(built, load, seed), built.device.clock, built.device.energy
    assert clock is not None and energy is not None
    leaps, table = recorder.leaps.frame(), recorder.requests.frame()
    duration_s = max(HOLD_S, float(table["finish_ns"].max()) * 1e-9)
    idle_s = duration_s - float(leaps["duration_ns"].sum()) * 1e-9
    joules = float(account(built.setup.rounds, leaps, recorder.chunks.frame()).joules.sum()) + idle_s * energy.idle_W
    cycles = float((leaps["clock_MHz"] * leaps["duration_ns"]).sum()) * 1e-9 + idle_s * clock.top_MHz
    first, last = table["first_token_ns"] - table["arrival_ns"], table["finish_ns"] - table["first_token_ns"]
    tpot_ns = last / np.maximum(table["output"] - 1, 1)
    means = (float(ns.mean()) * 1e-6 for ns in (tpot_ns, first, first + last))
    return Outcome(duration_s, cycles / duration_s, joules / duration_s, *means)


def fit_power(built: Built, loads: Sequence[Load], cap_W: float, seed: int = 1) -> tuple[float, float, int]:
    """(busy_W, pJ of a 16-bit FLOP, voltage floor in MHz) that hold the card at ``cap_W`` at the clocks it had."""
    clock, energy = built.device.clock, built.device.energy
    assert clock is not None and energy is not None
    tflops, memory_TBps, onchip_TBps = np.array([rates(built, load, seed) for load in loads]).T
    rest = cap_W - energy.idle_W - MEMORY_pJ * memory_TBps - energy.onchip_byte_J * 1e12 * onchip_TBps
    tried: list[tuple[float, int, Floats]] = []
    for floor_MHz in range(clock.base_MHz, clock.rated_MHz + 1, clock.step_MHz):
        unit = replace(clock, busy_W=1.0, voltage_floor_MHz=floor_MHz)
        rows = np.stack([[unit.busy_W_at(round(load.mean_MHz)) for load in loads], tflops], axis=1)
        found = np.linalg.lstsq(rows, rest, rcond=None)[0]
        tried.append((float(np.square(rows @ found - rest).sum()), floor_MHz, found))
    _, best_MHz, (busy_W, flop_pJ) = min(tried, key=lambda one: one[:2])
    return float(busy_W), float(flop_pJ), best_MHz


def rates(built: Built, load: Load, seed: int) -> tuple[float, float, float]:
    """TFLOP/s and TB/s of memory and on chip while rounds run, at the clock that was measured."""
    fixed = replace(built.setup, rounds=built.setup.rounds.at_clock(round(load.mean_MHz)), power=None)
    recorder = run(replace(built, setup=fixed), load, seed)
    leaps = recorder.leaps.frame()
    counts = account(built.setup.rounds, leaps, recorder.chunks.frame()).counts
    busy_s = float(leaps["duration_ns"].sum()) * 1e-9
    memory = sum(float(counts[f"{kind}_bytes"].sum()) for kind in ("weight", "kv", "activation"))
    flops, onchip = float(counts["flops"].sum()), float(counts["onchip_bytes"].sum())
    return flops * 1e-12 / busy_s, memory * 1e-12 / busy_s, onchip * 1e-12 / busy_s


def run(built: Built, load: Load, seed: int) -> Recorder:
    """The load through one replica."""
    return Cluster(built.setup, 1, built.router, iter(requests(load.rate, seed))).run()
