"""Speedup of a scenario's policy over autoregressive decoding of the same target, same batch, same context. No clock.

Everything comes through the policy: a long future under evenly spread luck gives the tokens of a round and its mean
channels at one context; the policy's own passes turn those into work, and the scenario's device into seconds. A mean
count of tokens is costed between its two whole neighbours, as ``sim/account.py`` does: exact where a pass is bound by
memory, slightly low near the ridge point for policies whose rounds differ in length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim import names
from sim.analytic.cost import PassCost
from sim.analytic.work import Work
from sim.axes import Axis
from sim.build import Built, build_scenario
from sim.plain import plain
from sim.plugin import build
from sim.policies import Future, Pass, Policy, Windows
from sim.policies.autoregressive import Autoregressive
from sim.scenario import Scenario, override
from sim.serving.rounds import Rounds

__all__ = ["COLUMNS", "Curve", "Ratio", "Spread", "curve", "operations_factor", "step_ratio"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
COLUMNS = ("expected_tokens", "round_ms", "step_ms", "tokens_per_s", "speedup", "fits", "best")
ROUNDS = 1024  # of the future that means are taken over
LATER = 64  # rounds left out at the front: what a sequence does once it has settled
PLAIN = Autoregressive()


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
        """Of a round: its passes are counted, whatever work they have."""
        steps = 0.0
        for one in passes:
            steps += _steps(one.work) * (self.draft if one.model else self.verify)
        return steps * step_s


class Spread:
    """Luck without luck: every purpose draws each of ``ROUNDS`` evenly spaced uniforms once, in a mixed order.

    Means over ``ROUNDS`` rounds then miss a survival vector by at most 1/(2 ROUNDS) in each entry. Takes the place of
    the addressed draws of a sample (``sim.policies.Draws``).
    """

    prompt = 0

    def __init__(self) -> None:
        self._kept: dict[str, Floats] = {}

    def uniforms(self, purpose: str, start: int, count: int) -> Floats:
        """``count`` draws from own round ``start`` on; they repeat after ``ROUNDS``."""
        return self._draws(purpose).take(np.arange(start, start + count), mode="wrap")

    def from_tile(self, purpose: str, build: Any) -> tuple[Any, int, int]:
        """What ``build`` makes of one lap, shape [1, ROUNDS]."""
        return build(self._draws(purpose)[None, :]), 0, ROUNDS

    def _draws(self, purpose: str) -> Floats:
        if purpose not in self._kept:
            mixed = np.random.Generator(np.random.PCG64(list(purpose.encode()))).permutation(ROUNDS)
            self._kept[purpose] = (mixed + 0.5) / ROUNDS
        return self._kept[purpose]


SPREAD = Spread()


class Law(NamedTuple):
    """What a policy does round by round, context put aside: ``future`` with offsets 0, and tokens a round."""

    policy: Policy
    future: Future
    expected_tokens: float

    @classmethod
    def of(cls, policy: Policy) -> Law:
        """From a future of ``ROUNDS`` rounds; tokens a round by the policy's own closed form where it has one."""
        rounds = ROUNDS + LATER
        whole = policy.future(SPREAD, 0, (rounds + 1) * policy.tokens_per_round)
        gains, kept, drafted = (column[:rounds] for column in (whole.gains, whole.kept, whole.drafted))
        closed = getattr(policy, "expected_tokens", None)
        mean = float(gains[LATER:].mean()) if closed is None else float(closed)
        return cls(policy, Future(gains, np.zeros_like(gains), kept, drafted), mean)

    def channels(self, context: int, windows: tuple[Windows, ...]) -> Floats:
        """Mean of the policy's channels for one sequence with ``context`` tokens cached; shape [channels]."""
        if self._counts_on(windows):
            return self._one_by_one(context, windows)
        rows = self.policy.rows(self.future, context, windows)
        return np.array([row[LATER:].mean() for row in rows])

    def _counts_on(self, windows: tuple[Windows, ...]) -> bool:
        """Whether the policy lets the context grow by itself, offsets or not, as one with a constant gain may."""
        two = Future(*(column[:2] for column in self.future[:4]))
        moved = two._replace(offsets=two.offsets + np.array([0, two.gains[0]]))
        pairs = zip(self.policy.rows(two, 64, windows), self.policy.rows(moved, 64, windows), strict=True)
        return all(np.array_equal(a, b) for a, b in pairs)

    def _one_by_one(self, context: int, windows: tuple[Windows, ...]) -> Floats:
        """The same from each kind of round and the one before it, which begins a gain earlier."""
        columns = np.stack([self.future.gains, self.future.kept, self.future.drafted])[:, LATER - 1 :]
        kinds, counts = np.unique(np.concatenate([columns[:, :-1], columns[:, 1:]]), axis=1, return_counts=True)
        total = np.zeros(self.policy.channels(windows))
        for kind, count in zip(kinds.T, counts, strict=True):
            (gains, kept, drafted), first = kind.reshape(2, 3).T.copy(), min(int(kind[0]), context)
            two = Future(gains, np.array([0, first]), kept, drafted)
            rows = self.policy.rows(two, context - first, windows)
            total += count * np.array([row[1] for row in rows])
        return np.asarray(total / counts.sum())


