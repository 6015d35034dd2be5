"""The traffic of a plan at any rate: the same requests under the same luck, arriving faster or slower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.load import Load, load_of
from sim.scenario import PlanPart, Scenario
from workloads import workload

__all__ = ["Traffic", "traffic_of"]

WARM = 0.2  # share of a run in which the system fills and nothing is judged


@dataclass(frozen=True)
class Traffic:
    """``rate_per_s`` asked of the whole fleet; ``load``: mean lengths; ``prompt``: the median prompt; ``base_per_s``:
    the rate at which the workload as written arrives.
    """

    rate_per_s: float
    base_per_s: float
    load: Load
    prompt: int
    traced: bool

    def settings(self, scenario: Scenario, rate_per_s: float, requests: int, warm: bool = True) -> tuple[str, ...]:
        """The scenario's first ``requests`` at that rate; the first fifth of the time is not judged (``warm``)."""
        spec = scenario.workload
        if self.traced and spec.get("rate") is None:
            faster = rate_per_s / self.base_per_s * float(spec.get("rate_scale") or 1.0)
            paced = f"workload.rate_scale={faster!r}"
        else:
            paced = f"workload.rate={rate_per_s!r}"
        quiet = WARM * requests / rate_per_s if warm else 0.0
        return (paced, f"workload.requests={requests}", "workload.duration_s=null", f"warmup_s={quiet!r}")


def traffic_of(scenario: Scenario, plan: PlanPart) -> Traffic:
    """Raises ValueError, one line, for traffic that has no rate to plan for."""
    spec = scenario.workload
    if spec.get("concurrency") is not None:
        raise ValueError("workload.concurrency: plan asks what an open workload needs; give a rate or a trace")
    if "mix" in spec and spec.get("rate") is None:
        raise ValueError("workload.rate: missing: plan changes the rate of a mix as a whole, so the mix needs one")
    load = load_of(scenario.model_copy(update={"replicas": 1, "pools": None}))
    stated = spec.get("rate")
    base = float(stated) if isinstance(stated, int | float) else float(load.rate_per_s or 0.0)
    if not 0.0 < base < float("inf"):
        raise ValueError("workload: everything arrives at once; plan needs a rate")
    wanted = base if plan.rate is None else plan.rate
    prompts = _prompts({k: v for k, v in spec.items() if v is not None}, scenario.seed)
    return Traffic(wanted * plan.growth, base, load, prompts, "trace" in spec)


def _prompts(spec: dict[str, Any], seed: int) -> int:
    """The median prompt of the first chunk."""
    first = next(iter(workload(spec, seed)))
    return max(1, int(np.median(first.prompt_tokens)))
