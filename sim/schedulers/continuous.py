"""Continuous batching, prefill first: whole prompts run ahead of decodes, which wait (Orca; vLLM V0)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sim.request import Sequence
from sim.schedulers import Plan, View, check


@dataclass(frozen=True)
class Continuous:
    """A round is either prompts of up to ``token_budget`` tokens (a longer one alone) or one decode round."""

    name: ClassVar[str] = "continuous"
    token_budget: int = 8192
    max_sequences: int = 256
    order: str = "fcfs"

    def __post_init__(self) -> None:
        check(self)

    def decode_seats(self, tokens_per_round: int) -> int:
        """Everybody who runs may decode."""
        return 1 << 20

    def plan(self, view: View) -> Plan:
        """Prompts if any can be admitted, else decodes."""
        plan, left = Plan(decode=False), self.token_budget
        for sequence in view.prefilling:  # whose cached part has come
            left -= _take(plan, sequence)
        for sequence in view.admissible(self.max_sequences):
            if left < self.token_budget and sequence.prefill_tokens - sequence.prefilled > left:
                break
            plan.admit += 1
            left -= _take(plan, sequence)
        plan.decode = not plan.chunks and view.decoding_seats > 0
        return plan


def _take(plan: Plan, sequence: Sequence) -> int:
    """What is left of a prompt, in one piece."""
    rest = sequence.prefill_tokens - sequence.prefilled
    plan.chunks.append((sequence, rest))
    return rest