PLAIN_LAW = Law.of(PLAIN)


@dataclass(frozen=True)
class Curve:
    """Speedups over a grid. ``table``: a column for each axis, ``batch``, ``context``, and COLUMNS; shape [points].

    ``round_ms``: of a round of the policy, ``step_ms``: of an autoregressive step; ``tokens_per_s``: of one sequence;
    ``fits``: KV cache of that batch and context fits into memory and the model's context; ``best``: the best choice
    of the other axes at its batch and context, among those that fit if any does.
    """

    axes: tuple[Axis, ...]
    table: dict[str, NDArray[Any]]

    @cached_property
    def best(self) -> int:
        """Row of the largest speedup, among rows that fit if any does."""
        return _argbest(self.table["speedup"], self.table["fits"].astype(bool))

    def row(self, number: int) -> dict[str, Any]:
        """One point as plain values."""
        return {name: values[number].item() if hasattr(values[number], "item") else values[number]
                for name, values in self.table.items()}  # fmt: skip

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every point as plain values."""
        columns = [values.tolist() for values in self.table.values()]
        for values in zip(*columns, strict=True):
            yield dict(zip(self.table, values, strict=True))


def curve(scenario: Scenario, axes: Sequence[Axis] = (), ratio: Ratio | None = None) -> Curve:
    """Speedups of a scenario over ``axes``; ``batch`` (default 1) and ``context`` (1024) are axes of their own.

    ``ratio``: costs by decree. Raises ValueError naming key and value, DoesNotFit where the weights do not.
    """
    given = {axis.path: axis for axis in axes}
    inner = [given.get(name, Axis(name, (default,))) for name, default in (("batch", 1), ("context", 1024))]
    choices = [axis for axis in axes if axis not in inner]
    batch, context = (np.repeat(np.array(inner[0].values, dtype=np.int64), len(inner[1].values)),
                      np.tile(np.array(inner[1].values, dtype=np.int64), len(inner[0].values)))  # fmt: skip
    parts, known = [], _Known(scenario)
    steps: dict[int, Floats] = {}  # seconds of autoregressive steps; a Built lives as long as ``known``
    for values in product(*(axis.values for axis in choices)):
        built, policy = known.of([axis.setting(v) for axis, v in zip(choices, values, strict=True)])
        if id(built) not in steps:
            steps[id(built)] = _round_s(built.setup.rounds, PLAIN, batch, _totals(PLAIN_LAW, built, batch, context))
        parts.append(_evaluate(built, policy, batch, context, steps[id(built)], ratio))
    table = _columns(choices, batch, context, parts)
    table["best"] = _mark_best(table, len(parts))
    return Curve((*choices, *inner), table)


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


def _evaluate(
    built: Built, policy: Policy, batch: Ints, context: Ints, step_s: Floats, ratio: Ratio | None
) -> dict[str, NDArray[Any]]:
    rounds, law = built.setup.rounds, Law.of(policy)
    totals = _totals(law, built, batch, context)
    if ratio is None or isinstance(policy, Autoregressive):
        round_s = _round_s(rounds, policy, batch, totals)
    else:
        round_s = ratio.seconds(_passes(policy, batch, totals, rounds.windows), step_s)
    with np.errstate(divide="ignore", invalid="ignore"):
        per_s, speedup = law.expected_tokens / round_s, law.expected_tokens * (step_s / round_s)
    return {
        "expected_tokens": np.full(batch.shape, law.expected_tokens),
        "round_ms": round_s * 1e3,
        "step_ms": step_s * 1e3,
        "tokens_per_s": per_s,
        "speedup": speedup,
        "fits": _fits(built, policy, batch, context),
    }


def _totals(law: Law, built: Built, batch: Ints, context: Ints) -> Floats:
    """Channels of the whole batch; shape [channels, points]."""
    contexts, place = np.unique(context, return_inverse=True)
    windows = built.setup.rounds.windows[: 1 + len(law.policy.drafts)]
    means = np.stack([law.channels(int(c), windows) for c in contexts], axis=1)
    return np.asarray(means[:, place] * batch, dtype=np.float64)


def _passes(policy: Policy, batch: Ints, totals: Any, windows: tuple[Windows, ...]) -> Iterable[Pass]:
    """The passes of a round with mean totals; a policy's arithmetic broadcasts over floats as over whole numbers."""
    return policy.passes(batch, totals, None, windows)


