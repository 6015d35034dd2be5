"""What a decode round lasts: the passes of the policy through the costs of its models, host time added."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sim.analytic.hardware import Engine
from sim.analytic.roofline import larger
from sim.analytic.staged import Cost
from sim.policies import Pass, Policy, Prompts, Totals, Windows
from sim.serving.linear import LinearRounds
from sim.serving.single import SingleRound

_NS_PER_S, _LEAST_NS = np.array(1e9), np.array(1.0)  # arrays, because Python numbers cost a conversion each time


@dataclass(frozen=True)
class Rounds:
    """Seconds of rounds for one policy on one replica: an elementwise pure function of integers.

    ``layers`` of each model, which the host launches one by one, and of its encoder, where any model has one.
    """

    policy: Policy
    costs: tuple[Cost, ...]
    engine: Engine
    windows: tuple[Windows, ...]
    layers: tuple[int, ...]
    encoders: tuple[int, ...] = ()

    def seconds(self, seats: Any, totals: Totals | None, prompts: Prompts | None, sequences: Any) -> Any:
        """Seconds of each round, shape [rounds] (a number where all of the work is numbers), passes added in order.

        ``seats`` decode and ``sequences`` take part, prompts included: numbers, or arrays of shape [rounds].
        """
        passes = self.passes(seats, totals, prompts)
        host_s = self.host_s(sequences, None if totals is None else seats, self.layers_run(passes), prompts)
        if self.beside:
            return larger(host_s, _added(0.0, [self.costs[one.model].seconds(one.work) for one in passes]))
        return _added(host_s, [self.costs[one.model].seconds(one.work) for one in passes])

    def joules(self, seats: Any, totals: Totals | None, prompts: Prompts | None) -> Any:
        """Dynamic joules of all devices in each round, likewise; NaN where the device's energy is unknown."""
        passes = self.passes(seats, totals, prompts)
        return _added(0.0, [self.costs[one.model].joules(one.work) for one in passes])

    def at_clock(self, MHz: int) -> Self:
        """The same with the devices' compute units at another clock. Raises ValueError where they have none."""
        return replace(self, costs=tuple(cost.at_clock(MHz) for cost in self.costs))

    @property
    def beside(self) -> bool:
        """Whether the host works beside the device, so that the longer of the two counts."""
        return self.engine.overlap == "max"

    @property
    def slots(self) -> int:
        """Every pass of a round runs so often, one after another (sim/serving/dealt.py)."""
        return 1

    @property
    def shares(self) -> int:
        """How many equal parts a round's work is dealt to, each with passes of its own."""
        return 1

    def passes(self, seats: Any, totals: Any, prompts: Prompts | None) -> list[Pass]:
        """The passes that decide how long a round takes; ``totals`` may be means."""
        return list(self.policy.passes(seats, totals, prompts, self.windows))

    def mean_passes(self, seats: Any, totals: Any, prompts: Prompts | None) -> list[Pass]:
        """The passes of a round by mean totals, for accounts."""
        return self.passes(seats, totals, prompts)

    def filling_ns(self, ns: NDArray[np.int64], prompts: Prompts | None) -> int:
        """More nanoseconds of a round of ``ns`` before which the replica stood idle."""
        return 0

    def ns(self, seats: Any, totals: Totals | None, prompts: Prompts | None, sequences: Any) -> NDArray[np.int64]:
        """The same in whole nanoseconds, at least one; shape [rounds]."""
        seconds = None
        if type(totals) is list and not self.beside and (single := self._single(seats)) is not None:
            layers = self.layers if self.engine.layer_s else None
            host = partial(self.host_s, sequences, seats, prompts=prompts)
            seconds = single.seconds(seats, totals, prompts, self.windows, host, layers)
        if seconds is None:
            seconds = self.seconds(seats, totals, prompts, sequences)
        if isinstance(seconds, float):
            return np.array([max(1, round(seconds * 1e9))])
        return _whole_ns(seconds)

    def decode_ns(self, most_seats: int, totals: NDArray[np.int64]) -> NDArray[np.int64]:
        """The same without prompts; ``totals``: seats, at most ``most_seats``, then the policy's channels."""
        linear = self._linear
        if linear is None or not linear.serves(most_seats):
            return self.ns(totals[0], totals[1:], None, totals[0])
        host_s = self._same_s
        if host_s is None:
            run = self._run_each if linear.always or not self.engine.layer_s else linear.layers_run(totals, self.layers)
            host_s = self.host_s(totals[0], totals[0], run)
        seconds = linear.seconds(totals, 0.0 if self.beside else host_s)
        if self.beside and seconds is not None:
            seconds = np.maximum(host_s, seconds)
        return self.ns(totals[0], totals[1:], None, totals[0]) if seconds is None else _whole_ns(seconds)

    def _single(self, seats: int) -> SingleRound | None:
        """What costs a single round of so many seats without making its passes; None where they must be made."""
        linear = self._linear
        return linear.single if linear is not None and linear.fits(seats) else None

    @cached_property
    def _linear(self) -> LinearRounds | None:
        return LinearRounds.of(self.policy, self.costs, self.windows)

    @cached_property
    def _policy_s(self) -> tuple[float, float]:
        """Host seconds that the policy itself takes: of a round with decodes, and of each decoding sequence."""
        said: tuple[float, float] = getattr(self.policy, "host_s", (0.0, 0.0))
        return said

    @cached_property
    def _prompt_s(self) -> float:
        """Host seconds that the policy takes for each prompt whose last token is read."""
        return float(getattr(self.policy, "prompt_s", 0.0))

    @cached_property
    def _run_each(self) -> Any:
        """Layers run in a round of a linear policy, which runs the same passes every time."""
        return self.layers_run(self.policy.passes(1, [1] * self.policy.channels(self.windows), None, self.windows))

    @cached_property
    def _same_s(self) -> float | None:
        """Host seconds of a round of a linear policy, None where they depend on who takes part."""
        engine, linear = self.engine, self._linear
        apart = engine.layer_s and linear is not None and not linear.always
        return None if engine.sequence_s or self._policy_s[1] or apart else float(self.host_s(1, 1, self._run_each))

    def layers_run(self, passes: Iterable[Pass]) -> Any:
        """Layers that the host launches in a round: those of each pass that has any work."""
        if not self.engine.layer_s:
            return 0
        run: Any = 0
        for one in passes:
            runs = np.minimum(one.work.tokens, 1)  # of a mean count below 1: the share of rounds that run the pass
            steps = max((np.shape(c)[0] for c in one.work.decode_reads or () if np.ndim(c) == 2), default=1)
            run = run + self.layers[one.model] * (runs.sum(axis=0) if runs.ndim == 2 else runs * steps)
            if self.encoders:
                run = run + self.encoders[one.model] * np.minimum(one.work.encoder_tokens, 1)
        return run

    def host_s(self, sequences: Any, seats: Any = None, layers_run: Any = 0, prompts: Prompts | None = None) -> Any:
        """Host seconds of a round in which so many sequences take part; the device waits for them.

        ``seats`` of them decode (None: nobody does); ``layers_run``: see there; ``prompts``: read in it.
        """
        engine, (round_s, seat_s) = self.engine, self._policy_s
        total = engine.step_s + engine.layer_s * layers_run + engine.sequence_s * sequences
        if self._prompt_s and prompts is not None:
            total = total + self._prompt_s * prompts.part(()).rows
        return total if seats is None or not (round_s or seat_s) else total + (round_s + seat_s * seats)


def _added(total: Any, passes: Iterable[Any]) -> Any:
    """Passes added to ``total`` in order, and the steps of each, shape [steps, rounds], one by one."""
    for one in passes:
        if getattr(one, "ndim", 0) < 2:
            total = total + one
        else:
            for step in one:
                total = total + step
    return total


def _whole_ns(seconds: NDArray[np.float64]) -> NDArray[np.int64]:
    ns = seconds * _NS_PER_S
    np.rint(ns, out=ns)
    np.maximum(ns, _LEAST_NS, out=ns)
    whole: NDArray[np.int64] = ns.astype(np.int64)
    return whole
