"""A row of an InferenceX table as a scenario: model, number formats, layout, pools, engine, traffic.

Traps, found in the rows themselves: where experts are spread (``moe_ep_size`` above 1) some sources repeat the devices
in ``moe_tp_size`` and multiply ``tp_size`` or ``attention_dp_size`` by them; others leave ``attention_dp_size`` out,
which then follows from the experts' devices; disaggregated rows of some sources do not say how many workers there are,
and give one layout where another source has the same measurement with another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan
from typing import Any

import hardware_profiles
from workloads import models

__all__ = ["DENSE", "REQUESTS_PER_SLOT", "Unpredictable", "devices", "is_dense", "scenario", "trap"]

REQUESTS_PER_SLOT = 10
DENSE = ("llama",)
ENGINES = {"vllm": "vllm-v1", "sglang": "sglang", "trtllm": "tensorrt-llm-pytorch"}
SYSTEMS = {"a100_sxm": "a100-sxm-80gb", "b200": "b200-sxm", "b300": "b300-sxm", "gb200_sxm": "gb200"}
# Number formats of a checkpoint: what its linear layers are stored and multiplied in, and what its cache is kept in.
NARROW = {"compute": "fp8", "activations": "bf16"}
FORMATS: Mapping[str, Mapping[str, str]] = {
    "fp8": {"weights": "fp8", "kv": "fp8", **NARROW},
    "fp8_block": {"weights": "fp8_block", "kv": "bf16", **NARROW},
    "bf16": {"weights": "bf16", "kv": "bf16", "activations": "bf16"},
    "bfloat16": {"weights": "bf16", "kv": "bf16", "activations": "bf16"},
    "float16": {"weights": "fp16", "kv": "fp16", "activations": "fp16"},
    "int8_wo": {"weights": "int8", "kv": "bf16", "activations": "bf16"},
    "int4_wo": {"weights": "int4_g128", "kv": "bf16", "activations": "bf16"},
    "nvfp4": {"weights": "nvfp4", "kv": "fp8", "activations": "bf16", "compute": "fp4"},
}
# Checkpoints whose formats are their own, whatever a row calls them: experts alone are narrow, or scales are per block.
CHECKPOINTS: Mapping[str, Mapping[str, str]] = {
    "gpt-oss": FORMATS["bf16"],
    "kimi-k2": FORMATS["bf16"],
    "deepseek": FORMATS["fp8_block"],
    "qwen3-235b": FORMATS["fp8_block"],
    "minimax-m2": FORMATS["fp8_block"],
    "glm-5": FORMATS["fp8_block"],
}
LENGTHS = (0.8, 1.0)  # of nominal
OUT_OF_STEP = (0.9, 1.1)  # of nominal, where lengths are fixed and users nevertheless do not run in step
BUDGET = 8192  # tokens of a step
# Llama 70B under TensorRT-LLM, prompts and outputs of 1,024, fewer than 8 devices: prompts wait for company so many
# rounds (batch_wait_timeout_iters in InferenceX's benchmarks/70b_fp8_h200_trt_slurm.sh, Apache-2.0).
BATCH_WAIT = 20
NODE_DEVICES, NETWORK_GBps, NETWORK_us = 8, 50.0, 5.0  # a 400 Gb/s port a device between nodes


class Unpredictable(ValueError):
    """Why there is no prediction of a row."""


def scenario(row: Mapping[str, Any]) -> dict[str, Any]:
    """The scenario of one row. Raises Unpredictable, naming the column, where the row does not say enough."""
    backend = _word(row, "backend")
    if backend not in ENGINES:
        raise Unpredictable(f"backend: {backend!r}: allowed: {', '.join(ENGINES)}")
    model, users = _model(row), _count(row, "concurrency")
    said: dict[str, Any] = {
        "model": model, "hardware": _hardware(row), "engine": ENGINES[backend], "clock": "fixed",
        "precision": dict(_formats(row, model)), "workload": _traffic(row, users),
    }  # fmt: skip
    if _word(row, "mode") == "disagg":
        return {**said, "pools": _pools(row, users)}
    if backend == "trtllm":
        said["kv"] = _whole_futures(row)
    layout = _layout(row, "")
    return {**said, "layout": layout, "scheduler": {**_scheduler(users, layout), **_company(row, layout)}}


def trap(row: Mapping[str, Any]) -> str:
    """Why a point is shown and not judged; "" for most. Found by comparing rows with each other, without a prediction.

    TensorRT-LLM's DeepSeek rows of 2026-01-14 take 0.55 to 0.75 of the time per token of rows that say the same in all
    other columns and agree with each other to 1 % (13.81 and 13.82 ms, then 8.58): tokens were drafted. In the 8B rows
    in fp8 under vLLM, 2,000-token prompts ask for the whole peak of the device, of which products alone reach 80 %:
    prompts were found in a prefix cache.
    """
    said = {key: str(row.get(key)) for key in ("model_path", "backend", "measured")}
    if "DeepSeek" in said["model_path"] and said["backend"] == "trtllm" and said["measured"] == "2026-01-14":
        return "tokens were drafted, which no column says"
    if "8B-Instruct-FP8" in said["model_path"] and said["backend"] == "vllm":
        return "prompts were found in a prefix cache, which no column says"
    return ""


def is_dense(model_path: str) -> bool:
    """Whether a model of that name has no experts."""
    return any(name in model_path.lower() for name in DENSE)


def devices(row: Mapping[str, Any]) -> int:
    """Devices of one replica of an aggregated row."""
    layout = _layout(row, "")
    return int(layout["tensor"] * layout["data"] * layout["pipeline"])


def _model(row: Mapping[str, Any]) -> str:
    path = _word(row, "model_path")
    name = path.rpartition("/")[2].lower()
    for suffix in ("-fp8", "-nvfp4", "-fp4", "-awq", "-int4", "-bf16"):
        name = name.removesuffix(suffix)
    try:
        return models.find(name).name
    except ValueError:
        raise Unpredictable(f"model_path: {path}: no model of that shape is shipped") from None


def _hardware(row: Mapping[str, Any]) -> str:
    system = _word(row, "system")
    name = SYSTEMS.get(system, system.replace("_", "-"))
    try:
        return str(hardware_profiles.load(name)["name"])
    except ValueError:
        raise Unpredictable(f"system: {system}: no device of that name is shipped") from None


def _formats(row: Mapping[str, Any], model: str) -> Mapping[str, str]:
    own = next((said for name, said in CHECKPOINTS.items() if model.startswith(name)), None)
    if own is not None:
        return own
    mode = _word(row, "gemm_quant_mode")
    if mode not in FORMATS:
        raise Unpredictable(f"gemm_quant_mode: {mode!r}: allowed: {', '.join(FORMATS)}")
    return FORMATS[mode]


def _traffic(row: Mapping[str, Any], users: int) -> dict[str, Any]:
    prompt, output = (_length(row, _count(row, key)) for key in ("isl", "osl"))
    return {"concurrency": users, "prompt": prompt, "output": output, "requests": REQUESTS_PER_SLOT * users}


def _length(row: Mapping[str, Any], nominal: int) -> Any:
    """A law of lengths. Fixed lengths keep simulated users in step: all end, and all prompts come, in one round.

    SGLang's points show that, vLLM's do not: there 40 prompts of 1,000 tokens have their first tokens in 166 ms.
    """
    fixed = "gap-analysis" in str(row.get("source")) and "NVIDIA" in str(row.get("source"))
    if fixed and row.get("backend") != "vllm":
        return nominal
    low, high = (round(share * nominal) for share in (OUT_OF_STEP if fixed else LENGTHS))
    return {"kind": "uniform", "low": low, "high": high}


def _company(row: Mapping[str, Any], layout: Mapping[str, Any]) -> dict[str, int]:
    """What the benchmark's own script says of the scheduler beyond its limits."""
    lengths = (row.get("isl"), row.get("osl"))
    said = row.get("backend") == "trtllm" and "70b" in str(row.get("model_path")).lower()
    return {"batch_wait": BATCH_WAIT} if said and lengths == (1024, 1024) and layout["tensor"] < 8 else {}


