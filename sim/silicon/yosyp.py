"""Measured services in the layouts of yosyp/inference-simulator: prompts read alone, decode steps, sustained loads.

A row says GPU, model, number format, engine and the engine's limits; that is its scenario. Prompts alone and steps run
at the clock that kernels were fitted at; loads are simulated under the governed clock where the device has one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pandas as pd

from sim.analytic.work import Work
from sim.build import Built, build_scenario
from sim.run import simulate
from sim.scenario import Scenario
from sim.silicon.named import device_of, engine_of, model_of, precision_of
from sim.silicon.replayed import replayed
from workloads.errors import shown
from workloads.results import Lengths, Point

__all__ = ["DECODES", "LOADS", "PREFILLS", "Rows", "scenario_of"]

Frame = Any
Tick = Callable[[int], None] | None
HOLD = re.compile(r"(\d+(?:\.\d+)?) *s hold")
LAW = re.compile(r"lognormal median=([\d.]+) sigma=([\d.]+) clip\[(\d+),(\d+)\]")
LATENCY = re.compile(r"(?:(mean|median|p\d\d)_)?(ttft|tpot|itl|e2el?)(?:_latency)?(?:_(mean|median|p\d\d))?_ms")
HOLD_S = 180.0


@dataclass(frozen=True)
class Rows:
    """A layout: its name, the columns that identify it, and what it predicts of a row's columns."""

    NAME: str
    COLUMNS: frozenset[str]
    quantities: Callable[[Mapping[str, Any]], dict[str, float]]
    PAIRS: tuple[tuple[str, str, str], ...]

    def predict(self, frame: Frame, progress: Tick = None) -> Frame:
        """The rows with ``predicted_...`` columns, and a ``reason`` where there is no prediction."""
        found = []
        for number, row in enumerate(frame.to_dict("records"), 1):
            try:
                found.append({**self.quantities(row), "reason": ""})
            except (ValueError, KeyError, TypeError) as error:
                missing = f"{error.args[0]}: no such column" if isinstance(error, KeyError) else str(error)
                found.append({"reason": " ".join(missing.split())})
            if progress is not None:
                progress(number)
        names = dict.fromkeys([*(pair[1] for pair in self.PAIRS), *(key for row in found for key in row)])
        return frame.reset_index(drop=True).join(pd.DataFrame(found, columns=list(names)))

    def pairs(self) -> list[tuple[str, str, str]]:
        """(measured column, predicted column, title)."""
        return list(self.PAIRS)


def scenario_of(row: Mapping[str, Any], clock: str | None = None) -> dict[str, Any]:
    """What a row says of its service, as a scenario without traffic. Raises ValueError for unknown names."""
    limits = {"token_budget": "max_num_batched_tokens", "max_sequences": "max_num_seqs"}
    found = {key: int(row[said]) for key, said in limits.items() if _given(row.get(said))}
    if str(row.get("chunked_prefill", True)) == "False":
        found["whole"] = True
    block = {"block_tokens": int(row["block_size"])} if _given(row.get("block_size")) else {}
    tensor = int(row["tp"]) if _given(row.get("tp")) else int(row["n_gpu"]) if _given(row.get("n_gpu")) else 1
    return {
        "model": model_of(str(row["model"])), "hardware": device_of(str(row["gpu"])),
        "engine": engine_of(str(row["engine"])), "layout": {"tensor": tensor}, "kv": block,
        "precision": precision_of(str(row.get("dtype", "bf16"))), "scheduler": {"name": "chunked", **found},
        **({} if clock is None else {"clock": clock}),
    }  # fmt: skip


def _prefill(row: Mapping[str, Any]) -> dict[str, float]:
    """A prompt read alone: from its arrival to its first token."""
    point = Point("row", "", None, 1, 1, Lengths(float(row["prompt_tokens"])), Lengths(2.0), {})
    found = replayed(_built(_key(scenario_of(row, "fixed")), _tokens(row)), point, ("mean_ttft_ms",))
    return {"predicted_ttft_ms": found["mean_ttft_ms"]}


def _decode(row: Mapping[str, Any]) -> dict[str, float]:
    """One step of a batch at a mean context."""
    built = _built(_key(scenario_of(row, "fixed")), _tokens(row))
    batch, engine, rounds = int(row["batch"]), built.engine, built.setup.rounds
    device_s = float(built.costs[0].seconds(Work.decode(batch, int(row["mean_context_tokens"]))))
    host_s = engine.step_s + engine.layer_s * rounds.layers[0] + engine.sequence_s * batch
    return {"predicted_itl_ms": 1e3 * (max(device_s, host_s) if rounds.beside else device_s + host_s)}


