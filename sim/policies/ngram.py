"""N-gram drafts, or prompt lookup: where the last tokens occurred before, what followed them is the draft. No model.

Saxena 2023 (github.com/apoorvumang/prompt-lookup-decoding); vLLM's n-gram proposer; LLMA, Yang et al. 2023 (arXiv
2304.04487). A sequence finds a match with probability m, which may rise as its own output grows; then one target pass
verifies gamma copied tokens beside the last one. Without a match the sequence takes a plain step in the same pass.
Copies of a round share one source, so that what has held goes on holding: the default acceptance is a Beta mixture.
Looking up takes the host's time, not the device's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.policies import Draws, Future, IntArray, Pass, Prompts, Totals, Windows, one_pass
from sim.policies.acceptance import SAME, kept_under, survival_vector
from sim.policies.checks import number, probability, whole

COPIED = {"kind": "beta", "mean": 0.543, "concentration": 3.0}
"""Beta mixture through positions 1 and 2 of a vLLM log (issue 19254, Qwen3-32B): 0.543, 0.357, then 0.259 for 0.264."""


class Rise(NamedTuple):
    """Match probability by own output: ``start`` at none, ``end`` from ``tokens`` on, a straight line between."""

    start: float
    end: float
    tokens: int

    def at(self, own: int) -> float:
        """Of a round that starts after ``own`` tokens of output."""
        return self.start + (self.end - self.start) * min(1.0, own / self.tokens)


@dataclass(frozen=True)
class Ngram:
    """``gamma``: copied tokens a match; ``match``: P(a round finds one), a number or ``{start, end, tokens}`` for one
    that rises over so many tokens of own output; ``acceptance``: of the copies, any kind of acceptance.py that is
    the same in every round; ``lookup_us``: host time of a look-up, for each decoding sequence.
    """

    name: ClassVar[str] = "ngram"
    drafts: ClassVar[tuple[str, ...]] = ()
    linear: ClassVar[bool] = True
    gamma: int = 10
    match: Any = 0.37  # with gamma 10: the 1.75 tokens a step of Spec-Bench (Vicuna-7B), by fit
    acceptance: Any = field(default_factory=lambda: dict(COPIED))
    lookup_us: float = 0.0

    def __post_init__(self) -> None:
        whole(self.gamma, "policy.gamma", 1, 64)
        number(self.lookup_us, "policy.lookup_us", 0, 1e6)
        _ = self.rise, self.survival

    @cached_property
    def rise(self) -> Rise:
        """The match probability by own output; constant where ``match`` is a number."""
        said = self.match
        if not isinstance(said, Mapping):
            share = probability(said, "policy.match")
            return Rise(share, share, 1)
        if set(said) != {"start", "end", "tokens"}:
            got = sorted(map(str, said))
            raise ValueError(f"policy.match: takes a probability, or start, end and tokens, got {got}")
        start, end = (probability(said[key], f"policy.match.{key}") for key in ("start", "end"))
        return Rise(start, end, whole(said["tokens"], "policy.match.tokens", 1, 1_000_000))

    @cached_property
    def survival(self) -> NDArray[np.float64]:
        """P(at least k copies are kept | a match), k = 1..gamma; shape [gamma], not increasing."""
        return survival_vector(self.acceptance, self.gamma, kinds=SAME)

    @property
    def host_s(self) -> tuple[float, float]:
        """Seconds that the host takes in a round, and for each sequence: a look-up, found or not."""
        return 0.0, self.lookup_us * 1e-6

    @property
    def tokens_per_round(self) -> int:
        """At most: gamma copies and the target's own token."""
        return self.gamma + 1

    # -- closed forms

    @property
    def expected_tokens(self) -> float:
        """Tokens a round, E = 1 + m * sum of the survival vector; m is what a long output settles at."""
        return 1.0 + self.rise.end * float(self.survival.sum())

    @property
    def oracle_tokens(self) -> float:
        """Bound on E for any gamma: every copy goes on for as long as the target agrees. inf where that has no mean.

        1 + m a/(1-a) for acceptance a; 1 + m a/(b-1) for a Beta(a, b) mixture, b > 1; other kinds as far as they go.
        """
        return 1.0 + self.rise.end * _endless(self.acceptance, self.survival) if self.rise.end else 1.0

    @property
    def flops_factor(self) -> float:
        """Rows through the target per token, an autoregressive step's being 1: (1 + m gamma) / E."""
        return (1.0 + self.rise.end * self.gamma) / self.expected_tokens

    def wall_time_factor(self, verify: float = 1.0, lookup: float = 0.0) -> float:
        """Speedup of one sequence alone: E / (1 - m + m * verify + lookup).

        ``verify``: seconds of a pass over gamma + 1 tokens, ``lookup``: of a look-up, in those of a one-token pass.
        """
        return self.expected_tokens / (1.0 - self.rise.end + self.rise.end * verify + lookup)

    def expected_rounds(self, output: int) -> float:
        """Decode rounds of an answer of ``output`` tokens, of which the prefill emits the first; exact with rising m.

        R(n) = 1 + sum_k P(k kept | n tokens are out) R(n + 1 + k), and R = 0 from ``output`` on.
        """
        ends = -np.diff(self.survival, prepend=1.0, append=0.0)  # P(keep exactly k | a match), k = 0..gamma
        left = np.zeros(output + self.gamma + 2)
        for own in range(output - 1, 0, -1):
            m, after = self.rise.at(own), left[own + 1 : own + self.gamma + 2]
            left[own] = 1.0 + (1.0 - m) * after[0] + m * float(ends @ after)
        return float(left[1])

    # -- what the engine asks

    def future(self, draws: Draws, start: int, remaining: int) -> Future:
        """A draw for the match and one for the copies, each round; the last gain is clipped to what is left."""
        if self.rise.start != self.rise.end:
            return one_pass.walked(lambda count: self._risen(draws, count), start, remaining, self.expected_tokens)
        kept, matched = self._rounds(draws, start, remaining)
        return one_pass.clipped(kept, matched * self.gamma, remaining)

    def _rounds(self, draws: Draws, start: int, remaining: int) -> tuple[IntArray, IntArray]:
        """(kept, 1 where matched) of rounds from ``start`` on, enough of them for ``remaining`` tokens."""
        if start == 0:
            matched, row, rounds = draws.from_tile("match", self._matched)
            kept = draws.from_tile("acceptance", self._copied)[0][row] * matched[row]
            if rounds + kept.sum() >= remaining:
                return kept, matched[row]
        guess = min(max(8, int(1.3 * remaining / self.expected_tokens)), remaining)
        while True:
            hits = self._matched(draws.uniforms("match", start, guess))
            kept = self._copied(draws.uniforms("acceptance", start, guess)) * hits
            if guess + kept.sum() >= remaining:
                return kept, hits
            guess = min(2 * guess, remaining)

    def _matched(self, u: NDArray[np.float64]) -> IntArray:
        return (u < self.rise.end).astype(np.int64)

    def _copied(self, u: NDArray[np.float64]) -> IntArray:
        """What a match would keep."""
        return kept_under(self.survival, u)

    def _risen(self, draws: Draws, count: int) -> tuple[IntArray, IntArray]:
        """(kept, drafted) of the sequence's first ``count`` rounds, where the past matters."""
        copies = self._copied(draws.uniforms("acceptance", 0, count))
        matched = np.array(self._hits(draws.uniforms("match", 0, count).tolist(), copies.tolist()), dtype=np.int64)
        return copies * matched, matched * self.gamma

    def _hits(self, coins: list[float], copies: list[int]) -> list[int]:
        """1 where a round finds a match: own output, one token from the prefill at first, says how likely that is."""
        first, end, tokens = self.rise
        slope, own, hits = (end - first) / tokens, 1, []
        for coin, copy in zip(coins, copies, strict=True):
            hit = coin < (first + slope * own if own < tokens else end)
            hits.append(1 if hit else 0)
            own += copy + 1 if hit else 1
        return hits

    def channels(self, windows: tuple[Windows, ...]) -> int:
        """Drafted tokens, then reads and pairs by attention kind."""
        return one_pass.channels(windows)

    def rows(self, future: Future, context: int, windows: tuple[Windows, ...]) -> tuple[IntArray, ...]:
        """Of whatever was drafted in each round, nothing or less than gamma included."""
        return one_pass.rows(future, context, windows)

    def passes(
        self, seats: Any, totals: Totals | None, prompts: Prompts | None, windows: tuple[Windows, ...]
    ) -> Iterable[Pass]:
        """One target pass: a token of each sequence and the copies of those that matched, all of them to the head."""
        return one_pass.passes(seats, totals, prompts, windows)


def _endless(acceptance: Any, survival: NDArray[np.float64]) -> float:
    """Copies kept of an endless draft: the sum of the survival vector over all k."""
    said = acceptance if isinstance(acceptance, Mapping) else {"alpha": acceptance}
    kind = said.get("kind", "iid")
    if kind == "survival":
        return float(sum(said["vector"]))
    if kind in ("decaying", "length"):
        return float(survival.sum())
    if kind == "iid":
        won, lost = float(said["alpha"]), 1.0 - float(said["alpha"])
    else:
        won = said["mean"] * said["concentration"]
        lost = said["concentration"] - won - 1.0
    if won == 0.0:
        return 0.0
    return won / lost if lost > 0.0 else float("inf")