def _whole_futures(row: Mapping[str, Any]) -> dict[str, Any]:
    """TensorRT-LLM admits a request when the cache holds all that it may come to (GUARANTEED_NO_EVICT)."""
    return {"mode": "reserved", "reserve_tokens": _count(row, "isl") + _count(row, "osl") + 2}


def _pools(row: Mapping[str, Any], users: int) -> dict[str, Any]:
    pools: dict[str, Any] = {}
    for name in ("prefill", "decode"):
        workers = _count(row, f"{name}_num_workers", "how many workers there are decides what each has to do")
        layout = _layout(row, f"{name}_")
        pools[name] = {"replicas": workers, "layout": layout, "scheduler": _scheduler(users, layout)}
    many = max(layout["tensor"] * layout["data"] for layout in (one["layout"] for one in pools.values()))
    return {**pools, "link_GBps": NETWORK_GBps * min(many, NODE_DEVICES), "link_latency_us": NETWORK_us}


def _scheduler(users: int, layout: Mapping[str, Any]) -> dict[str, Any]:
    """Chunked, 8,192 tokens a step of each data rank; nobody waits for a seat."""
    budget = BUDGET * layout["data"] * layout["pipeline"]
    return {"name": "chunked", "token_budget": budget, "max_sequences": max(1024, users)}


