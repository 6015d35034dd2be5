"""The measured A100 service behind ``a100-pcie-40gb`` and ``vllm-v1``, and the fit that made their numbers.

Llama-3.1-8B in fp16 under vLLM 0.20.1 on an A100-PCIe-40GB with a cap of 250 W (yosyp/inference-simulator, MIT; files
in analysis/data/serving): prompts read alone at 20 lengths, decode steps at 33 points, mean clock and power under 16
Poisson loads. Shipped terms are fitted to the points in even places; ``python -m sim.calibration.serving_a100 FOLDER``
writes the kernel profile and the engine's terms again, sim/calibration/serving_loads.py has the loads.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

import hardware_profiles
from sim.analytic.config import shape_from_config
from sim.analytic.cost import PassCost
from sim.analytic.hardware import Device
from sim.analytic.kernel_book import KernelBook
from sim.analytic.precision import Precision
from sim.analytic.roofline import combine
from sim.analytic.work import Work, pairs_of, reads_of
from sim.calibration.fit_robust import Bounds, fit, intervals
from sim.calibration.kernel_profile import save
from workloads import models

__all__ = ["PARAMETERS", "Load", "Point", "decodes", "fit_times", "kernel_profile", "loads", "predicted", "prefills"]

Floats = NDArray[np.float64]
HARDWARE, MODEL, BUDGET = "a100-pcie-40gb", "llama-3.1-8b", 2048
FP16 = Precision("fp16", "fp16", "fp16")
# name: (start, low, high, what it is)
PARAMETERS: dict[str, tuple[float, float, float, str]] = {
    "matmul.compute": (0.55, 0.2, 1.0, "share of the peak rate that products reach at the rated clock"),
    "matmul.memory": (0.75, 0.3, 1.0, "share of the bandwidth that products and prefill attention reach"),
    "matmul.overlap_p": (1.8, 1.01, 8.0, "how sharply a product's compute and memory overlap"),
    "prefill_attention.compute": (0.5, 0.1, 1.0, "share of the peak rate that prefill attention reaches"),
    "decode_attention.memory": (0.8, 0.3, 1.0, "share of the bandwidth that decode attention reaches"),
    "host_us_per_sequence": (15.0, 5.0, 200.0, "host time of a step for each sequence"),
    "request_ms": (16.0, 1.0, 60.0, "time of a request before the engine sees it"),
}
TILE_ROWS = 64  # as this chip's measured products fill whole tiles (hardware_profiles/kernels/a100-sxm-80gb.yaml)
SAID = (
    "fitted at the rated clock to whole steps of Llama-3.1-8B in fp16 under vLLM 0.20.1: every second of 20 prefills "
    "and 33 decode points (yosyp/inference-simulator, MIT); held-out half: RMS 0.7 % and 2.1 %, worst 6.3 %"
)
RATIO = [0.973, 1.0, 1.027]  # of whole decode steps, held out: RMS 2.1 %, so 2.7 % at the 10th and 90th percentile
NEUTRAL = {"compute": 1.0, "memory": 1.0, "floor_us": 0.0, "overlap_p": float("inf"), "quantise": 0.0, "depth_us": 0.0}


@dataclass(frozen=True)
class Point:
    """One measured latency: the passes of a prompt read alone (``requests`` 1), or one decode step of ``sequences``."""

    works: tuple[Work, ...]
    sequences: int
    requests: int
    measured_s: float
    label: str


@dataclass(frozen=True)
class Load:
    """One of the sustained loads: requests a second, and what was measured while they came and were worked off."""

    rate: float
    duration_s: float
    mean_W: float
    mean_MHz: float


def prefills() -> list[Point]:
    """Prompts read alone, in chunks of the engine's token budget."""
    return [
        Point(tuple(_chunks(int(row["prompt_tokens"]))), 1, 1, float(row["ttft_p50_ms"]) * 1e-3, row["exp_id"])
        for row in _rows("ground_truth_yosyp_a100_prefill_batch1.csv")
    ]


def decodes() -> list[Point]:
    """Decode steps of a batch at a mean context."""
    return [
        Point(
            (Work.decode(int(row["batch"]), int(row["mean_context_tokens"])),), int(row["batch"]), 0,
            float(row["itl_p50_ms"]) * 1e-3, row["exp_id"],
        )
        for row in _rows("ground_truth_yosyp_a100_decode_steps.csv")
    ]  # fmt: skip


def loads() -> list[Load]:
    """The sustained loads, in order of their rates."""
    keys = ("rate_rps", "duration_s", "mean_power_w", "mean_sm_clock_mhz")
    return [Load(*(float(row[key]) for key in keys)) for row in _rows("a100_pcie_clock_under_load.csv")]


def fit_times(points: Sequence[Point]) -> dict[str, tuple[float, float, float]]:
    """(value, low, high) by name of PARAMETERS, fitted to ``points``; the interval is the 5th to 95th percentile.

    A robust fit of log times (sim/calibration/fit_robust.py) of the simulator's own formula, terms of a product and of
    each attention, host time and time per request.
    """
    parts = [_parts(point) for point in points]
    wanted = np.log([p.measured_s for p in points])

    def predict(at: Floats) -> Floats:
        given = dict(zip(PARAMETERS, np.exp(at).tolist(), strict=True))
        return np.array([_seconds(part, point, given) for part, point in zip(parts, points, strict=True)])

    start, low, high = (np.log([row[i] for row in PARAMETERS.values()]) for i in range(3))
    bounds = Bounds(start, low, high)
    found = fit(predict, wanted, bounds, rounds=80).parameters
    spans = intervals(predict, wanted, bounds, found, np.arange(len(points)))
    rows = zip(PARAMETERS, np.exp(found), np.exp(spans[0]), np.exp(spans[1]), strict=True)
    return {name: (float(value), float(a), float(b)) for name, value, a, b in rows}