def _load(row: Mapping[str, Any]) -> dict[str, float]:
    """A sustained load: means of clock and power until all is answered, and latencies that the row has columns for."""
    built = _built(_key(scenario_of(row)), _tokens(row))
    rate = float(row["rate_rps"])
    hold = HOLD.search(str(row.get("arrivals", "")))
    count = max(1, round(rate * (float(hold[1]) if hold else HOLD_S)))
    arrivals = {"kind": "gamma", "burstiness": 1.0, "rescale": True}
    prompt, output = (_law(str(row[key]), key) for key in ("input_tokens", "output_tokens"))
    workload = {"rate": rate, "arrivals": arrivals, "requests": count, "prompt": prompt, "output": output}
    scenario = built.scenario.model_copy(update={"workload": workload})
    result = simulate(replace(built, scenario=scenario))
    found, clock = result.metrics, built.device.clock
    busy, means = found["utilisation"]["busy"], dict[str, float]()
    if found["clock"] is not None and clock is not None:
        means["predicted_sm_clock_mhz"] = busy * found["clock"]["busy_MHz"] + (1 - busy) * clock.top_MHz
    if found["energy"] is not None and found["energy"].get("mean_W") is not None:
        means["predicted_power_w"] = found["energy"]["mean_W"]
    return {**means, "predicted_duration_s": found["duration_s"], **_latencies(row, found["latency"])}


def _latencies(row: Mapping[str, Any], latency: Mapping[str, Any]) -> dict[str, float]:
    """Means of TTFT, TPOT and E2EL, and the statistic of every latency that the row has a column for."""
    found = {f"predicted_mean_{key}_ms": latency[f"{key}_ms"]["mean"] for key in ("ttft", "tpot", "e2el")}
    for column in row:
        if match := LATENCY.fullmatch(str(column)):
            metric = match[2] if match[2] != "e2e" else "e2el"
            statistic = {"median": "p50"}.get(said := match[1] or match[3] or "mean", said)
            if statistic in latency[f"{metric}_ms"]:
                found[f"predicted_{column}"] = latency[f"{metric}_ms"][statistic]
    return {key: float(value) for key, value in found.items() if value is not None}


def _law(said: str, column: str) -> dict[str, Any] | int:
    if said.strip().isdigit():
        return int(said)
    found = LAW.search(said)
    if found is None:
        raise ValueError(f"{column}: {shown(said)}: must be tokens, or lognormal median=M sigma=S clip[LOW,HIGH]")
    median, sigma = float(found[1]), float(found[2])
    mean = median * math.exp(0.5 * sigma * sigma)
    return {"kind": "lognormal", "mean": mean, "sigma": sigma, "min": int(found[3]), "max": int(found[4])}


def _tokens(row: Mapping[str, Any]) -> int:
    return int(row["kv_tokens"]) if _given(row.get("kv_tokens")) else 0


def _key(said: Mapping[str, Any]) -> str:
    return json.dumps(said, sort_keys=True)


@cache
def _built(said: str, kv_tokens: int) -> Built:
    """The service built, with room for as many tokens as its engine reported."""
    data = {**json.loads(said), "workload": {"rate": 1, "requests": 1, "prompt": 16, "output": 2}}
    built = build_scenario(Scenario.parse(data))
    if not kv_tokens:
        return built
    token_bytes = sum(float(size) for size in built.costs[0].kv_bytes_per_token)
    more = kv_tokens * token_bytes - built.budget.kv_pool_bytes
    fraction = min(1.0, (built.scenario.kv.memory_fraction or 0.9) + more / built.device.memory_bytes)
    return build_scenario(Scenario.parse({**data, "kv": {**data["kv"], "memory_fraction": fraction}}))


def _given(value: Any) -> bool:
    return value is not None and value == value and value != ""


SERVICE = frozenset({"gpu", "engine", "model"})
PREFILLS = Rows("prompts read alone", SERVICE | {"prompt_tokens", "ttft_p50_ms"}, _prefill,
                (("ttft_p50_ms", "predicted_ttft_ms", "TTFT"),))  # fmt: skip
DECODES = Rows("decode steps", SERVICE | {"batch", "mean_context_tokens", "itl_p50_ms"}, _decode,
               (("itl_p50_ms", "predicted_itl_ms", "decode step"),))  # fmt: skip
LOADS = Rows("sustained loads", SERVICE | {"rate_rps", "input_tokens", "output_tokens"}, _load,
             (("mean_sm_clock_mhz", "predicted_sm_clock_mhz", "mean clock"),
              ("mean_power_w", "predicted_power_w", "mean power"), ("duration_s", "predicted_duration_s", "duration")),
             )  # fmt: skip
