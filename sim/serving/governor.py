"""The clock of the compute units: set once per window, from the joules of the window before.

A power-capped card slows down when it works without pause. A replica adds up the whole nanojoules of its rounds; when a
round ends a window or more after the clock was last set, the next round finds it set anew, so that the same work would
draw what the cap allows. Whole MHz in the steps of the hardware, whole nanojoules: leaping stays exact.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.analytic.hardware import Clock
from sim.serving.rounds import Rounds

__all__ = ["Governor", "Power", "whole_nJ"]


@dataclass(frozen=True)
class Power:
    """What governors of one kind of replica know: ``rounds`` at the rated clock, and the watts of its devices.

    ``idle_W``: of one device. All devices of a replica share one clock.
    """

    rounds: Rounds
    clock: Clock
    idle_W: float
    devices: int = 1
    _known: dict[int, Rounds] = field(default_factory=dict, compare=False, repr=False)

    def at(self, MHz: int) -> Rounds:
        """What rounds last at a clock; costs are made when a clock is first met."""
        if MHz not in self._known:
            self._known[MHz] = self.rounds if MHz == self.clock.rated_MHz else self.rounds.at_clock(MHz)
        return self._known[MHz]

    def round_nJ(self, MHz: int, joules: Any, ns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Whole nanojoules of rounds beyond idle power: FLOPs, bytes, and running for ``ns``; shape [rounds]."""
        running_W = self.clock.busy_W_at(MHz) * self.devices
        whole: NDArray[np.int64] = np.rint(joules * 1e9 + ns * running_W).astype(np.int64)
        return whole

    def next_MHz(self, MHz: int, spent_nJ: int, elapsed_ns: int) -> int:
        """The clock after a window in which ``spent_nJ`` were drawn beyond idle power.

        Power beyond idle goes about with the square of the clock (between 1, all FLOPs, and 3, all voltage), so the
        clock takes the root of what the cap allows over what was drawn; rounded down to a step.
        """
        clock = self.clock
        if spent_nJ <= 0:
            return clock.top_MHz
        drawn_W = spent_nJ / (elapsed_ns * self.devices)
        wanted = MHz * sqrt((clock.cap_W - self.idle_W) / drawn_W)
        wanted = min(max(wanted, clock.base_MHz), clock.top_MHz)
        return clock.base_MHz + int((wanted - clock.base_MHz) // clock.step_MHz) * clock.step_MHz


class Governor:
    """The clock of one replica and what it has drawn since the clock was set."""

    def __init__(self, power: Power) -> None:
        """Cold: the rated clock, nothing drawn."""
        self.power, self.MHz, self.since_ns, self.spent_nJ = power, power.clock.rated_MHz, 0, 0

    @property
    def rounds(self) -> Rounds:
        """What rounds last at the present clock."""
        return self.power.at(self.MHz)

    @property
    def due_ns(self) -> int:
        """The first instant at which a round's end sets the clock anew."""
        return self.since_ns + self.power.clock.window_ns

    def tick(self, now_ns: int) -> None:
        """Before a round begins: set the clock if it is due."""
        if now_ns >= self.due_ns:
            self.MHz = self.power.next_MHz(self.MHz, self.spent_nJ, now_ns - self.since_ns)
            self.since_ns, self.spent_nJ = now_ns, 0

    def spend(self, joules: Any, ns: NDArray[np.int64]) -> None:
        """Rounds have run."""
        self.spent_nJ += int(self.power.round_nJ(self.MHz, joules, ns).sum())


def whole_nJ(joules: Any) -> int:
    """Joules of rounds, each as whole nanojoules, summed."""
    return int(np.rint(np.asarray(joules) * 1e9).sum())
