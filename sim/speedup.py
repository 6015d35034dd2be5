"""Speedup of a scenario's policy over autoregressive decoding of the same target, same batch, same context. No clock.

The baseline is the scenario with autoregressive decoding in place of its policy: variants that the policy brought with
it (``policy: hire``) go, the scenario's own stay; overrides may make it anything else (``against``).
Everything comes through the policy: a long future under evenly spread luck gives the tokens of a round and its mean
channels at one context; the policy's own passes turn those into work, and the scenario's device into seconds. A mean
count of tokens is costed between its two whole neighbours, as ``sim/account.py`` does: exact where a pass is bound by
memory, slightly low near the ridge point for policies whose rounds differ in length. A pass that not every sequence
runs is costed where anybody does, in 1 - (1 - q)^batch of the rounds: sequences draft independently of each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim import names
from sim.analytic.cost import PassCost
from sim.analytic.staged import Cost
from sim.analytic.work import Work
from sim.axes import Axis
from sim.build import Built, build_scenario, fitted
from sim.law import Law, laws_at
from sim.plain import plain
from sim.plugin import build
from sim.policies import Pass, Policy, Prompts, Windows
from sim.policies.autoregressive import Autoregressive
from sim.quality import Losses, losses
from sim.scenario import Scenario, override
from sim.serving.rounds import Rounds

__all__ = ["COLUMNS", "Curve", "Grid", "Known", "Ratio", "curve", "curve_of", "in_the_mean", "law_of",
           "operations_factor", "round_seconds", "step_ratio"]  # fmt: skip

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
COLUMNS = (
    "expected_tokens", "round_ms", "step_ms", "tokens_per_s", "speedup", "fits", "best", "quality_loss_percent",
)  # fmt: skip
PLAIN = Autoregressive()
COUNTED = ("tokens", "logit_rows", "everywhere")
DECODED = (*COUNTED, "decode_pairs", "decode_reads", "cross_pairs", "cross_reads")


@dataclass(frozen=True)
class Ratio:
    """Costs by decree instead of the device's, in seconds of one autoregressive step at the same batch and context.

    ``draft``: of one draft pass (Leviathan's c); ``verify``: of the target's pass in a round that drafts (1 in their
    theorems). The device then only says how long a step is. Raises ValueError.
    """

    draft: float
    verify: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("draft", self.draft), ("verify", self.verify)):
            if not 0.0 <= value < 1e6:
                raise ValueError(f"cost ratio {name}: {value!r} is not a number of at least 0")

    def seconds(self, passes: Iterable[Pass], step_s: Floats) -> Floats:
        """Of a round: its passes are counted, whatever work they have.

        One that not every round runs counts as often as it runs (exact for a single sequence); one that attends to
        nothing (projections, output heads) is part of the pass beside it.
        """
        steps: Any = 0.0
        for one in passes:
            if one.work.decode_pairs:
                runs = np.minimum(1.0, one.work.tokens)
                times = runs.sum(axis=0) if np.ndim(runs) == 2 else runs * _steps(one.work)
                steps = steps + times * (self.draft if one.model else self.verify)
        return np.asarray(steps * step_s, dtype=np.float64)


@dataclass(frozen=True)
class Curve:
    """Speedups over a grid. ``table``: a column for each axis, ``batch``, ``context``, and COLUMNS; shape [points].

    ``round_ms``: of a round of the policy, ``step_ms``: of the baseline for each token; ``tokens_per_s``: of one
    sequence; ``quality_loss_percent``: what the choice is known to lose, NaN where nobody knows; ``fits``: KV cache of
    that batch and context fits into memory and the model's context; ``best``: the best choice of the other axes at its
    batch and context, of those that the scenario's ``quality`` allows, among those that fit if any does.
    """

    axes: tuple[Axis, ...]
    table: dict[str, NDArray[Any]]

    @cached_property
    def best(self) -> int:
        """Row of the largest speedup among those marked best; of all where quality allows none."""
        speedup, marked = self.table["speedup"], self.table["best"].astype(bool)
        return int(np.where(marked | ~marked.any(), speedup, -np.inf).argmax())

    def row(self, number: int) -> dict[str, Any]:
        """One point as plain values."""
        return {name: values[number].item() if hasattr(values[number], "item") else values[number]
                for name, values in self.table.items()}  # fmt: skip

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every point as plain values."""
        columns = [values.tolist() for values in self.table.values()]
        for values in zip(*columns, strict=True):
            yield dict(zip(self.table, values, strict=True))


def curve(
    scenario: Scenario, axes: Sequence[Axis] = (), ratio: Ratio | None = None, against: Sequence[str] = ()
) -> Curve:
    """Speedups of a scenario over ``axes``; ``batch`` (default 1) and ``context`` (1024) are axes of their own.

    ``ratio``: costs by decree; ``against``: ``key=value`` overrides of the baseline (``variants=[]``: the plain
    target). Raises ValueError naming key and value, DoesNotFit where the weights do not.
    """
    return curve_of(Known(scenario, against), axes, ratio)


def curve_of(known: Known, axes: Sequence[Axis] = (), ratio: Ratio | None = None) -> Curve:
    """The same for a scenario asked many times: what was put together for one curve serves the next."""
    given = {axis.path: axis for axis in axes}
    inner = [given.get(name, Axis(name, (default,))) for name, default in (("batch", 1), ("context", 1024))]
    choices = [axis for axis in axes if axis not in inner]
    batch, context = (np.repeat(np.array(inner[0].values, dtype=np.int64), len(inner[1].values)),
                      np.tile(np.array(inner[1].values, dtype=np.int64), len(inner[0].values)))  # fmt: skip
    parts, allowed = [], []
    for values in product(*(axis.values for axis in choices)):
        settings = [axis.setting(v) for axis, v in zip(choices, values, strict=True)]
        built, policy = known.of(settings)
        part = _evaluate(built, policy, batch, context, known.step_s(settings, batch, context), ratio)
        lost = losses(policy, built.costs[0].variants, known.other_numbers(built))
        part["quality_loss_percent"] = np.full(batch.shape, lost.percent)
        allowed.append(lost == known.asked or lost.within(known.scenario.quality))
        parts.append(part)
    table = _columns(choices, batch, context, parts)
    table["best"] = _mark_best(table, np.array(allowed))
    first = [name for name in table if name not in COLUMNS]
    return Curve((*choices, *inner), {name: table[name] for name in (*first, *COLUMNS)})


def operations_factor(policy: Policy, draft_share: float = 0.0) -> float:
    """Tokens run through the models for each token emitted, a draft's counted ``draft_share`` (Leviathan's c hat).

    Through the policy's passes, so that what a draft catches up after full acceptance is counted, which the paper's
    theorem 3.11 leaves out; with ``draft_share`` 0 the two agree.
    """
    windows: tuple[Windows, ...] = ((None,),) * (1 + len(policy.drafts))
    law = Law.of(policy)
    seats, totals = np.ones(1, dtype=np.int64), law.channels(1024, windows)[:, None]
    run = 0.0
    for one in _passes(policy, seats, totals, windows):
        tokens = np.broadcast_to(one.work.tokens, np.broadcast_shapes(np.shape(one.work.tokens), (1,)))
        steps = _steps(one.work) if tokens.ndim < 2 else 1
        run += float(np.sum(tokens)) * steps * (draft_share if one.model else 1.0)
    return run / law.expected_tokens


def step_ratio(draft: PassCost, target: PassCost, context: int = 1024, source: int = 0, layer_s: float = 0.0) -> float:
    """Leviathan's c: seconds of a draft's step over the target's, one sequence with ``context`` tokens.

    ``source``: tokens that an encoder has read (encoder-decoder models, whose decoder steps these are); ``layer_s``:
    seconds a decoder layer that neither bytes nor FLOPs explain (host, launches). Raises ValueError.
    """
    if not layer_s >= 0.0:
        raise ValueError(f"layer_s: {layer_s!r} is not a number of at least 0")
    return _step_s(draft, context, source, layer_s) / _step_s(target, context, source, layer_s)


def _step_s(cost: PassCost, context: int, source: int, layer_s: float) -> float:
    work = Work.decode(1, context, windows=cost.shape.windows)._replace(cross_pairs=source, cross_reads=source)
    return float(cost.seconds(work)) + layer_s * len(cost.shape.layers)


# -- one choice of options over batch and context


class Grid(NamedTuple):
    """One choice over batch and context, arrays of shape [points]: tokens a round, its seconds, whether it fits."""

    batch: Ints
    expected_tokens: Floats
    round_s: Floats
    fits: NDArray[np.int64]
    prompt_s: Floats

    @classmethod
    def of(cls, built: Built, policy: Policy, batch: Ints, context: Any, prompts: Prompts | None = None) -> Grid:
        """Costed by the scenario's device; ``context`` may be one number for all.

        ``prompt_s``: what reading ``prompts`` adds to a round; a round of its own where the scheduler mixes none.
        """
        contexts = np.broadcast_to(np.asarray(context, dtype=np.int64), batch.shape)
        expected, totals = law_of(policy, built.setup.rounds, batch, contexts)
        rounds, prompt_s = built.setup.rounds, np.zeros(batch.shape)
        seconds = round_seconds(rounds, policy, batch, totals)
        if prompts is not None and getattr(built.scheduler, "mixes", False):
            prompt_s = round_seconds(rounds, policy, batch, totals, prompts) - seconds
        elif prompts is not None:
            prompt_s = prompt_s + float(rounds.seconds(0, None, prompts, 1))
        return cls(batch, expected, seconds, _fits(built, policy, batch, contexts), prompt_s)

    @property
    def tokens_per_s(self) -> Floats:
        """Of one sequence."""
        return self.expected_tokens / self.round_s


def _evaluate(
    built: Built, policy: Policy, batch: Ints, context: Ints, step_s: Floats, ratio: Ratio | None
) -> dict[str, NDArray[Any]]:
    rounds = built.setup.rounds
    expected, totals = law_of(policy, rounds, batch, context)
    if ratio is None or policy.name == PLAIN.name:
        round_s = round_seconds(rounds, policy, batch, totals)
    else:
        round_s = ratio.seconds(_passes(policy, batch, totals, rounds.windows), step_s)
    with np.errstate(divide="ignore", invalid="ignore"):
        per_s, speedup = expected / round_s, expected * (step_s / round_s)
    return {
        "expected_tokens": expected,
        "round_ms": round_s * 1e3,
        "step_ms": step_s * 1e3,
        "tokens_per_s": per_s,
        "speedup": speedup,
        "fits": _fits(built, policy, batch, context),
    }


def law_of(policy: Policy, rounds: Rounds, batch: Ints, context: Ints) -> tuple[Floats, Floats]:
    """Tokens a round, shape [points], and channels of the whole batch, shape [channels, points]."""
    if hasattr(policy, "loaded"):  # it depends on the batch
        expected, totals = np.zeros(batch.shape), np.zeros((policy.channels(rounds.windows), len(batch)))
        for load in np.unique(batch):
            here = batch == load
            expected[here], totals[:, here] = _at_context(policy.loaded(int(load)), rounds, batch[here], context[here])
        return expected, totals
    return _at_context(policy, rounds, batch, context)


def _at_context(policy: Policy, rounds: Rounds, batch: Ints, context: Ints) -> tuple[Floats, Floats]:
    """The same of a policy that does not depend on the batch."""
    contexts, place = np.unique(context, return_inverse=True)
    windows = rounds.windows[: 1 + len(policy.drafts)]
    laws = laws_at(policy, contexts)
    means = np.stack([law.channels(int(c), windows) for law, c in zip(laws, contexts, strict=True)], axis=1)
    expected = np.array([law.expected_tokens for law in laws])
    return expected[place], np.asarray(means[:, place] * batch, dtype=np.float64)


def _passes(
    policy: Policy, batch: Ints, totals: Any, windows: tuple[Windows, ...], prompts: Prompts | None = None
) -> Iterable[Pass]:
    """The passes of a round with mean totals; a policy's arithmetic broadcasts over floats as over whole numbers."""
    return policy.passes(batch, totals, prompts, windows)


def round_seconds(
    rounds: Rounds, policy: Policy, batch: Ints, totals: Floats, prompts: Prompts | None = None
) -> Floats:
    """Seconds of a round with these mean totals, one more sequence reading ``prompts`` in it; shape [points]."""
    rounds = replace(rounds, policy=policy)  # whose host time it is: a replica is kept for many choices of options
    passes, shares, launched = in_the_mean(rounds, batch, rounds.passes(batch, totals, prompts))
    sequences, run = batch + (prompts is not None), rounds.layers_run(launched)
    host_s: Any = rounds.host_s(sequences, batch, run, prompts) + np.zeros(batch.shape)
    total = np.zeros(batch.shape) if rounds.beside else host_s
    for one, share in zip(passes, shares, strict=True):
        seconds = _pass_s(rounds.costs[one.model], one.work)
        seconds = seconds if share is None else seconds * share
        for step in seconds if seconds.ndim == 2 else [seconds]:  # added in order: the same bits alone and in a grid
            total = total + step
    return np.asarray((np.maximum(host_s, total) if rounds.beside else total) * rounds.slots)


def in_the_mean(
    rounds: Rounds, batch: Ints, passes: Iterable[Pass]
) -> tuple[list[Pass], list[Floats | None], list[Pass]]:
    """Passes of mean counts as they are in the rounds that run them, the share of rounds that do (None: all), and what
    the host launches in a mean round.
    """
    found = list(passes)
    shares = [_share_run(one.work, -(-batch // rounds.shares)) for one in found]
    pairs = list(zip(found, shares, strict=True))
    where = [one if share is None else one._replace(work=_where_run(one.work, share)) for one, share in pairs]
    return where, shares, [_run(one, share) for one, share in pairs]


def _share_run(work: Work, batch: Ints) -> Floats | None:
    """Share of rounds that run a pass in which fewer sequences take part than there are, each by itself: those in which
    anybody does. None where all of them run it.
    """
    chance = np.asarray(np.maximum(work.tokens, work.logit_rows) / batch)  # heads alone have rows and no tokens
    return None if np.all(chance >= 1.0) else np.asarray(1.0 - (1.0 - np.minimum(chance, 1.0)) ** batch)


def _where_run(work: Work, share: Floats) -> Work:
    """Mean work of a pass in the rounds that run it."""
    times = np.divide(1.0, share, out=np.zeros(share.shape), where=share > 0)
    decoded = {name: getattr(work, name) for name in DECODED}
    return work._replace(**{
        name: tuple(c * times for c in field) if isinstance(field, tuple) else field * times
        for name, field in decoded.items() if field is not None
    })  # fmt: skip


def _run(one: Pass, share: Floats | None) -> Pass:
    """The same pass, its tokens being the share of rounds in which the host launches it."""
    return one if share is None else one._replace(work=one.work._replace(tokens=share))


def _pass_s(cost: Cost, work: Work) -> Floats:
    """Seconds of a pass whose tokens and logit rows may be mean counts: between those of the whole ones beside it."""
    low = work._replace(**{name: _whole(getattr(work, name)) for name in COUNTED})
    at_low = np.asarray(cost.seconds(low))
    seconds = at_low
    for name in COUNTED:
        rest = getattr(work, name) - getattr(low, name)
        if np.any(rest):
            more = cost.seconds(low._replace(**{name: getattr(low, name) + 1}))
            seconds = seconds + rest * (more - at_low)
    return seconds


def _whole(count: Any) -> Any:
    """Rounded down; a mean that is whole but for float rounding stays so."""
    return np.floor(np.asarray(count) + 1e-9).astype(np.int64)


def _steps(work: Work) -> int:
    """How many passes a leading axis stands for."""
    columns = [np.asarray(c) for c in (*(work.decode_pairs or ()), work.tokens)]
    return max((c.shape[0] for c in columns if c.ndim == 2), default=1)


def _fits(built: Built, policy: Policy, batch: Ints, context: Ints) -> NDArray[np.int64]:
    contexts, place = np.unique(context, return_inverse=True)
    kv = built.setup.kv
    each = [kv.bytes_of(int(c) + policy.tokens_per_round, int(c)) for c in contexts]
    held = np.array(each, dtype=np.float64)[place]
    longest = context + policy.tokens_per_round <= built.shapes[0].max_context
    return ((held * batch <= kv.capacity_bytes) & longest).astype(np.int64)


# -- all choices


class Known:
    """Scenarios with settings, put together; what policies cannot change is kept."""

    def __init__(self, scenario: Scenario, against: Sequence[str] = ()) -> None:
        self.scenario, self.against = scenario, tuple(against)
        self.data = scenario.model_dump(exclude_unset=True)
        self._built: dict[str, Built] = {}
        self._steps: dict[tuple[int, bytes, bytes], Floats] = {}  # by a Built, which lives as long as this

    def of(self, settings: Sequence[str]) -> tuple[Built, Policy]:
        """The scenario with ``key=value`` overrides, and its policy. Raises ValueError."""
        data = self._with(settings)
        said = plain({"policy": data.get("policy", PLAIN.name)}, "--over")["policy"]
        said, added = names.expand(said, [])
        policy: Policy = build("sim.policies", "policy", said)
        rest = (s for s in settings if not s.startswith("policy"))
        key = "\n".join([*rest, type(policy).__name__, *map(repr, (*policy.drafts, *added))])
        if key not in self._built:
            self._built[key] = build_scenario(Scenario.parse(data, "--over") if settings else self.scenario)
        return self._built[key], fitted(policy, self._built[key].costs)

    @cached_property
    def asked(self) -> Losses:
        """What the scenario as written loses."""
        built, policy = self.of([])
        return losses(policy, built.costs[0].variants)

    def other_numbers(self, built: Built) -> str:
        """What makes a choice another model than the scenario's, whose quality nobody compared; empty where nothing."""
        said, used = self.scenario.precision.model_dump(), built.scenario.precision.model_dump()
        changed = [f"precision.{key}: {used[key]}" for key in said if said[key] != used[key]]
        if built.scenario.model != self.scenario.model:
            changed.append(f"model: {built.scenario.model}")
        return ", ".join(changed)

    def step_s(self, settings: Sequence[str], batch: Ints, context: Ints) -> Floats:
        """Seconds that the baseline takes for each token of a sequence; shape [points]."""
        built, policy = self.baseline(settings)
        key = (id(built), batch.tobytes(), context.tobytes())
        if key not in self._steps:
            expected, totals = law_of(policy, built.setup.rounds, batch, context)
            self._steps[key] = round_seconds(built.setup.rounds, policy, batch, totals) / expected
        return self._steps[key]

    def baseline(self, settings: Sequence[str]) -> tuple[Built, Policy]:
        """What settings are compared with; where the policy brings no variants, its own replica decoding
        autoregressively: drafts stay in memory.
        """
        said = self._with(settings).get("policy", PLAIN.name)
        if not self.against and not names.expand(said, [])[1]:
            built, _ = self.of(settings)
            return built, fitted(PLAIN, built.costs)
        rest = [s for s in settings if not s.startswith("policy")]
        return self.of([*rest, f"policy={PLAIN.name}", *self.against])

    def _with(self, settings: Sequence[str]) -> dict[str, Any]:
        data = dict(self.data)
        for setting in settings:
            override(data, setting)
        return data


def _columns(
    choices: Sequence[Axis], batch: Ints, context: Ints, parts: Sequence[Mapping[str, NDArray[Any]]]
) -> dict[str, NDArray[Any]]:
    """Choices vary slowest."""
    table: dict[str, NDArray[Any]] = {}
    combinations = list(product(*(axis.values for axis in choices)))
    for i, axis in enumerate(choices):
        values = [combination[i] for combination in combinations]
        column = np.array(values) if axis.numeric else np.array([str(v) for v in values], dtype=object)
        table[axis.path] = np.repeat(column, len(batch))
    table["batch"], table["context"] = np.tile(batch, len(parts)), np.tile(context, len(parts))
    for name in parts[0]:
        table[name] = np.concatenate([part[name] for part in parts])
    return table


def _mark_best(table: Mapping[str, NDArray[Any]], allowed: NDArray[np.bool_]) -> Ints:
    """1 at the best choice of each batch and context; with a single choice, at the best point of all.

    ``allowed``: whether quality allows each choice; shape [choices]. Nothing is marked where it allows none.
    """
    choices, speedup, fits = len(allowed), table["speedup"], table["fits"].astype(bool)
    marks = np.zeros(len(speedup), dtype=np.int64)
    if choices == 1:
        marks[int(np.where(fits | ~fits.any(), speedup, -np.inf).argmax())] = 1
        return marks
    grid, room = speedup.reshape(choices, -1), fits.reshape(choices, -1) & allowed[:, None]
    wanted = np.where((room | ~room.any(axis=0)) & allowed[:, None], grid, -np.inf)
    marks.reshape(choices, -1)[wanted.argmax(axis=0), np.arange(grid.shape[1])] = allowed.any()
    return marks
