"""What a trace says of a request, and how far its sequences have come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Request(NamedTuple):
    """One row of a trace. ``samples`` sequences share the prompt; each emits ``output`` tokens.

    ``blocks``: ids of its content, one for every so many tokens; equal ids mean equal tokens up to the end of that
    block (sim/serving/prefix.py). None: nothing is known of it.
    """

    id: int
    arrival_ns: int
    prompt: int
    output: int
    samples: int = 1
    priority: int = 0
    session: int = -1
    blocks: tuple[int, ...] | None = None
    tenant: int = -1


@dataclass(slots=True, eq=False)
class Member:
    """One sample of a request: tokens emitted so far, decode rounds of its own done so far."""

    sample: int
    emitted: int = 0
    round: int = 0


@dataclass(slots=True, eq=False)
class Sequence:
    """A request in service: one prompt, one or several samples that live and are preempted together.

    ``members`` holds the samples that are still running. ``prefill_tokens`` is what has to be read before (more)
    tokens come out: the prompt at first, the prompt and all emitted tokens after a preemption.
    """

    request: Request
    members: list[Member]
    prefill_tokens: int
    prefilled: int = 0
    admitted_ns: int = -1
    first_token_ns: int = -1
    last_emit_ns: int = -1
    preemptions: int = 0
    retries: int = 0
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    held_bytes: int = 0

    @classmethod
    def of(cls, request: Request) -> Sequence:
        """The sequence of a request that has just arrived."""
        return cls(request, [Member(i) for i in range(request.samples)], request.prompt)

    @property
    def seats(self) -> int:
        """How many rows of a decode batch the running samples take."""
        return len(self.members)

    def restart(self) -> None:
        """Forget the KV cache: everything read or emitted so far has to be prefilled again."""
        self._forget()
        self.preemptions += 1

    def move_on(self) -> None:
        """The replica is gone, and the KV cache with it."""
        self._forget()
        self.retries += 1

    def _forget(self) -> None:
        self.prefilled = 0
        self.prefill_tokens = self.request.prompt + sum(m.emitted for m in self.members)
