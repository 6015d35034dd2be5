"""What the exercises of the notebooks have as answers, each worked out by the project's objects: the lecturer's key.

``tests/test_exercises.py`` holds analysis/exercises.yaml to this; ``analysis.exercises.hide`` gives the form that
stands there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from worked_solutions import (
    BF16,
    SOLVED,
    chip,
    critical_batch,
    kv_bytes,
    parameters,
    product,
    read_s,
    sequences_left,
    shipped,
)

from analysis.plots import mean_error_percent
from sim import theory
from sim.build import load_device
from sim.planning.verdict import Judged, bounds
from sim.policies.tree import Tree
from sim.reference.demos import PET_DRAFT, PET_TARGET, rejection
from sim.variants.number_grid import Grid
from sim.variants.topk import union

A10, L7, L13 = load_device("a10"), shipped("llama-2-7b"), shipped("llama-2-13b")
# five p99s whose logarithms have mean ln 30 and standard deviation 0.1 (of a sample)
FIVE_RUNS = [30 * float(np.exp(0.1 * z)) for z in np.array([-2, -1, 0, 1, 2]) / np.sqrt(2.5)]
SERVED_PER_S, IN_SYSTEM_S, BUSY = 20, 5, 0.8


def bisected_c() -> float:
    """Cost of a draft step with which alpha 0.8 and gamma 4 give twice the speed."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if theory.wall_time_factor(0.8, 4, middle) > 2 else (low, middle)
    return low


ANSWERS: dict[str, Callable[[], float | str]] = {
    "1.1": lambda: load_device("h100-sxm").ridge_point("bf16"),
    "1.2": lambda: critical_batch(chip(1.97e14, 8.2e11), "bf16", 1),
    "1.3": SOLVED["G5"],
    "1.4": lambda: "compute" if product(chip(2.25e15, 8e12), 512, 4096, 8192).memory_s < 15e-6 else "memory",
    "2.1": lambda: 1e3 * 2 * 7e9 / A10.memory_Bps,
    "2.2": lambda: 1e3 * 350 * 2 * 7e9 / A10.peak_flops("fp16").flops,
    "2.3": lambda: kv_bytes(L7, BF16),
    "2.4": lambda: 64 / read_s(L13, kv_bytes(L13, BF16, 1024), 64, load_device("h100-sxm").memory_Bps),
    "2.5": lambda: sequences_left(128e9, "int8"),
    "3.1": lambda: rejection(PET_TARGET, PET_DRAFT).alpha,
    "3.2": lambda: theory.expected_tokens(0.8, 5),
    "3.3": lambda: theory.operations_factor(0.8, 5, 0.0),
    "3.4": bisected_c,
    "4.1": lambda: 4 / (1 + 3 / 6.397),
    "4.2": lambda: Tree([[0], [1], [0, 0]], [0.6, 0.2]).expected_tokens,
    "4.3": lambda: 5 * (L7.d_model**2 + parameters(L7, "logits")) / 1e9,
    "5.1": SOLVED["H3"],
    "5.2": lambda: Grid(bits=4, group=128, zero_point=True).matrix_bytes(4096, 4096) * 8 / 4096**2,
    "5.3": lambda: 100 * float(union(8, 1000, 100)) / 1000,
    "5.4": SOLVED["C4"],
    "6.1": lambda: float(SERVED_PER_S * IN_SYSTEM_S),
    "6.2": lambda: BUSY / (1 - BUSY),
    "6.3": lambda: 2.5 / (1000 * 3600) * 1e6,
    "7.1": lambda: 15e9 / load_device("l4").memory_Bps * 1e3,
    "7.2": lambda: float(np.ceil(25 * 1.1 / 6.3)),
    "7.3": lambda: 3 * 1.8 / (2400 * 3600) * 1e6,
    "7.4": lambda: round(bounds([Judged((("tpot_ms", ms),)) for ms in FIVE_RUNS], 0.9)["tpot_ms"], 6),
    "8.1": lambda: float(np.sqrt(0.7 * 0.3 / 1000)),
    "8.2": lambda: 12 * 0.05,
    "8.3": lambda: mean_error_percent(
        {"measured": np.array([10.0, 20.0, 40.0]), "predicted": np.array([11.0, 18.0, 40.0])}
    ),
}

# Answers that a slip gives, and what is said then.
SLIPS: dict[str, list[tuple[float | str, str]]] = {
    "1.1": [(1978e12 / 3.35e12, "that is the ridge point in FP8")],
    "1.2": [(2 * 1.97e14 / 8.2e11 / 2, "the weights are one byte each, so a weight's two FLOP belong to one byte")],
    "1.4": [("memory", "its bytes take 14.8 us; how long do its FLOP take?")],
    "2.4": [(64 / (26.03e9 / 3.35e12), "the weights alone: where is the cache of 64 sequences?")],
    "2.5": [(52, "that is what the book printed: 128 GB less 70 GB is 58 GB"), (51.2394, "128 GB less 70 GB is 58 GB")],
    "3.1": [(0.28, "that is how often the first two agree"), (0.15, "that is how often a draft is rejected")],
    "3.2": [(4.0, "0.8 times 5: a draft after a rejected one is lost, and one token is the target's own"),
            (2.68928, "the kept drafts alone: the target adds a token of its own")],
    "3.4": [(0.34, "gamma draft steps, not two")],
    "4.1": [(3 / (1 + 3 / 6.397), "without the token that the primary's pass gives for free")],
    "4.2": [(1.8, "the node at depth two is missing"), (1.16, "the root's own token is missing")],
    "5.2": [(4.125, "the zero points are missing, four bits a group"), (4.0, "scales and zero points are missing")],
    "5.3": [(80, "rows overlap: a unit that two rows chose is read once"), (10, "that is one row's share")],
    "6.2": [(5.0, "that is waiting and service; how long does it wait?"), (0.2, "that is the share of idle time")],
    "7.2": [(4.0, "that is today's traffic: next year it is 10 % more"),
            (27.5 / 6.3, "devices come whole")],
    "7.3": [(0.2083333333333333, "that is one of three devices")],
    "7.4": [(30 * float(np.exp(1.533 * 0.1 / np.sqrt(5))), "that is a bound on the mean, not on one more run"),
            (30 * float(np.exp(1.533 * 0.1)), "the mean of five runs is not known exactly either: sqrt(1 + 1/n)")],
    "8.2": [(11.4, "that is how many should hold")],
}  # fmt: skip
