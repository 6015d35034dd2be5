"""Plan and write (exploratory): the primary of a tandem writes the first tokens, the secondary all that follow.

An outlook of the Tandem poster (arXiv 2402.08644: "using LLM for plan generation and SLM for autoregressive token
generation using plan"); nobody has published how well it works. The secondary attends to prompt and plan through
projections of the primary's states and to its own keys and values behind them: one tandem block that never ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from sim.analytic.work import Work, reads_of
from sim.policies import NO_PROMPTS, Draws, Future, IntArray, Model, Pass, Prompts, Totals, Windows, ones, ramp, zeros
from sim.policies.checks import number, whole
from sim.policies.drafting import model_of
from sim.policies.tandem_projection import Project, check_map
from sim.quality import UNKNOWN, Quality


@dataclass(frozen=True)
class Plan:
    """``draft``: the secondary, as for speculative; ``tokens``: of the plan, which the primary writes (the prefill's
    token is its first); ``layer_map``: as for tandem. In a future ``drafted`` marks the secondary's tokens; as nobody
    judges them, a run counts no drafts.
    """

    name: ClassVar[str] = "plan"
    tokens_per_round: ClassVar[int] = 1
    expected_tokens: ClassVar[float] = 1.0
    quality: ClassVar[Quality] = UNKNOWN
    linear: ClassVar[bool] = True
    draft: Any = "auto"
    tokens: int = 32
    layer_map: Any = "spread"

    def __post_init__(self) -> None:
        whole(self.tokens, "policy.tokens", 1, 1_000_000)
        _ = self.drafts

    @cached_property
    def drafts(self) -> tuple[str | Model, ...]:
        """The secondary, and the projections into its cache."""
        layer_map, said = check_map(self.layer_map), model_of(self.draft)
        model = Model(said) if isinstance(said, str) else said
        if not model.own_kv:
            raise ValueError("policy.draft.kv: shared: projected keys and values are the secondary's own; must be own")
        return model, replace(model, variants=(*model.variants, Project(layer_map)), own_kv=False)

    def wall_time_factor(self, output: int, draft: float) -> float:
        """Speedup of decoding an answer of ``output`` tokens alone: (n - 1) / (p - 1 + (n - p) c), p tokens of plan.

        ``draft``: c, a step of the secondary in those of the primary. The first token is the prefill's. ValueError.
        """
        whole(output, "output", 2, 1_000_000_000)
        planned = min(self.tokens, output)
        return (output - 1) / (planned - 1 + (output - planned) * number(draft, "draft", 1e-9, 1e9))

    def future(self, draws: Draws, start: int, remaining: int) -> Future:
        """One token a round, the secondary's from own round ``tokens - 1`` on; no luck."""
        own = (ramp(start, remaining) >= self.tokens - 1).astype(np.int64)
        return Future(ones(remaining), ramp(0, remaining), zeros(remaining), own)

    def channels(self, windows: tuple[Windows, ...]) -> int:
        """Who is past the plan, and tokens read by attention kind of either model."""
        return 1 + len(windows[0]) + len(windows[1])

    def rows(self, future: Future, context: int, windows: tuple[Windows, ...]) -> tuple[IntArray, ...]:
        """The context grows by one a round, and either model reads it."""
        before, own = future.offsets + context, future.drafted
        planned = tuple((1 - own) * reads_of(before, w) for w in windows[0])
        return own, *planned, *(own * reads_of(before, w) for w in windows[1])

    def passes(
        self, seats: Any, totals: Totals | None, prompts: Prompts | None, windows: tuple[Windows, ...]
    ) -> Iterable[Pass]:
        """The secondary over those past the plan, the primary over the others, projections of what it read."""
        part = prompts.part(windows[0]) if prompts else NO_PROMPTS
        planning, reads, pairs = seats, None, None
        if totals is not None:
            late, split = totals[0], 1 + len(windows[0])
            planning, reads = seats - late, tuple(totals[1:split])
            pairs, own = tuple(r + planning for r in reads), tuple(totals[split:])
            yield Pass(1, Work(late, late, tuple(r + late for r in own), own))
        tokens = part.tokens + planning
        yield Pass(0, Work(tokens, part.rows + planning, pairs, reads, part.pairs, part.reads, part.tokens))
        yield Pass(2, Work(tokens, 0))
