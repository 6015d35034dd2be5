"""What grouped products of experts cost, fitted: ``python -m sim.silicon.inferencex_fit FILE OUT``.

No table of kernels has them, so this is the one thing that is taken from the served points themselves: from the half
that :func:`half` marks, by mean TPOT alone. The other half, all TTFTs and all dense models judge it. A point is here
its mean round: a decode round of all users, and each user's prompt read in one of the others' rounds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sim.analytic.cost import PassCost
from sim.analytic.kernel_book import ExpertTerms, KernelBook, scheme
from sim.analytic.roofline import combine
from sim.analytic.work import Work
from sim.build import build_scenario
from sim.calibration.fit_robust import Bounds, intervals
from sim.calibration.fit_robust import fit as robust
from sim.scenario import Scenario
from sim.silicon.inferencex_rows import LENGTHS, scenario, trap

__all__ = ["Case", "Product", "Step", "cases", "fit", "half", "tpot_ms"]

Floats = NDArray[np.float64]
# name: (start, low, high); compute and memory as shares of what products of one matrix reach
PARAMETERS: dict[str, tuple[float, float, float]] = {
    "compute": (0.4, 0.1, 1.2),
    "memory": (0.9, 0.1, 1.2),
    "layer_us": (20.0, 0.1, 400.0),
    "matrix_us_per_MB": (1.0, 0.01, 100.0),
    "host_us_per_step": (4000.0, 10.0, 20000.0),
    "host_us_per_sequence": (80.0, 0.1, 500.0),
}
HOSTED = {("trtllm", "int4_wo")}  # whose host time beside the device is found along with their experts


@dataclass(frozen=True)
class Product:
    """A product of the experts of all layers alike: seconds that each bound takes with terms of one matrix."""

    compute_s: float
    memory_s: float
    p: float
    overhead_s: float
    layers: int
    matrix_bytes: float

    def seconds(self, terms: ExpertTerms) -> float:
        """With other terms."""
        busy = float(combine(self.compute_s / terms.compute, self.memory_s / terms.memory, self.p))
        return busy + self.overhead_s + self.layers * (0.5 * terms.layer_s + terms.matrix_s * self.matrix_bytes)


@dataclass(frozen=True)
class Step:
    """One pass: seconds of all that is not a product of experts, and those products."""

    rest_s: float
    products: tuple[Product, ...]

    def seconds(self, terms: ExpertTerms) -> float:
        """With other terms."""
        return self.rest_s + sum(one.seconds(terms) for one in self.products)


@dataclass(frozen=True)
class Case:
    """An aggregated point: a decode round of all users, alone and with a prompt in it; output tokens; measured TPOT."""

    alone: Step
    mixed: Step
    sequence_s: float
    users: int
    output: float
    measured_ms: float
    experts: str


def half(row: pd.Series) -> bool:
    """Whether a point may be fitted to: one half of the settings, by the checksum of what was run, whoever ran it."""
    columns = ("model_path", "backend", "isl", "osl", "concurrency", "moe_tp_size", "moe_ep_size")
    said = "/".join(str(row[key]).replace("DeepSeek-V3", "DeepSeek-R1") for key in columns)
    return crc32(said.encode()) % 2 == 0


def cases(frame: pd.DataFrame) -> Iterator[Case]:
    """The predictable aggregated points of ``frame`` with experts and without data ranks."""
    for row in frame.to_dict("records"):
        try:
            said = scenario(row)
            if trap(row) or "pools" in said or said["layout"]["data"] > 1:
                continue
            built = build_scenario(Scenario.parse(said))
        except ValueError:
            continue
        cost = built.costs[0]
        if isinstance(cost, PassCost) and any(layer.ffn.experts for layer in cost.shape.layers):
            cost = _neutral(cost)
            stored = built.precision.weight_format("moe.up", cost.shape.expert_format)
            users, share = int(row["concurrency"]), float(np.mean(LENGTHS))
            prompt, output = share * row["isl"], share * row["osl"]
            alone, mixed = (_step(cost, _work(cost, users, prompt + 0.5 * output, n)) for n in (0, round(prompt)))
            name = scheme(stored, built.precision.product_format(stored))
            each_s = built.engine.sequence_s if built.engine.overlap == "sum" else 0.0
            yield Case(alone, mixed, each_s, users, output, row["silicon_tpot_ms"], name)


def tpot_ms(case: Case, terms: ExpertTerms, host: tuple[float, float] | None = None) -> float:
    """Mean TPOT of a point in milliseconds; ``host``: seconds of a step and a sequence that run beside the device."""
    alone, mixed = case.alone.seconds(terms), case.mixed.seconds(terms)
    if host is not None:
        least = host[0] + host[1] * case.users
        alone, mixed = max(alone, least), max(mixed, least)
    else:
        alone += case.sequence_s * case.users
        mixed += case.sequence_s * case.users
    return (alone + (case.users - 1) / case.output * (mixed - alone)) * 1e3


def _neutral(cost: PassCost) -> PassCost:
    """The same with experts whose products are as those of one matrix."""
    book = cost.device.kernels
    assert isinstance(book, KernelBook)
    device = replace(cost.device, kernels=replace(book, experts={}))
    return PassCost(cost.shape, device, cost.precision, cost.layout)


def _step(cost: PassCost, work: Work) -> Step:
    rest_s, products = 0.0, []
    for kernel, bound in cost.bounds(work):
        op = kernel[0]
        if op.matrices is None:
            rest_s += float(bound.seconds)
        else:
            one = float(op.weight_bytes) / max(float(op.matrices), 1e-9)
            spent = (float(bound.compute_s), float(bound.memory_s), bound.p, float(bound.overhead_s))
            products.append(Product(*spent, op.layers, one))
    return Step(rest_s, tuple(products))


def _work(cost: PassCost, users: int, context: float, chunk: int) -> Work:
    seen = tuple(round(users * min(context, window or context)) for window in cost.local.windows)
    decodes = Work(users + chunk, users + bool(chunk), decode_pairs=seen, decode_reads=seen)
    if not chunk:
        return decodes
    pairs = tuple(chunk * min(chunk, 2 * (window or chunk)) // 2 for window in cost.local.windows)
    return decodes._replace(prefill_pairs=pairs, prefill_reads=(0,) * len(pairs), prefill_tokens=chunk)


def fit(found: Sequence[Case], host: bool = False) -> dict[str, tuple[float, float, float]]:
    """(value, low, high) by name of PARAMETERS, the host's only with ``host``; intervals are 5th to 95th percentile."""
    names = list(PARAMETERS)[: None if host else 4]
    start, low, high = (np.log([PARAMETERS[name][i] for name in names]) for i in range(3))
    bounds, wanted = Bounds(start, low, high), np.log([case.measured_ms for case in found])

    def predict(at: Floats) -> Floats:
        given = dict(zip(names, np.exp(at).tolist(), strict=True))
        terms = ExpertTerms.from_profile(given)
        beside = (given["host_us_per_step"] * 1e-6, given["host_us_per_sequence"] * 1e-6) if host else None
        return np.array([tpot_ms(case, terms, beside) for case in found])

    best = robust(predict, wanted, bounds, rounds=40).parameters
    spans = intervals(predict, wanted, bounds, best, np.arange(len(found)))
    rows = zip(names, *(np.exp(each).tolist() for each in (best, *spans)), strict=True)
    return {name: (value, under, over) for name, value, under, over in rows}


