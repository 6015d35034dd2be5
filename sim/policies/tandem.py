"""Tandem Transformers: a large model reads in blocks, a small one that attends to its states writes inside the block.

Aishwarya P S et al. 2024 (arXiv 2402.08644). The secondary writes gamma tokens, one after the other; it attends to its
own keys and values inside the block and, before it, to keys and values projected from the primary's states. Then the
primary reads the block in one pass, which renews the projections (sim/policies/tandem_projection.py) and gives one
token of its own for free. *standalone*: the block stays as it was written (lossy). *speculative*: that same pass
verifies the block, as in speculative decoding. Prompts are read by the primary only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from sim.plugin import suggest
from sim.policies import Draws, Future, IntArray, Model, Pass, Prompts, Totals, Windows, ramp, zeros
from sim.policies.adaptive import Adaptive
from sim.policies.checks import whole
from sim.policies.drafting import model_of
from sim.policies.ragged import Ragged
from sim.policies.speculative import Speculative
from sim.policies.tandem_law import BLOCK_OF_3, OTHER_BLOCKS
from sim.policies.tandem_passes import Blocks, with_prompts
from sim.policies.tandem_projection import Project, check_map
from sim.quality import LOSSLESS, Quality
from workloads.errors import shown

MODES = ("speculative", "standalone")
ADAPTS = tuple(f.name for f in fields(Adaptive) if f.name not in ("draft", "gamma", "acceptance"))


@dataclass(frozen=True)
class Tandem:
    """``draft``: the secondary, as for speculative; ``gamma``: tokens it writes a block, 0 for the primary alone;
    ``mode``: speculative or standalone; ``free_token``: the primary's own token after each block; ``acceptance``: of
    tokens that are judged; ``layer_map``: spread, or the primary's layer that each secondary layer reads;
    ``adaptive``: null, or options of the adaptive policy (threshold, rule, skill, last) that end a block early.
    """

    name: ClassVar[str] = "tandem"
    linear: ClassVar[bool] = True
    draft: Any = "auto"
    gamma: int = 7
    mode: str = "speculative"
    free_token: bool = True
    acceptance: Any = field(default=0.902)  # implied by the paper's decode-only rows for Tandem-Distil
    layer_map: Any = "spread"
    adaptive: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.mode, str) or self.mode not in MODES:
            raise ValueError(f"policy.mode: {shown(self.mode)} is not one of {', '.join(MODES)}")
        if not isinstance(self.free_token, bool):
            raise ValueError(f"policy.free_token: {shown(self.free_token)} is not true or false")
        if self.judged and not self.free_token:
            raise ValueError("policy.free_token: False: verification gives a token anyway; needs mode standalone")
        if not self.judged and self.adaptive is not None:
            raise ValueError("policy.adaptive: blocks end early where they are judged; needs mode speculative")
        whole(self.gamma, "policy.gamma", 0 if self.free_token and self.adaptive is None else 1, 64)
        _ = self.drafts, self.chain

    @property
    def judged(self) -> bool:
        """Whether the primary verifies what the secondary wrote."""
        return self.mode == "speculative"

    @cached_property
    def chain(self) -> Speculative | Adaptive:
        """Draft and verify without projections: how long blocks are and how much of them is kept."""
        gamma, said = max(self.gamma, 1), self.adaptive
        if said is None:
            return Speculative(self.draft, gamma, self.acceptance)
        if not isinstance(said, Mapping):
            raise ValueError(f"policy.adaptive: {shown(said)} is not null, nor {', '.join(ADAPTS)}")
        for key in said:
            if key not in ADAPTS:
                takes = f"{', '.join(ADAPTS)}{suggest(key, ADAPTS)}"
                raise ValueError(f"policy.adaptive.{str(key)[:80]}: unknown; it takes {takes}")
        return Adaptive(self.draft, gamma, acceptance=self.acceptance, **said)

    @cached_property
    def blocks(self) -> Blocks | Ragged:
        """The passes of a round over the block, the projections apart."""
        if isinstance(self.chain, Adaptive):
            return self.chain.ragged
        return Blocks(self.gamma, self.tokens_per_round, self.tokens_per_round if self.judged else int(self.free_token))

    @property
    def tokens_per_round(self) -> int:
        """The block, at its longest, and the primary's own token."""
        return self.gamma + self.free_token

    @cached_property
    def drafts(self) -> tuple[str | Model, ...]:
        """The secondary, and the projections into its cache."""
        layer_map, said = check_map(self.layer_map), model_of(self.draft)
        model = Model(said) if isinstance(said, str) else said
        if not model.own_kv:
            raise ValueError("policy.draft.kv: shared: projected keys and values are the secondary's own; must be own")
        projections = replace(model, variants=(*model.variants, Project(layer_map)), own_kv=False)
        return (model, projections) if self.gamma else ()

    @property
    def expected_tokens(self) -> float:
        """Tokens a round: the whole block where nothing is judged, else 1 + the sum of the survival vector."""
        return self.chain.expected_tokens if self.judged and self.gamma else float(self.tokens_per_round)

    @property
    def quality(self) -> Quality:
        """Lossless where the primary judges, or writes alone; else what the paper's table says of its own models."""
        if self.judged or not self.gamma:
            return LOSSLESS
        return BLOCK_OF_3 if self.gamma == 3 and self.free_token else OTHER_BLOCKS

    def settled(self, context: int) -> Tandem:
        """The same with the acceptance of this context."""
        settled = self.chain.settled(context) if isinstance(self.chain, Speculative) else self.chain
        return self if settled is self.chain else replace(self, acceptance=settled.acceptance)

    def future(self, draws: Draws, start: int, remaining: int) -> Future:
        """Judged blocks have luck, others do not; the last gain is clipped to what is left."""
        if self.judged and self.gamma:
            return self.chain.future(draws, start, remaining)
        rounds = -(-remaining // self.tokens_per_round)
        offsets = ramp(0, rounds) * self.tokens_per_round
        gains = np.full(rounds, self.tokens_per_round, dtype=np.int64)
        gains[-1] = remaining - int(offsets[-1])
        return Future(gains, offsets, zeros(rounds), zeros(rounds))

    def channels(self, windows: tuple[Windows, ...]) -> int:
        """Those of the blocks; projections follow the primary's tokens."""
        return self.blocks.channels(windows[:2])

    def rows(self, future: Future, context: int, windows: tuple[Windows, ...]) -> tuple[IntArray, ...]:
        """Those of the blocks, where the secondary has never anything to catch up."""
        return self.blocks.rows(future._replace(noted=zeros(len(future.gains))), context, windows[:2])

    def passes(
        self, seats: Any, totals: Totals | None, prompts: Prompts | None, windows: tuple[Windows, ...]
    ) -> Iterable[Pass]:
        """The secondary's passes over one token each, the primary's over the block, projections of all it read."""
        written = self.blocks.passes(seats, totals, None, windows[:2])
        return with_prompts(written, prompts, windows, totals is not None)
