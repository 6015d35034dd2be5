"""Static batches: nobody joins until everybody has left. The baseline that continuous batching is measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sim.schedulers import Plan, View, check


@dataclass(frozen=True)
class Static:
    """An idle replica takes up to ``max_sequences`` waiting requests, reads their prompts at once, decodes to the end.

    Places that empty early stay empty; no padding tokens are computed.
    """

    name: ClassVar[str] = "static"
    max_sequences: int = 32
    order: str = "fcfs"

    def __post_init__(self) -> None:
        check(self)

    def decode_seats(self, tokens_per_round: int) -> int:
        """The whole batch decodes."""
        return 1 << 20

    def plan(self, view: View) -> Plan:
        """A new batch when the replica is empty, else decodes."""
        if view.running_seats:
            come = [(s, s.prefill_tokens - s.prefilled) for s in view.prefilling]  # their cached part
            return Plan(chunks=come, decode=not come and view.decoding_seats > 0)
        batch = list(view.admissible(self.max_sequences))
        return Plan(len(batch), [(s, s.prefill_tokens - s.prefilled) for s in batch], decode=False)
