"""Intervals of a speedup study: every point costed again on each sample, its law of tokens drawn up once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.analytic.work import Work
from sim.axes import Axis
from sim.build import Built
from sim.speedup import Curve, Known, law_of, round_seconds
from sim.uncertain.draws import Draw
from sim.uncertain.ranges import Asked, beyond, outside, widening
from sim.uncertain.samples import drawn
from sim.uncertain.summary import LEVELS, NAMES

__all__ = ["COLUMNS", "curve_notes", "with_intervals"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
INTERVALS = ("speedup", "tokens_per_s")
COLUMNS = tuple(f"{name}_{level}" for name in INTERVALS for level in NAMES)


def with_intervals(known: Known, found: Curve, samples: int, tick: Callable[[], None] = lambda: None) -> Curve:
    """The curve with p10, p50 and p90 of ``speedup`` and ``tokens_per_s`` at every point.

    The policy's round and the baseline's are on the same sample, so what they share cancels. Raises KeyboardInterrupt
    where it is cut short: a study is analytic and quick.
    """
    inner = len(found.axes[-2].values) * len(found.axes[-1].values)
    batch, context = (np.asarray(found.table[name][:inner], dtype=np.int64) for name in ("batch", "context"))
    choices = list(_choices(known, found.axes[:-2], batch, context))
    values = {name: np.empty((samples, len(found.table["speedup"]))) for name in INTERVALS}
    hardware = _Hardware(known.scenario.seed, batch, context)
    for sample in range(samples):
        for number, choice in enumerate(choices):
            place = slice(number * inner, (number + 1) * inner)
            speedup, per_s = choice.at(hardware, sample)
            values["speedup"][sample, place], values["tokens_per_s"][sample, place] = speedup, per_s
        hardware.forget()
        tick()
    columns = {f"{name}_{level}": column for name in INTERVALS
               for level, column in zip(NAMES, np.quantile(values[name], LEVELS, axis=0), strict=True)}  # fmt: skip
    return replace(found, table={**found.table, **columns})


def curve_notes(known: Known, found: Curve) -> list[str]:
    """One line for each kind of kernel of the scenario that the largest batch or context asks beyond measurements."""
    built, _ = known.of([])
    most = (int(found.table[name].max()) for name in ("batch", "context"))
    return outside(built.costs[0], _works(built, *most))


def _works(built: Built, batch: int, context: int) -> list[Work]:
    parts = built.layout.pipeline * built.layout.data
    return [Work.decode(-(-batch // parts), context, windows=built.costs[0].shape.windows)]


class _Side:
    """A policy on what it runs on: tokens a round and channels, which no sample changes."""

    def __init__(self, built: Built, policy: Any, batch: Ints, context: Ints) -> None:
        self.built, self.policy, self.batch = built, policy, batch
        self.expected, self.totals = law_of(policy, built.setup.rounds, batch, context)

    def seconds(self, built: Built) -> Floats:
        """Seconds a token of one sequence, on one sample of the hardware; shape [points]."""
        return np.asarray(round_seconds(built.setup.rounds, self.policy, self.batch, self.totals) / self.expected)


class _Choice:
    """One choice of the outer axes: its policy, and what it is compared with."""

    def __init__(self, ours: _Side, base: _Side) -> None:
        self.ours, self.base = ours, base

    def at(self, hardware: _Hardware, sample: int) -> tuple[Floats, Floats]:
        """(speedup, tokens per second) of every point on one sample."""
        ours, base = hardware.seconds(self.ours, sample), hardware.seconds(self.base, sample)
        return base / ours, 1.0 / ours


class _Hardware:
    """Samples of everything that choices were built to, each drawn once; points beyond measurements on wider ones."""

    def __init__(self, seed: int, batch: Ints, context: Ints) -> None:
        self.seed, self.batch, self.context = seed, batch, context
        self._drawn: dict[tuple[int, bool], Built] = {}
        self._known: dict[int, Floats] = {}
        self._beyond: dict[int, tuple[NDArray[np.bool_], Mapping[str, float]]] = {}

    def seconds(self, side: _Side, sample: int) -> Floats:
        """Seconds a token at every point; kept, as many choices share a baseline."""
        if id(side) not in self._known:
            far, wider = self._far(side.built)
            near = side.seconds(self._at(side.built, sample, {}))
            self._known[id(side)] = (
                np.where(far, side.seconds(self._at(side.built, sample, wider)), near) if far.any() else near
            )
        return self._known[id(side)]

    def forget(self) -> None:
        """Before the next sample."""
        self._drawn.clear()
        self._known.clear()

    def _at(self, built: Built, sample: int, wider: Mapping[str, float]) -> Built:
        key = id(built), bool(wider)
        if key not in self._drawn:
            self._drawn[key] = drawn(built, Draw(self.seed, sample), wider)
        return self._drawn[key]

    def _far(self, built: Built) -> tuple[NDArray[np.bool_], Mapping[str, float]]:
        """Which points are beyond what was measured, and how much wider the furthest of them is.

        A size follows the batch or the context, so each is asked about alone.
        """
        if id(built) not in self._beyond:
            far = np.zeros(self.batch.shape, dtype=bool)
            wider = widening(self._asked(built, int(self.batch.max()), int(self.context.max())))
            for b in np.unique(self.batch) if wider else ():
                far |= (self.batch == b) & bool(self._asked(built, int(b), int(self.context.min())))
            for c in np.unique(self.context) if wider else ():
                far |= (self.context == c) & bool(self._asked(built, int(self.batch.min()), int(c)))
            self._beyond[id(built)] = far, wider
        return self._beyond[id(built)]

    @staticmethod
    def _asked(built: Built, batch: int, context: int) -> Asked:
        return beyond(built.costs[0], _works(built, batch, context))


def _choices(known: Known, axes: Sequence[Axis], batch: Ints, context: Ints) -> Iterator[_Choice]:
    bases: dict[tuple[int, str], _Side] = {}
    for values in product(*(axis.values for axis in axes)):
        settings = [axis.setting(v) for axis, v in zip(axes, values, strict=True)]
        built, policy = known.of(settings)
        base, plain = known.baseline(settings)
        key = (id(base), repr(plain))
        if key not in bases:
            bases[key] = _Side(base, plain, batch, context)
        yield _Choice(_Side(built, policy, batch, context), bases[key])
