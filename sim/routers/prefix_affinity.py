"""Prefix affinity: where most of the prompt is cached, unless too much is to be done there.

The estimate of Mooncake's conductor (Qin et al. 2024, arXiv 2407.00079, algorithm 1), time to first token = time in the
queue + time to read what is not cached, counted in prompt tokens: an outstanding request weighs ``request_tokens``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sim.request import Request
from sim.routers import View, at_least, first_of_least


@dataclass(frozen=True)
class PrefixAffinity:
    """``request_tokens``: how many uncached prompt tokens one outstanding request is worth. 0: the longest prefix
    always wins, however long the line.
    """

    request_tokens: float = 500.0
    name: ClassVar[str] = "prefix_affinity"
    pulls: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the option. Raises ValueError."""
        at_least(self.name, "request_tokens", self.request_tokens, 0)

    def pick(self, request: Request, view: View) -> int:
        """Least of request_tokens * outstanding - cached tokens; the prompt is the same everywhere."""
        keys = [self.request_tokens * view.outstanding(i) - view.cached_prefix(i) for i in range(view.count)]
        return first_of_least(keys, request, view.count)
