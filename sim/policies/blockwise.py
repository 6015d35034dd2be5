"""Blockwise parallel decoding: heads on the target's last state propose a block, the next pass verifies and proposes.

Stern, Shazeer and Uszkoreit 2018 (arXiv 1811.03115). The model's own output is the first of ``block`` heads; the others
predict the tokens after it. A pass over the last token and the block - 1 proposals judges them by the model's own
greedy choice, and its states feed the heads again: scoring and proposing are one pass, 1 to ``block`` tokens long.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sim.analytic.work import Work
from sim.policies import Draws, Future, IntArray, Model, Pass, Prompts, Totals, Windows, one_pass
from sim.policies.acceptance import SAME, kept_under, survival_vector
from sim.policies.checks import whole
from sim.policies.heads import HIDDEN, Heads
from sim.quality import LOSSLESS, Quality
from workloads.errors import shown

TUNED = {2: 0.55, 4: 1.96, 6: 3.44, 8: 4.23, 10: 5.87}
"""BLEU lost to tuning the model with its heads, percent of 29.11 (WMT14 En-De, arXiv 1811.03115, table 4)."""
KINDS = {"exact": "greedy output is the model's own", "top_k": "any of the top tokens", "distance": "any token near it"}


@dataclass(frozen=True)
class Blockwise:
    """``block``: heads, the model's own included, and most tokens of a round; ``acceptance``: of the proposals, any
    kind that is the same in every round; ``hidden``: of a head (sim/policies/heads.py; Stern's is ``ffn``);
    ``share_vocabulary``: heads use the model's output matrix; ``propose``: ``everywhere`` heads run on every row of the
    pass, as one graph must, ``once`` on the state that verification leaves; ``criterion``: exact, top_k or distance;
    ``tuned``: the model was trained with its heads, and is another one since.
    """

    name: ClassVar[str] = "blockwise"
    block: int = 4
    acceptance: Any = 0.76  # what 2.69x with four heads needs at least, by table 4, independent
    hidden: str = "ffn"
    share_vocabulary: bool = True
    propose: str = "everywhere"
    criterion: str = "exact"
    tuned: bool = False

    def __post_init__(self) -> None:
        whole(self.block, "policy.block", 2, 64)
        for key, allowed in (("hidden", HIDDEN), ("propose", ("everywhere", "once")), ("criterion", KINDS)):
            value = getattr(self, key)
            if not isinstance(value, str) or value not in allowed:
                raise ValueError(f"policy.{key}: {shown(value)} is not one of {', '.join(allowed)}")
        for key in ("share_vocabulary", "tuned"):
            if not isinstance(getattr(self, key), bool):
                raise ValueError(f"policy.{key}: {shown(getattr(self, key))} is not true or false")
        _ = self.survival

    @property
    def gamma(self) -> int:
        """Tokens proposed beyond the model's own next one."""
        return self.block - 1

    @cached_property
    def survival(self) -> NDArray[np.float64]:
        """P(at least k proposals are kept), k = 1..block - 1; shape [block - 1], not increasing."""
        return survival_vector(self.acceptance, self.gamma, kinds=SAME)

    @property
    def quality(self) -> Quality:
        """Lossless for a frozen model and greedy output; published for a tuned one; unknown for looser criteria."""
        if self.criterion != "exact":
            return Quality(None, f"greedy output: {KINDS[self.criterion]} is taken", "arXiv 1811.03115, section 5")
        if self.tuned:
            return Quality(TUNED.get(self.block), "BLEU of WMT14 En-De", "arXiv 1811.03115, table 4")
        return LOSSLESS

    @property
    def tokens_per_round(self) -> int:
        """Rows of the target pass: the last token and the proposals."""
        return self.block

    @property
    def drafts(self) -> tuple[str | Model, ...]:
        """The heads beside the model's own, on the target's states; they keep no cache."""
        return (Model(None, (Heads(self.gamma, self.hidden, share_vocabulary=self.share_vocabulary),), own_kv=False),)

    @property
    def expected_tokens(self) -> float:
        """Tokens a round, E = 1 + sum of the survival vector; m tokens take m / E + 1 passes."""
        return 1.0 + float(self.survival.sum())

    def future(self, draws: Draws, start: int, remaining: int) -> Future:
        """One uniform a round against the survival vector; the last gain is clipped to what is left."""
        return one_pass.steady(draws, self._kept, self.gamma, start, remaining, self.expected_tokens)

    def _kept(self, u: NDArray[np.float64]) -> IntArray:
        return kept_under(self.survival, u)

    def channels(self, windows: tuple[Windows, ...]) -> int:
        """Drafted tokens, then reads and pairs by attention kind of the target."""
        return one_pass.channels(windows)

    def rows(self, future: Future, context: int, windows: tuple[Windows, ...]) -> tuple[IntArray, ...]:
        """``block`` tokens a round after what is cached."""
        return one_pass.rows(future, context, windows)

    def passes(
        self, seats: Any, totals: Totals | None, prompts: Prompts | None, windows: tuple[Windows, ...]
    ) -> Iterable[Pass]:
        """The target over last tokens and proposals, then the heads, which also read the last state of a prompt."""
        [target] = one_pass.passes(seats, totals, prompts, windows)
        yield target
        rows = target.work.logit_rows
        if totals is not None and self.propose == "once":
            rows = rows - totals[0]
        yield Pass(1, Work(0, rows))