def _round_s(rounds: Rounds, policy: Policy, batch: Ints, totals: Floats) -> Floats:
    """Seconds of a round with these mean totals; shape [points]."""
    passes = list(_passes(policy, batch, totals, rounds.windows))
    total: Any = rounds.host_s(batch, batch, rounds.layers_run(passes)) + np.zeros(batch.shape)
    for one in passes:
        seconds = _pass_s(rounds.costs[one.model], one.work)
        for step in seconds if seconds.ndim == 2 else [seconds]:  # added in order: the same bits alone and in a grid
            total = total + step
    return np.asarray(total)


def _pass_s(cost: PassCost, work: Work) -> Floats:
    """Seconds of a pass whose tokens and logit rows may be mean counts: between those of the whole ones beside it."""
    low = work._replace(tokens=_whole(work.tokens), logit_rows=_whole(work.logit_rows))
    at_low = np.asarray(cost.seconds(low))
    seconds = at_low
    for name in ("tokens", "logit_rows"):
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
    held = np.array([kv.bytes_of(int(c) + policy.tokens_per_round) for c in contexts], dtype=np.float64)[place]
    longest = context + policy.tokens_per_round <= built.shapes[0].max_context
    return ((held * batch <= kv.capacity_bytes) & longest).astype(np.int64)


# -- all choices


class _Known:
    """Scenarios with settings, put together; what policies cannot change is kept."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.data = scenario.model_dump(exclude_unset=True)
        self._built: dict[str, Built] = {}

    def of(self, settings: Sequence[str]) -> tuple[Built, Policy]:
        """The scenario with ``key=value`` overrides, and its policy. Raises ValueError."""
        data = dict(self.data)
        for setting in settings:
            override(data, setting)
        said = plain({"policy": data.get("policy", PLAIN.name)}, "--over")["policy"]
        said, added = names.expand(said, [])
        policy: Policy = build("sim.policies", "policy", said)
        rest = (s for s in settings if not s.startswith("policy"))
        key = "\n".join([*rest, type(policy).__name__, *map(repr, (*policy.drafts, *added))])
        if key not in self._built:
            self._built[key] = build_scenario(Scenario.parse(data, "--over") if settings else self.scenario)
        return self._built[key], policy


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


def _mark_best(table: Mapping[str, NDArray[Any]], choices: int) -> Ints:
    """1 at the best choice of each batch and context; with a single choice, at the best point of all."""
    speedup, fits = table["speedup"], table["fits"].astype(bool)
    marks = np.zeros(len(speedup), dtype=np.int64)
    if choices == 1:
        marks[_argbest(speedup, fits)] = 1
        return marks
    grid, room = speedup.reshape(choices, -1), fits.reshape(choices, -1)
    wanted = np.where(room | ~room.any(axis=0), grid, -np.inf)
    marks.reshape(choices, -1)[wanted.argmax(axis=0), np.arange(grid.shape[1])] = 1
    return marks


def _argbest(speedup: Floats, fits: NDArray[np.bool_]) -> int:
    return int(np.where(fits | ~fits.any(), speedup, -np.inf).argmax())
