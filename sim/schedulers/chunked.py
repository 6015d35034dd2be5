"""Chunked prefill: decodes first, the rest of a token budget to prompts, in one round (vLLM V1, Sarathi-Serve)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sim.request import Sequence
from sim.schedulers import Plan, View, check

MOST_WAIT = 1000


@dataclass(frozen=True)
class Chunked:
    """``token_budget`` tokens a round, decodes before prompts (Agrawal et al. 2024, arXiv 2403.02310, algorithm 3).

    ``whole``: prompts are read in one piece, as an encoder must; one that does not fit waits, one longer than the whole
    budget for a round of its own. ``batch_wait``: while others run, prompts wait so many rounds from the plan on that
    could have taken the first of them, and are read together (TensorRT-LLM's ``batch_wait_timeout_iters``).
    """

    name: ClassVar[str] = "chunked"
    mixes: ClassVar[bool] = True  # prompts and decodes share the reading of the weights
    token_budget: int = 2048
    max_sequences: int = 256
    order: str = "fcfs"
    whole: bool = False
    batch_wait: int = 0

    def __post_init__(self) -> None:
        check(self)
        if not isinstance(self.whole, bool):
            raise ValueError(f"scheduler.whole: {self.whole!r:.80} is not true or false")
        if type(self.batch_wait) is not int or not 0 <= self.batch_wait <= MOST_WAIT:
            said = f"{self.batch_wait!r:.80} is not a whole number from 0 to {MOST_WAIT}"
            raise ValueError(f"scheduler.batch_wait: {said}")

    def decode_seats(self, tokens_per_round: int) -> int:
        """As many as the budget holds."""
        if tokens_per_round > self.token_budget:
            raise ValueError(
                f"scheduler.token_budget: {self.token_budget} is less than one sequence's {tokens_per_round} a round"
            )
        return self.token_budget // tokens_per_round

    def plan(self, view: View) -> Plan:
        """Chunks for the prompts under way in order of admission, then for as many new ones as the budget reaches."""
        left = self.token_budget - view.decoding_seats * view.tokens_per_round
        plan = Plan(decode=view.decoding_seats > 0)
        for sequence in view.prefilling:
            if left <= 0:
                return plan
            left -= self._take(plan, sequence, left)
        if left <= 0:
            return plan
        for sequence in view.admissible(self.max_sequences):
            if self.whole and sequence.prefill_tokens - sequence.prefilled > left and (plan.chunks or plan.decode):
                break
            plan.admit += 1
            left -= self._take(plan, sequence, left)
            if left <= 0:
                break
        return plan

    def admits(self, view: View) -> bool:
        """Whether :meth:`plan` would admit anybody, without making it: every arrival asks."""
        left, busy = self.token_budget - view.decoding_seats * view.tokens_per_round, view.decoding_seats > 0
        for sequence in view.prefilling:
            left, busy = left - (sequence.prefill_tokens - sequence.prefilled), True
        if left <= 0:
            return False
        first = next(view.admissible(self.max_sequences), None)
        return first is not None and not (self.whole and busy and first.prefill_tokens - first.prefilled > left)

    def _take(self, plan: Plan, sequence: Sequence, left: int) -> int:
        rest = sequence.prefill_tokens - sequence.prefilled
        new = rest if self.whole else min(rest, left)
        plan.chunks.append((sequence, new))
        return new
