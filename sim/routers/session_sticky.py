"""Session sticky: all turns of a conversation go to one replica, chosen by rendezvous hashing.

Thaler and Ravishankar 1998 (IEEE/ACM Trans. Networking 6(1)): of all replicas that are up, the one with the highest
random number for this session. One that goes moves only its own sessions; one that comes takes its share of all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sim.request import Request
from sim.routers import View, named


@dataclass(frozen=True)
class SessionSticky:
    """``otherwise``: the router of requests that belong to no session."""

    otherwise: str = "least_outstanding"
    name: ClassVar[str] = "session_sticky"
    pulls: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the option. Raises ValueError."""
        if named(self.otherwise, "router.otherwise").pulls:
            raise ValueError(f"router.otherwise: {self.otherwise!r}: {self.name} holds nobody back")

    def pick(self, request: Request, view: View) -> int | None:
        """The highest score of the session."""
        if request.session < 0:
            return named(self.otherwise, "router.otherwise").pick(request, view)
        return max(range(view.count), key=lambda i: view.score(request.session, i))
