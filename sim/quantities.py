"""Numbers that somebody printed beside those of a run: what a scenario lists under ``published``, computed from tables.

Times are means over the run. A *step* is a round of decodes alone; a request takes one for each of its decode rounds
and one in the round that reads its prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.build import build_scenario
from sim.run import Result, simulate
from sim.scenario import PublishedPart, Scenario

__all__ = ["QUANTITIES", "Beside", "check", "published"]


@dataclass(frozen=True)
class Beside:
    """One printed number, ours (NaN where the run has none), and by how much ours is off (0.1: a tenth too much).

    ``over``: the scenario whose quantity is divided by this one's, empty where none is; ``label``: given, fit,
    identity, prediction or known failure.
    """

    quantity: str
    over: str
    published: float
    ours: float
    label: str
    source: str

    @property
    def error(self) -> float:
        """Ours over the published number, less one."""
        return self.ours / self.published - 1.0


def check(scenario: Scenario) -> None:
    """Raise ValueError, naming the key, where a scenario compares itself with one that cannot be run."""
    for i, part in enumerate(scenario.published):
        if part.over is not None:
            try:
                build_scenario(Scenario.load(part.over))
            except ValueError as error:
                raise ValueError(f"published.{i}.over: {error}") from None


def published(result: Result) -> list[Beside]:
    """Every number of the scenario's ``published`` beside ours; the scenarios under ``over`` are run. ValueError."""
    parts = result.scenario.published
    others = {part.over: simulate(Scenario.load(part.over)) for part in parts if part.over is not None}
    return [_beside(part, result, others) for part in parts]


def _beside(part: PublishedPart, result: Result, others: Mapping[str, Result]) -> Beside:
    ours = QUANTITIES[part.quantity](result)
    if part.over is not None:
        ours = QUANTITIES[part.quantity](others[part.over]) / ours
    return Beside(part.quantity, part.over or "", part.value, ours, part.label, part.source)


def _mean_ns(result: Result, decodes: bool) -> float:
    """Mean nanoseconds of rounds with decodes and no prompt, or the other way about; NaN without any."""
    leaps = result.recorder.leaps.frame()
    rows = (leaps["seats"] > 0) == decodes
    rows &= (leaps["chunks"] == 0) == decodes
    rounds = int(leaps["rounds"][rows].sum())
    return float(leaps["duration_ns"][rows].sum()) / rounds if rounds else float("nan")


def _step_ms(result: Result) -> float:
    return _mean_ns(result, True) * 1e-6


def _device_step_ms(result: Result) -> float:
    """What the device's roofline alone takes: no host, no launches."""
    leaps = result.recorder.leaps.frame()
    rows = (leaps["seats"] > 0) & (leaps["chunks"] == 0)
    host_s = float(result.accounts.seconds["host"][rows].sum())
    return _step_ms(result) - host_s * 1e3 / max(int(leaps["rounds"][rows].sum()), 1)


def _steps(result: Result) -> float:
    requests = result.recorder.requests.frame()
    done = requests["status"] == 0
    return float(np.mean(requests["rounds"][done] / requests["samples"][done])) + 1.0 if done.any() else float("nan")


def _overhead_ms(result: Result) -> float:
    return float(getattr(result.built.policy, "prompt_s", 0.0)) * 1e3


def _encoder_ms(result: Result) -> float:
    """A round that reads a prompt, less the decoder's first step and the policy's own time for a prompt."""
    if not result.built.shapes[0].encoder:
        return float("nan")
    return _mean_ns(result, False) * 1e-6 - _step_ms(result) - _overhead_ms(result)


def _latency(name: str) -> Callable[[Result], float]:
    return lambda result: float(result.metrics["latency"][name]["mean"])


QUANTITIES: Mapping[str, Callable[[Result], Any]] = {
    "step_ms": _step_ms,
    "device_step_ms": _device_step_ms,
    "decoder_steps": _steps,
    "decode_ms": lambda result: _steps(result) * _step_ms(result),
    "encoder_ms": _encoder_ms,
    "overhead_ms": _overhead_ms,
    "ttft_ms": _latency("ttft_ms"),
    "e2el_ms": _latency("e2el_ms"),
}
