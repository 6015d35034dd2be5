"""Which way of decoding is best for this device, load and context: every choice costed without a clock, then ranked.

A choice is a scenario with settings. Its replica spends ``rate`` times what a prompt adds to a round on prompts; in the
rest of a second, a batch of b sequences at the mean context gains b times what ``sim.speedup`` says one of them does.
The batch at which that equals the tokens asked for is where the replica settles, and its time per token is the TPOT. A
mean-field answer: queues and tails are for ``run``, and ``check`` asks it about the first few.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.axes import Axis
from sim.choices import Choice, choices_of
from sim.load import Load, load_of
from sim.policies import Chunk, Chunks
from sim.quality import losses
from sim.run import simulate
from sim.scenario import Scenario
from sim.speedup import Grid, Known

__all__ = ["OBJECTIVES", "Candidate", "Limits", "Tuned", "tune"]

Floats = NDArray[np.float64]
OBJECTIVES = ("tpot", "capacity")
MOST_CHOICES = 20_000


@dataclass(frozen=True)
class Limits:
    """What a choice must keep beside the scenario's promises: ``memory_GB`` of weights and KV cache on one device,
    ``capacity_per_s`` requests per second and replica at least. None asks for nothing.
    """

    memory_GB: float | None = None
    capacity_per_s: float | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for a limit that nothing could mean."""
        for option, value in (("--memory-GB", self.memory_GB), ("--min-capacity", self.capacity_per_s)):
            if value is not None and not 0.0 < value < float("inf"):
                raise ValueError(f"{option}: {value!r}: must be a positive number")


@dataclass(frozen=True)
class Candidate:
    """One choice. ``batch``: sequences decoding at once in the mean; ``tpot_ms`` there, NaN where the load is too much;
    ``capacity_per_s``: the most requests per second within the TPOT promised, memory and seats; ``prefill_ms``: of one
    mean prompt alone; ``memory_GB``: weights and KV at that batch; ``loss_percent``: NaN where unknown; ``why``: what
    keeps it from being recommended, empty where nothing does.
    """

    choice: str
    settings: tuple[str, ...]
    batch: float
    tpot_ms: float
    capacity_per_s: float
    prefill_ms: float
    memory_GB: float
    loss_percent: float
    why: str = ""


@dataclass(frozen=True)
class Checked:
    """What a run of a candidate measured: means and the promise's share."""

    choice: str
    tpot_ms: float
    ttft_ms: float
    kept: float


@dataclass(frozen=True)
class Tuned:
    """Candidates from best to worst, those not recommended last; ``margin``: by how much the first one beats the next
    one (0.1: a tenth better), NaN where it is alone; ``over_written``: likewise over the scenario as it was written.
    """

    objective: str
    load: Load
    candidates: tuple[Candidate, ...]
    margin: float
    over_written: float
    checked: tuple[Checked, ...] = ()

    @property
    def best(self) -> Candidate | None:
        """The recommended one; None where no choice keeps everything."""
        first = self.candidates[0]
        return None if first.why else first


