"""Text editing: an encoder tags what stays of its input and orders it; a small decoder writes only what is new.

EdiT5, Mallinson et al. 2022 (arXiv 2205.12209): tags and pointers come out of one encoder pass, for all tokens at once;
a decoder (of one layer, by the variant ``early_exit``) then writes the insertions, a position and its words,
autoregressively. An answer of N tokens takes ``steps_share`` * N decoder steps instead of N. What a step releases to
the reader (its insertion, and kept words before it) is spread evenly. Turning tags into text takes the host's time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from sim.analytic.work import Work, reads_of
from sim.policies import Draws, Future, IntArray, Model, Pass, Prompts, Totals, Windows, zeros
from sim.policies.autoregressive import Autoregressive
from sim.policies.checks import number
from sim.policies.edit_heads import EditHeads
from sim.quality import Quality
from workloads.errors import shown

PLAIN = Autoregressive()
EDITED = Quality(None, "comparable to T5 with much training data, better with little", "arXiv 2205.12209, abstract")


@dataclass(frozen=True)
class TextEditing:
    """``steps_share``: decoder steps for each token of the output, start and end included; ``overhead_ms``: host time
    for each request; ``pointer``: the encoder also says in which order the kept tokens come.
    """

    name: ClassVar[str] = "text_editing"
    linear: ClassVar[bool] = True
    needs_encoder: ClassVar[bool] = True
    quality: ClassVar[Quality] = EDITED
    steps_share: float = 10 / 27  # of the tutorial's sentence, as the default overhead is
    overhead_ms: float = 5.0
    pointer: bool = True

    def __post_init__(self) -> None:
        number(self.steps_share, "policy.steps_share", 1 / 64, 1.0)
        number(self.overhead_ms, "policy.overhead_ms", 0.0, 1e6)
        if not isinstance(self.pointer, bool):
            raise ValueError(f"policy.pointer: {shown(self.pointer)} is not true or false")

    @cached_property
    def share(self) -> Fraction:
        """Steps for each token of the output, so that steps and tokens are counted in whole numbers."""
        return Fraction(self.steps_share).limit_denominator(1000)

    def steps(self, output: int) -> int:
        """Decoder steps of an answer of so many tokens; the first of them runs beside the encoder."""
        return -(-output * self.share.numerator // self.share.denominator)

    @property
    def expected_tokens(self) -> float:
        """Tokens of the output for each step."""
        return float(1 / self.share)

    @property
    def prompt_s(self) -> float:
        """Host seconds of each request."""
        return self.overhead_ms * 1e-3

    @property
    def tokens_per_round(self) -> int:
        """What a step releases at most: the first one of the decoder's own also has what the encoder's round had."""
        return max(-(-self.share.denominator // self.share.numerator), int(self._released(1)))

    @property
    def drafts(self) -> tuple[str | Model, ...]:
        """The heads on the encoder's states."""
        return (Model(None, (EditHeads(self.pointer),), own_kv=False),)

    def _released(self, rounds: Any) -> Any:
        """Tokens out after so many decode rounds, but for the one of the encoder's round; shape kept."""
        total = (np.asarray(rounds, dtype=np.int64) + 1) * self.share.denominator // self.share.numerator - 1
        return np.where(np.asarray(rounds) > 0, total, 0) if np.ndim(rounds) else int(total if rounds else 0)

    def future(self, draws: Draws, start: int, remaining: int) -> Future:
        """As many steps as ``remaining`` tokens take, by the round's own number; no luck."""
        before = self._released(start)
        last = self.steps(before + remaining + 1) - 1
        out = self._released(np.arange(start, max(last, start + 1) + 1)) - before
        gains, offsets = np.diff(out), out[:-1]
        gains[-1] = remaining - int(offsets[-1])
        return Future(gains, offsets, zeros(len(gains)), zeros(len(gains)))

    def channels(self, windows: tuple[Windows, ...]) -> int:
        """Tokens read, by attention kind."""
        return len(windows[0])

    def rows(self, future: Future, context: int, windows: tuple[Windows, ...]) -> tuple[IntArray, ...]:
        """The decoder has cached one token for each step, not one for each token of the output."""
        own = -(-(future.offsets + context) * self.share.numerator // self.share.denominator)
        return tuple(reads_of(own, w) for w in windows[0])

    def passes(
        self, seats: Any, totals: Totals | None, prompts: Prompts | None, windows: tuple[Windows, ...]
    ) -> Iterable[Pass]:
        """A decoder step; prompts are read by the heads too, after the encoder (sim/policies/encoded.py)."""
        yield from PLAIN.passes(seats, totals, prompts, windows)
        if prompts:
            yield Pass(1, Work(0, 0, encoder_tokens=prompts.part(windows[0]).tokens))