def predicted(points: Sequence[Point], given: Mapping[str, float]) -> Floats:
    """Seconds of each point with these parameters, shape [points]."""
    return np.array([_seconds(_parts(point), point, given) for point in points])


def kernel_profile(found: Mapping[str, tuple[float, float, float]]) -> dict[str, Any]:
    """The kernel profile of the fit, as hardware_profiles/kernels has it."""
    groups = {"matmul": "bf16", "prefill_attention": "bf16-bf16", "decode_attention": "bf16"}
    fixed: dict[str, Any] = {
        "matmul": {"tile_rows": TILE_ROWS}, "prefill_attention": {"overlap_p": 1.0}, "decode_attention": {}
    }  # fmt: skip
    vllm: dict[str, Any] = {}
    for group, name in groups.items():
        own = {key.partition(".")[2]: value for key, value in found.items() if key.startswith(group + ".")}
        if group == "prefill_attention":
            own["memory"] = found["matmul.memory"]
        values = {**NEUTRAL, **{key: value[0] for key, value in own.items()}, **fixed[group]}
        spans = {key: [value[1], value[2]] for key, value in own.items()}
        vllm[group] = {name: {"any": {**values, "interval": spans, "ratio": RATIO, "provenance": SAID}}}
    return {"device": HARDWARE, "measurements": SAID, "libraries": {"vllm": vllm}}


def main(folder: Path) -> None:
    """Fit the points in even places; write kernel profile and the engine's terms into ``folder``."""
    found = fit_times([*prefills()[::2], *decodes()[::2]])
    save(kernel_profile(found), folder / f"{HARDWARE}.yaml")
    terms = {key: [float(f"{x:.4g}") for x in found[key]] for key in ("host_us_per_sequence", "request_ms")}
    (folder / "vllm-v1-terms.yaml").write_text(yaml.safe_dump(terms), "utf-8")


@dataclass(frozen=True)
class _Part:
    """Kernels of one point at full efficiency: compute and memory seconds by group, [kernels] each; the rest as is."""

    matmul: tuple[Floats, Floats]
    prefill: tuple[Floats, Floats]
    decode: tuple[Floats, Floats]
    rest_s: float


def _seconds(part: _Part, point: Point, given: Mapping[str, float]) -> float:
    compute, memory = part.matmul
    products = combine(compute / given["matmul.compute"], memory / given["matmul.memory"], given["matmul.overlap_p"])
    scores, keys = part.prefill
    read = scores / given["prefill_attention.compute"] + keys / given["matmul.memory"]
    attended = np.maximum(part.decode[0], part.decode[1] / given["decode_attention.memory"])
    steps = len(point.works)
    host_s = steps * point.sequences * given["host_us_per_sequence"] * 1e-6
    device_s = float(products.sum() + read.sum() + attended.sum()) + part.rest_s
    return device_s + host_s + point.requests * given["request_ms"] * 1e-3


def _parts(point: Point) -> _Part:
    found: dict[str, list[tuple[float, float]]] = {"matmul": [], "prefill_attention": [], "decode_attention": []}
    rest_s = 0.0
    for work in point.works:
        for kernel, bound in _neutral().bounds(work):
            group = next((op for op in kernel if op.unit == "tensor"), kernel[0]).terms
            if group in found:
                found[group].append((float(bound.compute_s), float(bound.memory_s)))
            else:
                rest_s += float(bound.seconds)
    columns = {name: np.array(rows or [(0.0, 0.0)]).T for name, rows in found.items()}
    pairs = [(column[0], column[1]) for column in columns.values()]
    return _Part(pairs[0], pairs[1], pairs[2], rest_s)


@cache
def _neutral() -> PassCost:
    """The pass with kernels as fast as the datasheet; between them as in every kernel profile."""
    profile = hardware_profiles.kernels(HARDWARE, "vllm")
    groups = {"matmul": "bf16", "prefill_attention": "bf16-bf16", "decode_attention": "bf16"}
    bare: dict[str, Any] = {group: {name: {"any": NEUTRAL}} for group, name in groups.items()}
    bare["matmul"]["bf16"]["any"] = {**NEUTRAL, "tile_rows": TILE_ROWS}
    bare["prefill_attention"]["bf16-bf16"]["any"] = {**NEUTRAL, "overlap_p": 1.0}
    book = KernelBook.from_profile({**profile, **bare})
    device = replace(Device.from_profile(hardware_profiles.load(HARDWARE)), kernels=book)
    return PassCost(shape_from_config(*models.find(MODEL)), device, FP16)


def _chunks(prompt: int) -> Iterator[Work]:
    for cached in range(0, prompt, BUDGET):
        new = min(BUDGET, prompt - cached)
        yield Work(
            new, int(cached + new == prompt), prefill_pairs=(pairs_of(new, cached, None),),
            prefill_reads=(reads_of(cached, None),), prefill_tokens=new,
        )  # fmt: skip


def _rows(name: str) -> list[dict[str, str]]:
    with (files("analysis") / "data" / "serving" / name).open("r", encoding="utf-8") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
