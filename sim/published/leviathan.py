"""Leviathan et al. 2023 and Chen et al. 2023: theorem 3.8 and the costs of T5 drafts on a TPUv4."""

from __future__ import annotations

from functools import cache
from typing import Any

from sim import theory
from sim.analytic.cost import PassCost
from sim.axes import Axis
from sim.build import load_device, load_shape
from sim.policies.speculative import Speculative
from sim.published import chains
from sim.published.table import Published, Table
from sim.scenario import Scenario
from sim.solve import solve
from sim.speedup import Known, Ratio, curve_of, operations_factor, step_ratio

BF16_SENTENCE = {"context": 32, "source": 32}  # an EnDe sentence: 32 tokens read, 32 written
FITTED_C = 0.02  # T5-small's, of table 4


def speed(row: Published, table: Table) -> float:
    """Wall-time factor at the row's own alpha, gamma and c; verification takes one step."""
    said = row.settings
    return chains.speedup(said["alpha"], int(row.gamma), said["c"])


def operations(row: Published, table: Table) -> float:
    """Arithmetic a token over plain decoding's; the draft's share is nothing."""
    return operations_factor(Speculative(gamma=int(row.gamma), acceptance=row.settings["alpha"]))


def tokens(row: Published, table: Table) -> float:
    """Expected tokens a round at the row's alpha and gamma."""
    return chains.expected_tokens(row.settings["alpha"], int(row.gamma))


def best(row: Published, table: Table) -> float:
    """The largest wall-time factor over gamma at the row's alpha and c."""
    said = row.settings
    axes = [Axis("policy.acceptance", (said["alpha"],)), Axis("policy.gamma", tuple(range(1, 40)))]
    return float(curve_of(chains.KNOWN, axes, Ratio(said["c"])).table["speedup"].max())


def keep(row: Published, table: Table) -> float:
    """How often a token drafted with probability q survives a target that gives it p: a round of one draft."""
    return chains.expected_tokens(min(1.0, 0.4 / 0.5), 1) - 1.0


def oracle(row: Published, table: Table) -> float:
    """Percent that an oracle of gamma gains over the best fixed gamma."""
    alpha, c = row.settings["alpha"], row.settings["c"]
    return 100 * (theory.oracle_factor(alpha, c) / best(row, table) - 1)


# -- tables 2 and 4


def _of(row: Published, table: Table, quantity: str, temperature: str | None = None) -> Published:
    """The row of the same task, draft and temperature (or another) that prints ``quantity``."""
    at = row.temperature if temperature is None else temperature
    return table.one(row, quantity=quantity, draft=row.draft, task=row.task, temperature=at, config=row.config)


def _printed(row: Published, table: Table, temperature: str | None = None) -> tuple[float, int, float, float]:
    """alpha, gamma, c and the measured speedup."""
    alpha, c, speed = (
        _of(row, table, quantity, temperature) for quantity in ("alpha", "cost_coefficient_c", "speedup_measured")
    )
    return table.value(alpha.id), int(alpha.gamma), table.value(c.id), table.value(speed.id)


def theorem(row: Published, table: Table) -> float:
    """Theorem 3.8 with the published alpha and c, verification as cheap as a step."""
    alpha, gamma, c, _ = _printed(row, table)
    return chains.speedup(alpha, gamma, c)


def verified(row: Published, table: Table) -> float:
    """The same with the time of verification fitted on the greedy row of the same task and draft."""
    greedy_alpha, greedy_gamma, c, measured = _printed(row, table, "0")
    round_steps = chains.round_cost(chains.expected_tokens(greedy_alpha, greedy_gamma), greedy_gamma, measured)
    alpha, gamma, _, _ = _printed(row, table)
    return chains.speedup(alpha, gamma, c, round_steps - greedy_gamma * c)


@cache
def _costs(name: str) -> PassCost:
    return PassCost(load_shape(f"t5-v1.1-{name}", "model"), load_device("tpu-v4"))


def _c(name: str, layer_s: float, target: str = "xxl") -> float:
    return step_ratio(_costs(name), _costs(target), layer_s=layer_s, **BF16_SENTENCE)


@cache
def layer_s() -> float:
    """Seconds a decoder layer beyond bytes that give T5-small its published c, by bisection: 16 us."""
    low, high = 0.0, 1e-4
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _c("small", middle) < FITTED_C else (low, middle)
    return high


def _size(row: Published) -> str:
    return row.draft.removeprefix("T5-").partition("(")[0].partition(" ")[0]


def draft_cost(row: Published, table: Table) -> float:
    """c of a T5 draft under T5-XXL: bytes over bandwidth and one overhead a layer."""
    return _c(_size(row), layer_s())


def draft_cost_of_bytes(row: Published, table: Table) -> float:
    """c of bytes over bandwidth alone."""
    return _c(_size(row), 0.0)


def draft_cost_under_xl(row: Published, table: Table) -> float:
    """c of T5-small under T5-XL with the overhead that table 4 gave."""
    return _c("small", layer_s(), "xl")


# -- the T5 models themselves on the device's roofline, nothing fitted

CONTEXT = {"WMT EnDe": 32, "CNNDM": 512}  # a sentence; as many tokens of an article as T5 was trained to read


@cache
def _own(size: str) -> Known:
    said = {"model": "t5-v1.1-xxl", "hardware": "tpu-v4", "workload": {"rate": 1},
            "policy": {"name": "speculative", "draft": f"t5-v1.1-{size}"}}  # fmt: skip
    return Known(Scenario.parse(said, "leviathan2023"))


def own(row: Published, table: Table) -> float:
    """The speedup of the encoder-decoders as they ship on a TPU v4, at the printed alpha; no host, no launches."""
    alpha, gamma, _, _ = _printed(row, table)
    axes = [Axis("policy.acceptance", (alpha,)), Axis("policy.gamma", (gamma,)), Axis("context", (CONTEXT[row.task],))]
    return float(curve_of(_own(_size(row)), axes).table["speedup"][0])


# -- Chinchilla


def chinchilla(row: Published, table: Table) -> float:
    """The speedup at the alpha solved from that very row."""
    c = table.value("chen2023-text-002") / table.value("chen2023-text-001")
    return chains.speedup(_solved(table.value(row.id), int(row.gamma), c), int(row.gamma), c)


@cache
def _solved(said: float, gamma: int, c: float) -> float:
    """The acceptance that gives a speedup."""
    scenario = chains.SCENARIO.with_settings([f"policy.gamma={gamma}"])
    answer: Any = solve(scenario, said, "policy.acceptance=0:1", ratio=Ratio(c))
    return float(answer.values[0])


def chinchilla_ms(row: Published, table: Table) -> float:
    """Milliseconds a token of a step divided by the speedup solved for."""
    speed_row = table.one(row, quantity="speedup", task=row.task, temperature=row.temperature)
    return table.value("chen2023-text-001") / chinchilla(speed_row, table)
