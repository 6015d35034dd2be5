"""Input copy, or aggressive decoding: where the output repeats the input, the rest of the input is the draft. No model.

Sun, Ge, Wei and Wang 2021 (arXiv 2106.04970) for grammatical error correction; input-guided aggressive decoding, Ge et
al. 2022 (arXiv 2205.10350). A sequence that is aligned with its input drafts what follows there, up to gamma tokens and
the input's end, and goes on with the next stretch when all of it is kept. At the first difference the target's token
stands and the alignment is lost; a sequence without one takes plain steps, and in each finds the end of its output
again in the input with probability ``realign``. Lossless.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sim.policies import Draws, Future, IntArray, Pass, Prompts, Totals, Windows, one_pass
from sim.policies.acceptance import SAME, survival_vector
from sim.policies.checks import number, probability, whole

EDITS = {"kind": "beta", "mean": 0.9, "concentration": 4.0}
"""One token in ten is changed, edits come in clusters: an assumption, no measurement."""
ENDLESS = 1 << 40


@dataclass(frozen=True)
class InputCopy:
    """``gamma``: the longest stretch verified at once; ``realign``: P(a round without alignment finds it again);
    ``acceptance``: of copied tokens, any kind that is the same in every round; ``input``: tokens of the text to copy,
    ``prompt`` for all of the prompt, or ``endless``; ``lookup_us``: host time of the alignment, for each sequence.
    """

    name: ClassVar[str] = "input_copy"
    drafts: ClassVar[tuple[str, ...]] = ()
    linear: ClassVar[bool] = True
    gamma: int = 32
    realign: float = 0.5
    acceptance: Any = field(default_factory=lambda: dict(EDITS))
    input: Any = "prompt"
    lookup_us: float = 0.0

    def __post_init__(self) -> None:
        whole(self.gamma, "policy.gamma", 1, 256)
        probability(self.realign, "policy.realign")
        number(self.lookup_us, "policy.lookup_us", 0, 1e6)
        if isinstance(self.input, str):
            if self.input not in ("prompt", "endless"):
                raise ValueError(f"policy.input: {self.input[:60]!r} is not prompt, endless or a number of tokens")
        else:
            whole(self.input, "policy.input", 0, 1_000_000)
        _ = self.survival

    @cached_property
    def survival(self) -> NDArray[np.float64]:
        """P(at least k copies are kept | aligned), k = 1..gamma; shape [gamma], not increasing."""
        return survival_vector(self.acceptance, self.gamma, kinds=SAME)

    @property
    def tokens_per_round(self) -> int:
        """At most: gamma copies and the target's own token."""
        return self.gamma + 1

    @property
    def host_s(self) -> tuple[float, float]:
        """Seconds that the host takes in a round, and for each sequence."""
        return 0.0, self.lookup_us * 1e-6

    # -- closed forms

    @property
    def aligned_share(self) -> float:
        """Share of rounds that draft, of an endless input: r / (1 - s_gamma + r s_gamma) for realign r."""
        whole_kept = float(self.survival[-1])
        rest = 1.0 - whole_kept + self.realign * whole_kept
        return self.realign / rest if rest else 1.0

    @property
    def expected_tokens(self) -> float:
        """Tokens a round, E = 1 + aligned share * sum of the survival vector; 1 behind the end of an input with one."""
        return self._tokens if self.input == "endless" else 1.0

    def expected_rounds(self, output: int, source: int) -> float:
        """Decode rounds of an answer of ``output`` tokens to a text of ``source``; the prefill emits the first token.

        R_aligned(n) = 1 + sum_k P(k kept of d) R(n + 1 + k), d = min(gamma, source - n) drafted, aligned after k = d
        and lost after k < d; R_lost(n) = r R_aligned(n) + (1 - r)(1 + R_lost(n + 1)). An answer begins aligned.
        """
        gone = output + self.gamma + 2
        aligned, lost = np.zeros(gone), np.zeros(gone)
        for own in range(output - 1, 0, -1):
            drafted = max(0, min(self.gamma, source - own))
            alive = np.concatenate([[1.0], self.survival[:drafted]])
            ends = alive - np.append(alive[1:], 0.0)  # P(keep exactly k), k = 0..drafted
            after = lost[own + 1 : own + 2 + drafted].copy()
            after[-1] = aligned[own + 1 + drafted]
            aligned[own] = 1.0 + float(ends @ after)
            lost[own] = self.realign * aligned[own] + (1.0 - self.realign) * (1.0 + lost[own + 1])
        return float(aligned[1])

    def settled(self, context: int) -> InputCopy:
        """The policy amid its copying, whatever the context: what a speedup at one context can mean."""
        return self if self.input == "endless" else replace(self, input="endless")

    # -- what the engine asks

    def future(self, draws: Draws, start: int, remaining: int) -> Future:
        """A draw for the alignment and one for the copies, each round, walked from the sequence's first round."""
        source = draws.prompt if self.input == "prompt" else ENDLESS if self.input == "endless" else self.input
        return one_pass.walked(lambda count: self._first(draws, source, count), start, remaining, self._tokens)

    @cached_property
    def _tokens(self) -> float:
        """Tokens a round while there is something to copy: a guess of how many rounds to draw."""
        return 1.0 + self.aligned_share * float(self.survival.sum())

    def _first(self, draws: Draws, source: int, count: int) -> tuple[IntArray, IntArray]:
        """(kept, drafted) of the sequence's first ``count`` rounds."""
        found = draws.uniforms("match", 0, count) < self.realign
        copies = np.searchsorted(-self.survival, -draws.uniforms("acceptance", 0, count), side="left")
        return self._along(source, found.tolist(), copies.tolist())

    def _along(self, source: int, found: Sequence[bool], copies: Sequence[int]) -> tuple[IntArray, IntArray]:
        """Round by round: own output, one token from the prefill at first, says how much of the input is left."""
        own, aligned = 1, True
        kept, drafted = np.zeros(len(copies), np.int64), np.zeros(len(copies), np.int64)
        for i, (finds, copy) in enumerate(zip(found, copies, strict=True)):
            if aligned or finds:
                drafted[i] = max(0, min(self.gamma, source - own))
                kept[i] = min(copy, drafted[i])
                aligned = kept[i] == drafted[i]
            own += int(kept[i]) + 1
        return kept, drafted

    def channels(self, windows: tuple[Windows, ...]) -> int:
        """Drafted tokens, then reads and pairs by attention kind."""
        return one_pass.channels(windows)

    def rows(self, future: Future, context: int, windows: tuple[Windows, ...]) -> tuple[IntArray, ...]:
        """Of whatever was copied in each round, nothing included."""
        return one_pass.rows(future, context, windows)

    def passes(
        self, seats: Any, totals: Totals | None, prompts: Prompts | None, windows: tuple[Windows, ...]
    ) -> Iterable[Pass]:
        """One target pass: a token of each sequence and its copies, all of them to the head."""
        return one_pass.passes(seats, totals, prompts, windows)
