"""Small finished runs for the tests of accounts, metrics and files; each is simulated once."""

from __future__ import annotations

from functools import cache
from typing import Any

from sim import Scenario, simulate
from sim.run import Result

TRAFFIC = {"rate": 20, "arrivals": "poisson", "prompt": 300, "output": 40, "requests": 150}
BASE: dict[str, Any] = {
    "model": "llama-3.2-1b", "hardware": "h100-sxm", "workload": TRAFFIC, "slo": {"ttft_ms": 500, "tpot_ms": 50},
}  # fmt: skip
SPECULATIVE = {"name": "speculative", "draft": "llama-3.2-1b", "gamma": 3, "acceptance": 0.7}
RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two replicas": {"replicas": 2},
    "prefill first": {"scheduler": {"name": "continuous", "token_budget": 2048, "max_sequences": 16}},
    "static": {"scheduler": {"name": "static", "max_sequences": 8}},
    "speculative": {"model": "llama-3.1-8b", "policy": SPECULATIVE},
    "windows": {"model": "gemma-3-1b", "workload": {**TRAFFIC, "prompt": 1500, "requests": 40}},
    "experts": {"model": "qwen3-30b-a3b", "workload": {**TRAFFIC, "requests": 60}},
    "two devices": {"model": "llama-3.1-8b", "layout": {"tensor": 2}, "precision": {"weights": "fp8"}},
    "latent": {"model": "deepseek-v3", "layout": {"tensor": 8}, "precision": {"weights": "fp8"}, "hardware": "h200-sxm",
               "workload": {**TRAFFIC, "requests": 30}},
    "offline": {"workload": {**TRAFFIC, "rate": "inf"}},
    "one token": {"workload": {**TRAFFIC, "output": 1, "requests": 30}},
    "samples": {"workload": {**TRAFFIC, "samples": 3, "requests": 40}},
    "tight memory": {"kv": {"memory_fraction": 0.045}, "workload": {**TRAFFIC, "rate": 400, "output": 200}},
}


def scenario(**changes: Any) -> Scenario:
    """The base scenario with top-level keys replaced."""
    return Scenario.parse({**BASE, **changes})


@cache
def run(name: str) -> Result:
    """One of RUNS, finished."""
    return simulate(scenario(**RUNS[name]))
