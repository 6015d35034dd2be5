"""How long a call takes: the best of many, on the processor's own clock where one thread works."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

FEWEST = 3


@dataclass(frozen=True)
class Stopwatch:
    """Times calls. ``wall``: by the wall clock (several threads work), else by CPU time, which other programs' turns
    on the processor do not lengthen. ``budget_s``: how long to go on trying for a better time.
    """

    wall: bool = False
    budget_s: float = 0.01

    def now(self) -> float:
        """Seconds of the clock in use."""
        return time.perf_counter() if self.wall else time.process_time()

    def best(self, call: Callable[[], object], prepare: Callable[[], object] | None = None) -> float:
        """Seconds of the shortest of several calls, at least three, after one to warm up; ``prepare`` is not timed."""
        shortest, spent, calls = float("inf"), 0.0, -1
        while calls < FEWEST or spent < self.budget_s:
            if prepare is not None:
                prepare()
            start = self.now()
            call()
            took = self.now() - start
            calls += 1
            if calls:
                shortest, spent = min(shortest, took), spent + took
        return shortest
