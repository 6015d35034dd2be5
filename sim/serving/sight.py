"""What a router sees: the replicas that may be picked, asked when it asks, or as they were at the last poll.

*Stale* sight: at every multiple of ``stale_ns`` all replicas are polled, after the ends of rounds of that instant and
before its arrivals; a router sees what the last poll saw, so nothing older than ``stale_ns`` and nothing that came
since. A replica that has come up since is seen empty. Who is up, and what a prefix cache holds, is always known. No
poll takes place while nobody has anything to do, as the last one saw the same.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Ordered
from dataclasses import dataclass

import simpy

from sim.request import Request, Sequence
from sim.routers import GroupFacts, ReplicaState
from sim.serving.clock import POLL, Clock, Moment
from sim.serving.luck import GOLDEN, Luck, mix
from sim.serving.replica import Leap, Replica

__all__ = ["Place", "Polls", "Sight", "outstanding"]

DRAWS_PER_TRY = 32


@dataclass(slots=True, eq=False)
class Place:
    """A replica that may be picked; ``number``: of its place in the fleet, which whoever comes after it keeps.

    Until ``quiet_ns`` nobody ends in the leap ``seen``, as long as only ``seen_done`` of its rounds are booked.
    """

    replica: Replica
    number: int
    facts: GroupFacts
    seen: Leap | None = None
    seen_done: int = 0
    quiet_ns: int = 0

    def outstanding(self) -> int:
        """Requests that the replica has; whoever ended at or before the present has left."""
        replica, leap = self.replica, self.replica.leap
        known = leap is self.seen and (leap is None or leap.done == self.seen_done)
        if leap is not None and not (known and replica.env.now < self.quiet_ns):
            self._look(leap)
        return len(replica.admitted) + len(replica.waiting) + len(replica.later) + len(replica.coming)

    def _look(self, leap: Leap) -> None:
        """Book who has ended, and see when the next one will; the end of a leap is an event and needs no look."""
        rounds = leap.stop
        if leap.plan.decode or leap.joins:
            self.replica._book_ends(leap)
            rounds = leap.done + (1 if leap.reading else self.replica.horizon.rounds_to_end())
        self.seen, self.seen_done = leap, leap.done
        self.quiet_ns = leap.ends_after(min(rounds, len(leap.after) - 1))


def outstanding(replica: Replica) -> int:
    """Requests that a replica has, asked once."""
    return Place(replica, replica.index, GroupFacts()).outstanding()


class Polls:
    """What was seen of every replica at the last multiple of ``period_ns``."""

    def __init__(self, env: Clock, period_ns: int, places: Callable[[], Ordered[Place]]) -> None:
        self.env, self.period_ns, self.places = env, period_ns, places
        self.asked = False
        self.seen: dict[int, tuple[int, ReplicaState]] = {}
        self.after: Callable[[], None] = lambda: None

    def touch(self) -> None:
        """A replica has got something to do: the next poll must take place."""
        if not self.asked:
            self.asked = True
            Moment(self.env, self.period_ns - self.env.now % self.period_ns, POLL, self._poll)

    def _poll(self, _: simpy.Event) -> None:
        self.asked, now = False, self.env.now
        found = [(place.replica, place.outstanding()) for place in self.places()]
        self.seen = {one.index: (count, one.state_at(now)) for one, count in found}
        if any(count or state.kv_bytes for count, state in self.seen.values()):
            self.touch()
        self.after()

    def of(self, replica: Replica) -> tuple[int, ReplicaState]:
        """Outstanding requests and state."""
        return self.seen.get(replica.index) or (0, ReplicaState(0, 0, 0, replica.setup.kv.capacity_bytes))


class Sight:
    """A router's view of some places, for one request after another. ``stage`` tells its draws from other choices'."""

    def __init__(self, luck: Luck, polls: Polls | None = None, stage: int = 0) -> None:
        self.luck, self.polls, self.stage = luck, polls, stage
        self.places: Ordered[Place] = ()
        self.sequence: Sequence | None = None

    def of(self, sequence: Sequence, places: Ordered[Place]) -> Sight:
        """The same for another request and these places."""
        self.sequence, self.places = sequence, places
        return self

    @property
    def count(self) -> int:
        """How many may be picked."""
        return len(self.places)

    def outstanding(self, i: int) -> int:
        """Requests that it has, as of the last poll if polled."""
        place = self.places[i]
        return place.outstanding() if self.polls is None else self.polls.of(place.replica)[0]

    def state(self, i: int) -> ReplicaState:
        """Queue, batch and memory, likewise."""
        replica = self.places[i].replica
        return replica.state_at(replica.env.now) if self.polls is None else self.polls.of(replica)[1]

    def cached_prefix(self, i: int) -> int:
        """Prompt tokens that its prefix cache holds now."""
        return self.places[i].replica.cached_prefix(self._request)

    def facts(self, i: int) -> GroupFacts:
        """What is known of its group."""
        return self.places[i].facts

    def score(self, key: int, i: int) -> int:
        """SplitMix64's finaliser on seed, key and number of the place."""
        return mix(mix(self.luck.key ^ key) + self.places[i].number * GOLDEN)

    def draws(self, count: int) -> Ordered[float]:
        """Of this request; each further try has draws of its own."""
        assert self.sequence is not None
        luck = self.luck.of(self._request.id, self.stage)
        start = self.sequence.retries * max(DRAWS_PER_TRY, count)
        drawn: list[float] = luck.uniforms("router", start, count).tolist()
        return drawn

    @property
    def _request(self) -> Request:
        assert self.sequence is not None, "a view is of some request"
        return self.sequence.request
