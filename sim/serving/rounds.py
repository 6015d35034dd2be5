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
        ns = np.rint(seconds * 1e9)
        np.maximum(ns, 1.0, out=ns)
        whole: NDArray[np.int64] = ns.astype(np.int64)
        return whole

    @cached_property
    def _host(self) -> tuple[float, float]:
        """Host seconds of a round, and of each sequence in it (engine profile); the device waits for both."""
        engine = self.engine
        return engine.step_s + engine.layer_s * self.layers, engine.sequence_s

    def host_s(self, sequences: Any) -> Any:
        """Host seconds of a round in which so many sequences take part."""
        step_s, sequence_s = self._host
        return step_s + sequence_s * sequences
