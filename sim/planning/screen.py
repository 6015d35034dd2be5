"""Without a clock: does a candidate fit, what is the least it can take per token, the most it can carry, its price?

Everything here errs to the good side, so that what it rules out needs no simulation. TPOT: a decode round of one
sequence with the median prompt cached, over the tokens it gains; half of all requests take longer. TTFT: the median
prompt read in one piece by an idle replica. Rate: the best batch that memory, seats and the TPOT promised allow, with
no time lost but to prompts at what they add to a round; times ``SLACK`` for what a mean-field figure may miss.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import ceil, inf, isfinite
from typing import Any

import numpy as np

from sim.analytic.cost import DoesNotFit
from sim.analytic.work import Work
from sim.build import Built, build_scenario
from sim.planning.candidates import Candidate
from sim.planning.traffic import Traffic
from sim.policies import Chunk, Chunks
from sim.quality import losses
from sim.scenario import PlanPart, Scenario
from sim.speedup import Grid

__all__ = ["NONSENSE", "SLACK", "Screened", "binding", "price_of", "screen"]

SLACK = 1.15
NONSENSE = "is not possible:"
MOST_BATCHES = 40


@dataclass(frozen=True)
class Screened:
    """One unit of a candidate (a replica, or xPyD). ``usd_per_hour``: of a unit, None where no price is known;
    ``capacity_per_s``: at most; ``batch``: sequences that decode at that rate; ``least_units``: that could carry the
    traffic; ``why``: what rules it out, empty where nothing does; ``term``: which seconds make a promise impossible.
    """

    label: str
    hardware: str = ""
    devices: int = 0
    usd_per_hour: float | None = None
    tpot_ms: float = inf
    ttft_ms: float = inf
    capacity_per_s: float = 0.0
    batch: float = 0.0
    least_units: int = 0
    why: str = ""
    term: str = ""
    broken: str = ""

    @property
    def least_usd_per_hour(self) -> float:
        """No plan of this candidate is cheaper."""
        return self.least_units * (self.usd_per_hour or 0.0) if not self.why else inf

    def row(self) -> dict[str, Any]:
        """As plain values, None for what is infinite."""
        found = {**asdict(self), "least_usd_per_hour": self.least_usd_per_hour}
        return {k: None if isinstance(v, float) and not isfinite(v) else v for k, v in found.items()}


def screen(scenario: Scenario, plan: PlanPart, candidate: Candidate, traffic: Traffic) -> Screened:
    """Judge one candidate on paper."""
    said = priced(scenario, plan, candidate)
    try:
        built = build_scenario(said.with_settings(candidate.fleet(1, plan.link_GBps)))
    except DoesNotFit as error:
        return Screened(candidate.label, why=f"does not fit: {error}")
    except ValueError as error:
        return Screened(candidate.label, why=f"{NONSENSE} {error}")
    found = {"hardware": built.device.name, **_figures(built, candidate, traffic, scenario.slo.tpot_ms)}
    units = (
        ceil(traffic.rate_per_s / found["capacity_per_s"] - 1e-9) if found["capacity_per_s"] else plan.max_replicas + 1
    )
    one = Screened(candidate.label, usd_per_hour=price_of(built), least_units=units, **found)
    broken, why, term = _objection(one, built, scenario, plan, traffic)
    return Screened(**{**asdict(one), "why": why, "term": term, "broken": broken})


def priced(scenario: Scenario, plan: PlanPart, candidate: Candidate) -> Scenario:
    """The scenario with the plan's own price of the candidate's device, where it gives one."""
    hardware = scenario.with_settings(candidate.settings).hardware
    price = plan.usd_per_device_hour.get(hardware)
    return scenario if price is None else scenario.with_settings([f"cost.usd_per_device_hour={price!r}"])


def price_of(built: Built) -> float | None:
    """Dollars an hour of all devices; None where the price of one is unknown."""
    stated = built.scenario.cost.usd_per_device_hour
    total = 0.0
    for one, count in built.pools:
        each = stated if stated is not None else one.device.usd_per_hour
        if each is None:
            return None
        total += each * count * one.layout.devices
    return total


def _figures(built: Built, candidate: Candidate, traffic: Traffic, tpot_ms: float | None) -> dict[str, Any]:
    load, reader = traffic.load, built.prefill or built
    prompt = Chunks([Chunk(0, max(1, round(load.prompt)), True)])
    median = Chunks([Chunk(0, traffic.prompt, True)])
    alone = Grid.of(built, built.policy, np.ones(1, dtype=np.int64), traffic.prompt)
    grid = Grid.of(built, built.policy, _batches(built), load.context, None if candidate.pooled else prompt)
    tpot_s = grid.round_s / grid.expected_tokens
    kept = grid.fits.astype(bool) & (tpot_s * 1e3 <= tpot_ms if tpot_ms is not None else True)
    gained = grid.batch * grid.tokens_per_s
    rate = np.where(kept, gained / (load.output + gained * grid.prompt_s), 0.0) * candidate.decode
    best = int(rate.argmax())
    capacity = float(rate[best])
    if candidate.pooled:
        capacity = min(capacity, candidate.prefill / float(reader.setup.rounds.seconds(0, None, prompt, 1)))
    return {
        "devices": sum(count * one.layout.devices for one, count in built.pools),
        "tpot_ms": float(alone.round_s[0] / alone.expected_tokens[0]) * 1e3,
        "ttft_ms": float(reader.setup.rounds.seconds(0, None, median, 1)) * 1e3,
        "capacity_per_s": capacity * SLACK,
        "batch": float(grid.batch[best]),
    }


def _batches(built: Built) -> Any:
    seats = getattr(built.scheduler, "max_sequences", 256)
    return np.unique(np.geomspace(1, seats, MOST_BATCHES).round()).astype(np.int64)


def _objection(
    one: Screened, built: Built, scenario: Scenario, plan: PlanPart, traffic: Traffic
) -> tuple[str, str, str]:
    """(what is broken, the reason with its numbers, the term that makes it so); empty where nothing is wrong."""
    slo, term = scenario.slo, binding(built, traffic.prompt)
    lost = losses(built.policy, built.costs[0].variants, _other(scenario, built))
    if slo.tpot_ms is not None and one.tpot_ms > slo.tpot_ms:
        return "tpot_ms", f"TPOT is at least {one.tpot_ms:.3g} ms > {slo.tpot_ms:g} ms", term
    for name, limit in (("ttft_ms", slo.ttft_ms), ("e2el_ms", slo.e2el_ms)):
        if limit is not None and one.ttft_ms > limit:
            said = f"reading the median prompt takes at least {one.ttft_ms:.4g} ms > {limit:g} ms"
            return name, f"{name[:-3].upper()}: {said}", said
    if not (lost.within(scenario.quality) or lost == _written(scenario)):
        known = "unknown" if lost.percent != lost.percent else f"{lost.percent:.2g} % lost"
        return "quality", f"quality: {known}, and the scenario asks for {scenario.quality}", ""
    if not one.capacity_per_s:
        return "memory", "no batch fits into its KV memory", ""
    if one.usd_per_hour is None:
        return "price", f"no price of {built.device.name} is known; say plan.usd_per_device_hour", ""
    return _ceilings(one, plan)


def _ceilings(one: Screened, plan: PlanPart) -> tuple[str, str, str]:
    if one.least_units > plan.max_replicas:
        return "replicas", f"needs {one.least_units} replicas at least > {plan.max_replicas}", ""
    least = one.least_units * (one.usd_per_hour or 0.0)
    if plan.max_usd_per_hour is not None and least > plan.max_usd_per_hour:
        return "usd_per_hour", f"costs at least ${least:.4g}/h > ${plan.max_usd_per_hour:g}/h", ""
    return "", "", ""


def _other(scenario: Scenario, built: Built) -> str:
    """What makes a candidate another model than the scenario's, which nobody compared with it."""
    said, used = scenario.precision.model_dump(), built.scenario.precision.model_dump()
    changed = [f"precision.{key}: {used[key]}" for key in said if said[key] != used[key]]
    return ", ".join(
        [*changed, *([f"model: {built.scenario.model}"] if built.scenario.model != scenario.model else [])]
    )


