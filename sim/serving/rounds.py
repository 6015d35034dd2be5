"""What a decode round lasts: the passes of the policy through the costs of its models, host time added."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.analytic.cost import PassCost
from sim.analytic.hardware import Engine
from sim.policies import Pass, Policy, Prompts, Totals, Windows
from sim.serving.linear import LinearRounds

_NS_PER_S, _LEAST_NS = np.array(1e9), np.array(1.0)  # arrays, because Python numbers cost a conversion each time


@dataclass(frozen=True)
class Rounds:
    """Seconds of rounds for one policy on one replica: an elementwise pure function of integers."""

    policy: Policy
    costs: tuple[PassCost, ...]
    engine: Engine
    windows: tuple[Windows, ...]
    layers: tuple[int, ...]

    def seconds(self, seats: Any, totals: Totals | None, prompts: Prompts | None, sequences: Any) -> Any:
        """Seconds of each round, shape [rounds] (a number where all of the work is numbers), passes added in order.

        ``seats`` decode and ``sequences`` take part, prompts included: numbers, or arrays of shape [rounds].
        """
        passes = list(self.policy.passes(seats, totals, prompts, self.windows))
        total: Any = self.host_s(sequences, None if totals is None else seats, self.layers_run(passes))
        for one in passes:
            seconds = self.costs[one.model].seconds(one.work)
            if getattr(seconds, "ndim", 0) < 2:
                total = total + seconds
            else:
                for step in seconds:
                    total = total + step
        return total

    def ns(self, seats: Any, totals: Totals | None, prompts: Prompts | None, sequences: Any) -> NDArray[np.int64]:
        """The same in whole nanoseconds, at least one; shape [rounds]."""
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
            host_s = self.host_s(totals[0], totals[0], self._run_each)
        return _whole_ns(linear.seconds(totals, host_s))

    @cached_property
    def _linear(self) -> LinearRounds | None:
        return LinearRounds.of(self.policy, self.costs, self.windows)

    @cached_property
    def _policy_s(self) -> tuple[float, float]:
        """Host seconds that the policy itself takes: of a round with decodes, and of each decoding sequence."""
        said: tuple[float, float] = getattr(self.policy, "host_s", (0.0, 0.0))
        return said

    @cached_property
    def _run_each(self) -> Any:
        """Layers run in a round of a linear policy, which runs the same passes every time."""
        return self.layers_run(self.policy.passes(1, [1] * self.policy.channels(self.windows), None, self.windows))

    @cached_property
    def _same_s(self) -> float | None:
        """Host seconds of a round of a linear policy, None where they depend on who takes part."""
        return None if self.engine.sequence_s or self._policy_s[1] else float(self.host_s(1, 1, self._run_each))

    def layers_run(self, passes: Iterable[Pass]) -> Any:
        """Layers that the host launches in a round: those of each pass that has any work."""
        if not self.engine.layer_s:
            return 0
        run: Any = 0
        for one in passes:
            runs = np.asarray(one.work.tokens) > 0
            steps = max((np.shape(c)[0] for c in one.work.decode_reads or () if np.ndim(c) == 2), default=1)
            run = run + self.layers[one.model] * (runs.sum(axis=0) if runs.ndim == 2 else runs * steps)
        return run

    def host_s(self, sequences: Any, seats: Any = None, layers_run: Any = 0) -> Any:
        """Host seconds of a round in which so many sequences take part; the device waits for them.

        ``seats`` of them decode (None: nobody does); ``layers_run``: see there.
        """
        engine, (round_s, seat_s) = self.engine, self._policy_s
        total = engine.step_s + engine.layer_s * layers_run + engine.sequence_s * sequences
        return total if seats is None or not (round_s or seat_s) else total + (round_s + seat_s * seats)


def _whole_ns(seconds: NDArray[np.float64]) -> NDArray[np.int64]:
    ns = seconds * _NS_PER_S
    np.rint(ns, out=ns)
    np.maximum(ns, _LEAST_NS, out=ns)
    whole: NDArray[np.int64] = ns.astype(np.int64)
    return whole