def tune(
    scenario: Scenario,
    axes: Sequence[Axis] = (),
    *,
    objective: str = "tpot",
    limits: Limits | None = None,
    mixes: int = 0,
    check: int = 0,
    tick: Callable[[], None] = lambda: None,
) -> Tuned:
    """Rank the choices of ``axes`` (as written, and every combination), or those that the scenario's own policy,
    variants and model offer (sim/choices.py; ``mixes`` Mix'n'Match models among them). ``check``: how many of the first
    are run. Raises ValueError naming key and value.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"--objective: {objective!r}: must be one of {', '.join(OBJECTIVES)}")
    if scenario.pools is not None:
        raise ValueError("pools: tune costs replicas that read and write; leave pools out, or run the choices")
    if mixes < 0 or mixes == 1:
        raise ValueError(f"--mixes: {mixes}: must be 0 or at least 2, the smallest and the largest")
    if check < 0:
        raise ValueError(f"--check: {check}: must be a whole number of at least 0")
    load, known, limits = load_of(scenario), Known(scenario), limits or Limits()
    found, written = [], _candidate(known, Choice("as written", ()), load, scenario, limits)
    for choice in _choices(scenario, axes, mixes):
        found.append(_candidate(known, choice, load, scenario, limits))
        tick()
    ranked = _ranked([written, *found], objective)
    checked = tuple(_checked(scenario, one) for one in [c for c in ranked if not c.why][:check])
    return Tuned(objective, load, ranked, *_margins(ranked, written, objective), checked)


def _choices(scenario: Scenario, axes: Sequence[Axis], mixes: int) -> list[Choice]:
    if not axes:
        return choices_of(scenario, mixes)
    count = int(np.prod([len(axis.values) for axis in axes]))
    if count > MOST_CHOICES:
        raise ValueError(f"--over: {count:,} combinations; at most {MOST_CHOICES:,}")
    settings = ([axis.setting(v) for axis, v in zip(axes, values, strict=True)]
                for values in product(*(axis.values for axis in axes)))  # fmt: skip
    return [Choice(", ".join(one), tuple(one)) for one in settings]


def _candidate(known: Known, choice: Choice, load: Load, scenario: Scenario, limits: Limits) -> Candidate:
    """Cost a choice; one that cannot be built or does not fit says why."""
    nothing = float("nan")
    try:
        built, policy = known.of(choice.settings)
    except ValueError as error:  # DoesNotFit included: a legal question with the answer no
        return Candidate(choice.label, choice.settings, nothing, nothing, 0.0, nothing, nothing, nothing, str(error))
    cost, rounds = built.costs[0], built.setup.rounds
    seats = getattr(built.scheduler, "max_sequences", 256)
    prompt = Chunks([Chunk(0, max(1, round(load.prompt)), True)])
    grid = Grid.of(built, policy, _batches(seats), load.context, prompt)
    room = grid.fits.astype(bool)
    prefill_s = float(rounds.seconds(0, None, prompt, 1))
    gained = grid.batch * grid.tokens_per_s  # tokens a second while nothing is prefilled
    rate = gained / (load.output + gained * grid.prompt_s)
    tpot_s = 1.0 / (grid.tokens_per_s * (1.0 - rate * grid.prompt_s))
    batch, at_load_s = _settled(grid.batch, rate, tpot_s, room, load)
    promised = scenario.slo.tpot_ms
    kept = room & (tpot_s * 1e3 <= promised if promised is not None else True)
    per_sequence = built.setup.kv.bytes_of(load.context + policy.tokens_per_round, round(load.prompt))
    held = dict(built.budget.lines)
    memory_B = held["weights"] + held["draft weights"] + per_sequence * (batch if np.isfinite(batch) else 0.0)
    lost = losses(policy, cost.variants, known.other_numbers(built))
    one = Candidate(
        choice.label, choice.settings, batch, at_load_s * 1e3, float(rate[kept].max(initial=0.0)), prefill_s * 1e3,
        memory_B / 1e9, lost.percent,
    )  # fmt: skip
    allowed = lost == known.asked or lost.within(scenario.quality)
    if not room.any():
        return replace(one, why="one sequence is longer than the model or its KV memory allow")
    return replace(one, why=_objection(one, scenario, limits, allowed))


def _batches(seats: int) -> NDArray[np.int64]:
    """Every batch up to 16, then 48 spaced in ratio up to the seats."""
    spaced = np.geomspace(min(16, seats), seats, 48).round()
    return np.unique(np.concatenate([np.arange(1, min(16, seats) + 1), spaced])).astype(np.int64)


def _settled(batch: Any, rate: Floats, tpot_s: Floats, room: NDArray[np.bool_], load: Load) -> tuple[float, float]:
    """(batch, seconds a token) where the replica settles; both NaN where the load is more than it carries."""
    if not room.any():
        return float("nan"), float("nan")
    most = int(np.flatnonzero(room).max()) + 1
    if load.users is not None:
        users = min(load.users, float(batch[most - 1]))
        return users, float(np.interp(max(users, 1.0), batch[:most], tpot_s[:most]))
    asked, carried = float(load.rate_per_s or 0.0), np.maximum.accumulate(rate[:most])
    if asked > carried[-1]:
        return float("nan"), float("nan")
    if asked <= carried[0]:
        return asked / float(carried[0]), float(tpot_s[0])
    return float(np.interp(asked, carried, batch[:most])), float(np.interp(asked, carried, tpot_s[:most]))


def _objection(one: Candidate, scenario: Scenario, limits: Limits, allowed: bool) -> str:
    """What keeps a choice from being recommended, the first reason in a fixed order."""
    slo = scenario.slo
    lost = "unknown" if np.isnan(one.loss_percent) else f"{one.loss_percent:.2g} % lost"
    reasons = {
        "more load than it carries": not np.isfinite(one.tpot_ms),
        f"TPOT > {slo.tpot_ms} ms": slo.tpot_ms is not None and one.tpot_ms > slo.tpot_ms,
        f"prefill > {slo.ttft_ms} ms": slo.ttft_ms is not None and one.prefill_ms > slo.ttft_ms,
        f"memory > {limits.memory_GB} GB": limits.memory_GB is not None and one.memory_GB > limits.memory_GB,
        f"capacity < {limits.capacity_per_s}/s": one.capacity_per_s < (limits.capacity_per_s or 0.0),
        f"quality: {lost}": not allowed,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _value(one: Candidate, objective: str) -> float:
    """Larger is better."""
    if not np.isfinite(one.tpot_ms):
        return -1.0
    return one.capacity_per_s if objective == "capacity" else 1.0 / one.tpot_ms


def _ranked(found: Iterable[Candidate], objective: str) -> tuple[Candidate, ...]:
    """Recommended ones first, then by the objective; choices with equal answers keep their order."""
    return tuple(sorted(found, key=lambda one: (bool(one.why), -_value(one, objective))))


def _margins(ranked: Sequence[Candidate], written: Candidate, objective: str) -> tuple[float, float]:
    first = _value(ranked[0], objective)
    own, nothing = _value(written, objective), float("nan")
    next_best = _value(ranked[1], objective) if len(ranked) > 1 and not ranked[1].why else nothing
    return first / next_best - 1.0, first / own - 1.0 if own > 0 and not ranked[0].why else nothing


def _checked(scenario: Scenario, one: Candidate) -> Checked:
    """A run of the candidate on the scenario's own traffic."""
    found = simulate(scenario.with_settings(one.settings)).metrics
    goodput = found["goodput"] or {}
    mean = {name: found["latency"][name]["mean"] for name in ("tpot_ms", "ttft_ms")}
    return Checked(one.choice, mean["tpot_ms"], mean["ttft_ms"], float(goodput.get("attainment", float("nan"))))