def _written(scenario: Scenario) -> Any:
    """What the scenario as written loses, which its user has accepted."""
    from sim.build import expanded
    from sim.plugin import build
    from sim.variants import build as build_variants

    spelled = expanded(scenario)
    return losses(build("sim.policies", "policy", spelled.policy), build_variants(spelled.variants))


def binding(built: Built, context: int) -> str:
    """Which seconds of a decode round of one sequence no batch and no replica can take away, in words."""
    grid = Grid.of(built, built.policy, np.ones(1, dtype=np.int64), context)
    tokens, round_ms = float(grid.expected_tokens[0]), float(grid.round_s[0]) * 1e3
    target = built.costs[0]
    ops = target.ops(Work.decode(1, context, windows=target.shape.windows))
    read_bytes = sum(float(np.sum(op.layers * op.weight_bytes)) for op in ops)  # of the embedding, one row
    read_ms = read_bytes / target.device.memory_Bps * 1e3
    gained = "" if tokens < 1.005 else f" for {tokens:.3g} tokens"
    return (
        f"a round of one sequence takes {round_ms:.3g} ms{gained}, of which one read of "
        f"{read_bytes / 1e9:.3g} GB of weights at {target.device.memory_Bps / 1e9:,.0f} GB/s takes "
        f"{read_ms:.3g} ms"
    )
