"""The clock: SimPy's environment on whole nanoseconds, callbacks at an instant, and the order within one.

Order at one instant: ends of rounds, faults and repairs, caches that have moved, polls of the gateway, arrivals, the
gateway's line, then plans, then the moves that plans asked for, then the end of a run whose last
request has ended. The priorities are SimPy's, lower first.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappush
from operator import attrgetter
from typing import Any

import simpy

ROUND, FAULT, LANDED, POLL, ARRIVAL, DISPATCH, LINE, PLAN, MOVE, CLOSE = range(10)


class Clock(simpy.Environment):
    """An environment whose time is a whole number of nanoseconds since the start of the run."""

    now = property(attrgetter("_now"), doc="Nanoseconds.")  # no Python frame for each look

    @property
    def scheduled(self) -> int:
        """How many events have been scheduled so far; asking counts as one."""
        return next(self._eid)


class Moment(simpy.Event):
    """A callback after ``delay_ns``, in the order of ``priority`` within that nanosecond.

    It enters the queue as ``Environment.schedule`` would put it there, without that call.
    """

    def __init__(self, env: Clock, delay_ns: int, priority: int, call: Callable[[simpy.Event], None]) -> None:
        self.env, self.callbacks, self._value, self._ok = env, [call], None, True
        queue: list[Any] = env._queue
        heappush(queue, (env._now + delay_ns, priority, next(env._eid), self))
