"""Conversations: every turn but the first is asked when the answer before it has been read and thought about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise

from sim.request import Request

__all__ = ["Conversations"]


@dataclass(frozen=True)
class Conversations:
    """The turns of a session follow one another in ``requests``, all stamped with the arrival of the first of them.

    Each later turn arrives ``think_s`` after the end of the one before it, whatever became of that; ``exponential``
    draws each think time from an exponential distribution with that mean.
    """

    requests: Iterator[Request]
    think_s: float = 0.0
    exponential: bool = False

    def firsts(self, next_turn: dict[int, Request]) -> Iterator[Request]:
        """The first turn of each session; before it is given, ``next_turn`` learns what follows which request."""
        for _, session in groupby(self.requests, key=lambda request: request.session):
            turns = list(session)
            next_turn.update({turn.id: later for turn, later in pairwise(turns)})
            yield turns[0]