def _layout(row: Mapping[str, Any], side: str) -> dict[str, Any]:
    """Counts of a pool's worker, or of a replica; dense models have neither data ranks nor experts."""
    tensor, pipeline = _count(row, f"{side}tp_size"), _count(row, f"{side}pp_size")
    if is_dense(_word(row, "model_path")):
        return _spanning({"tensor": tensor, "pipeline": pipeline, "expert": 1, "data": 1})
    cut, expert = _count(row, f"{side}moe_tp_size"), _count(row, f"{side}moe_ep_size")
    data = _count_or(row, f"{side}attention_dp_size", max(1, cut * expert // tensor))
    if cut == expert > 1 and tensor * data == cut * expert:
        tensor, data = (tensor // cut, data) if tensor >= data else (tensor, data // cut)
    return _spanning({"tensor": tensor, "pipeline": pipeline, "expert": expert, "data": data})


def _spanning(layout: dict[str, Any]) -> dict[str, Any]:
    """The layout with a network where it is larger than a node."""
    if layout["tensor"] * layout["data"] * layout["pipeline"] <= NODE_DEVICES:
        return layout
    network = {"node_devices": NODE_DEVICES, "network_GBps": NETWORK_GBps, "network_latency_us": NETWORK_us}
    return {**layout, **network}


def _word(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise Unpredictable(f"{key}: not said")
    return value.strip()


def _count(row: Mapping[str, Any], key: str, why: str = "") -> int:
    value = _count_or(row, key, None)
    if value is None:
        raise Unpredictable(f"{key}: not said" + (f"; {why}" if why else ""))
    return int(value)


def _count_or(row: Mapping[str, Any], key: str, default: Any) -> Any:
    """The whole number of a cell, or ``default`` where it is empty. Raises Unpredictable for anything else."""
    value = row.get(key)
    if value is None or (isinstance(value, float) and isnan(value)):
        return default
    if isinstance(value, str) or not 1 <= value < 1 << 30 or value != int(value):
        raise Unpredictable(f"{key}: {value!r}: must be a whole number of at least 1")
    return int(value)
