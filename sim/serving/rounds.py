"""What a decode round lasts: the passes of the policy through the costs of its models, host time added."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.analytic.cost import PassCost
from sim.analytic.hardware import Engine
from sim.policies import Policy, Prompts, Totals, Windows
from sim.serving.linear import LinearRounds

_NS_PER_S, _LEAST_NS = np.array(1e9), np.array(1.0)  # arrays, because Python numbers cost a conversion each time


@dataclass(frozen=True)
class Rounds:
    """Seconds of rounds for one policy on one replica: an elementwise pure function of integers."""

    policy: Policy
    costs: tuple[PassCost, ...]
    engine: Engine
    windows: tuple[Windows, ...]
    layers: int

    def seconds(self, seats: Any, totals: Totals | None, prompts: Prompts | None, sequences: Any) -> Any:
        """Seconds of each round, shape [rounds] (a number where all of the work is numbers), passes added in order.

        ``seats`` decode and ``sequences`` take part, prompts included: numbers, or arrays of shape [rounds].
        """
        total: Any = self.host_s(sequences)
        for one in self.policy.passes(seats, totals, prompts, self.windows):
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
        step_s, sequence_s = self._host
        return _whole_ns(linear.seconds(totals, step_s + sequence_s * totals[0] if sequence_s else step_s))

    @cached_property
    def _linear(self) -> LinearRounds | None:
        return LinearRounds.of(self.policy, self.costs, self.windows)

    @cached_property
    def _host(self) -> tuple[float, float]:
        """Host seconds of a round, and of each sequence in it (engine profile); the device waits for both."""
        engine = self.engine
        return engine.step_s + engine.layer_s * self.layers, engine.sequence_s

    def host_s(self, sequences: Any) -> Any:
        """Host seconds of a round in which so many sequences take part."""
        step_s, sequence_s = self._host
        return step_s + sequence_s * sequences


def _whole_ns(seconds: NDArray[np.float64]) -> NDArray[np.int64]:
    ns = seconds * _NS_PER_S
    np.rint(ns, out=ns)
    np.maximum(ns, _LEAST_NS, out=ns)
    whole: NDArray[np.int64] = ns.astype(np.int64)
    return whole
