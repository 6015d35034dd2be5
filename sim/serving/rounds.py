"""What a decode round lasts: the passes of the policy through the costs of its models, host time added."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.analytic.cost import PassCost
from sim.analytic.hardware import Engine
from sim.policies import Policy, Prompts, Windows


@dataclass(frozen=True)
class Rounds:
    """Seconds of rounds for one policy on one replica: an elementwise pure function of integers."""

    policy: Policy
    costs: tuple[PassCost, ...]
    engine: Engine
    windows: tuple[Windows, ...]
    layers: int

    def seconds(
        self, seats: int, totals: NDArray[np.int64] | None, prompts: Prompts | None, sequences: int
    ) -> NDArray[np.float64]:
        """Seconds of each round, shape [rounds]; passes are added in the order the policy names them.

        ``sequences`` take part in the round, decoding or reading their prompt.
        """
        total: float | NDArray[np.float64] = self.host_s(sequences)
        for one in self.policy.passes(seats, totals, prompts, self.windows):
            seconds = self.costs[one.model].seconds(one.work)
            if seconds.ndim == 1:
                total = total + seconds
            else:
                for step in seconds:
                    total = total + step
        assert isinstance(total, np.ndarray)
        return total

    def ns(
        self, seats: int, totals: NDArray[np.int64] | None, prompts: Prompts | None, sequences: int
    ) -> NDArray[np.int64]:
        """The same in whole nanoseconds, at least one."""
        seconds = self.seconds(seats, totals, prompts, sequences)
        return np.maximum(np.rint(seconds * 1e9), 1.0).astype(np.int64)

    def host_s(self, sequences: int) -> float:
        """Host seconds of a round, which the device waits for (engine profile)."""
        engine = self.engine
        return engine.step_s + engine.layer_s * self.layers + engine.sequence_s * sequences