def main(file: str) -> Iterator[str]:
    """A line for each engine and format: what the marked half says, with intervals, and errors on both halves."""
    frame = pd.read_csv(file)
    marked = frame.apply(half, axis=1)
    for engine, own in frame.groupby("backend"):
        seen, unseen = (list(cases(own[marked[own.index] == side])) for side in (True, False))
        for name in sorted({case.experts for case in seen}):
            hosted = (str(engine), name) in HOSTED
            fitted = fit([case for case in seen if case.experts == name], hosted)
            terms = ExpertTerms.from_profile({key: value for key, (value, _, _) in fitted.items()})
            beside = tuple(fitted[key][0] * 1e-6 for key in list(PARAMETERS)[4:]) if hosted else None
            said = ", ".join(f"{key}: {v:.4g} [{a:.4g}, {b:.4g}]" for key, (v, a, b) in fitted.items())
            errors = (_error([c for c in side if c.experts == name], terms, beside) for side in (seen, unseen))
            yield f"{engine} {name}: {said}; mean error {' on the fit, '.join(errors)} held out"


def _error(found: Sequence[Case], terms: ExpertTerms, beside: Any) -> str:
    sizes = [abs(tpot_ms(case, terms, beside) / case.measured_ms - 1.0) for case in found]
    return f"{np.mean(sizes):.1%} of {len(sizes)}" if sizes else "none"


if __name__ == "__main__":
    Path(sys.argv[2]).write_text("".join(f"{line}\n" for line in main(sys.argv[1])), "utf-8")
