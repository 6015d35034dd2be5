"""BiLD, the Big Little Decoder: a small model writes until it is unsure, a large one looks over what it wrote. Lossy.

Kim et al. 2023 (arXiv 2302.07863). *Fallback*: the small model's token is taken while its likeliest probability is at
least a threshold; below it, the large model takes over, in one pass over everything written since its last one, and
writes that token itself. *Rollback*: where its own distribution is further than a second threshold from a token of the
small model, the text is cut there and the large model's token stands. What passes both is kept though the large model
might have written something else: faster than speculative sampling, and not its distribution.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sim.policies import Draws, Future, IntArray, Model, Pass, Prompts, Totals, Windows, one_pass
from sim.policies.acceptance import SAME, kept_under, survival_vector
from sim.policies.checks import whole
from sim.policies.drafting import model_of
from sim.policies.ragged import Ragged
from sim.quality import Quality

LOSS = Quality(
    None, "output quality; it follows both thresholds", "arXiv 2302.07863 states up to 2.12x with minimal degradation"
)


@dataclass(frozen=True)
class Bild:
    """``draft``: the small model (sim/policies/drafting.py); ``gamma``: tokens it writes at most before the large one
    looks; ``confidence``: P(it writes at least k tokens), any kind that is the same in every round (a number: it goes
    on with this probability after each token); ``acceptance``: P(at least k are not rolled back | so many written).
    """

    name: ClassVar[str] = "bild"
    quality: ClassVar[Quality] = LOSS
    linear: ClassVar[bool] = True
    draft: Any = "auto"
    gamma: int = 10
    confidence: Any = 0.8
    acceptance: Any = 0.95

    def __post_init__(self) -> None:
        _ = self.drafts
        whole(self.gamma, "policy.gamma", 1, 64)
        _ = self.written, self.survival

    @cached_property
    def written(self) -> NDArray[np.float64]:
        """P(the small model writes at least k tokens), k = 1..gamma; shape [gamma], not increasing."""
        return survival_vector(self.confidence, self.gamma, "policy.confidence", SAME)

    @cached_property
    def survival(self) -> NDArray[np.float64]:
        """P(at least k tokens stand | as many or more were written), k = 1..gamma; shape [gamma], not increasing."""
        return survival_vector(self.acceptance, self.gamma, kinds=SAME)

    @cached_property
    def ragged(self) -> Ragged:
        """The small model also runs the pass that it does not trust, unless gamma ends the round before."""
        return Ragged(self.gamma, spare=True)

    @property
    def tokens_per_round(self) -> int:
        """At most: gamma tokens of the small model and one of the large."""
        return self.gamma + 1

    @property
    def drafts(self) -> tuple[str | Model, ...]:
        """One small model."""
        return (model_of(self.draft),)

    # -- closed forms

    @property
    def expected_tokens(self) -> float:
        """Tokens a round, E = 1 + sum_k P(at least k written) P(at least k stand | so many written)."""
        return 1.0 + float(self.written @ self.survival)

    @property
    def expected_draft_passes(self) -> float:
        """Passes of the small model a round: one more than it writes, gamma at most; 1 + sum over k < gamma of P."""
        return 1.0 + float(self.written[:-1].sum())

    def wall_time_factor(self, c: float, verify: float = 1.0) -> float:
        """Speedup of one sequence alone: E / (c * draft passes + verify), costs in autoregressive steps."""
        return self.expected_tokens / (c * self.expected_draft_passes + verify)

    # -- what the engine asks

    def future(self, draws: Draws, start: int, remaining: int) -> Future:
        """A draw for how much is written and one for how much of it stands; the last gain is clipped."""
        if start == 0:
            written, row, rounds = draws.from_tile("draft_length", self._written)
            kept = np.minimum(draws.from_tile("acceptance", self._stands)[0][row], written[row])
            if rounds + int(kept.sum()) >= remaining:
                return one_pass.clipped(kept, written[row], remaining)
        return one_pass.walked(lambda count: self._first(draws, count), start, remaining, self.expected_tokens)

    def _first(self, draws: Draws, count: int) -> tuple[IntArray, IntArray]:
        written = self._written(draws.uniforms("draft_length", 0, count))
        return np.minimum(self._stands(draws.uniforms("acceptance", 0, count)), written), written

    def _written(self, u: NDArray[np.float64]) -> IntArray:
        return kept_under(self.written, u)

    def _stands(self, u: NDArray[np.float64]) -> IntArray:
        return kept_under(self.survival, u)

    def channels(self, windows: tuple[Windows, ...]) -> int:
        """See sim/policies/ragged.py."""
        return self.ragged.channels(windows)

    def rows(self, future: Future, context: int, windows: tuple[Windows, ...]) -> tuple[IntArray, ...]:
        """Draft pass j of those that write at least j - 1 tokens, and the target pass over what was written."""
        return self.ragged.rows(future, context, windows)

    def passes(
        self, seats: Any, totals: Totals | None, prompts: Prompts | None, windows: tuple[Windows, ...]
    ) -> Iterable[Pass]:
        """The small model's passes while anybody still writes, then one of the large model."""
        return self.ragged.passes(seats, totals, prompts, windows)
