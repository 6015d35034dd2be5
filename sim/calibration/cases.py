"""Whole decode and prefill steps of the executor: those that a profile is fitted to, and others that judge it.

The two sets share no model, no batch with its context, and no prompt length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from sim.analytic.model import ModelShape
from sim.analytic.work import Work
from sim.calibration.timing import Stopwatch
from sim.reference.decoding import Session
from sim.reference.sampling import Sampler, stream
from sim.reference.transformer import Transformer
from sim.reference.twins import autoregressive
from sim.validation.models import named
from sim.validation.stand_in import dense, stand_in

Phase = Literal["decode", "prefill"]
Grid = tuple[tuple[int, int], ...]

STAND_INS = {  # width, layers, heads, KV heads, FFN, vocabulary
    "fit-96": dense(96, 4, 3, 3, 256, 512),
    "fit-192": dense(192, 5, 6, 3, 512, 1500),
    "fit-320": dense(320, 4, 5, 5, 860, 4000),
    "fit-448": dense(448, 6, 7, 1, 1200, 2000),
    "fit-768": dense(768, 2, 12, 4, 2048, 4096),
    "test-256": dense(256, 5, 8, 4, 688, 1200),
    "test-384": dense(384, 3, 6, 6, 1024, 4096),
    "test-512": dense(512, 7, 8, 2, 1376, 4096),
}
FIT_DECODES: Grid = ((1, 24), (1, 224), (3, 112), (6, 40), (12, 160))  # sequences, context
FIT_PREFILLS: Grid = ((1, 16), (1, 80), (1, 208), (2, 56))  # sequences, prompt
TEST_DECODES: Grid = ((1, 48), (1, 320), (2, 128), (4, 64), (8, 200), (16, 96))
TEST_PREFILLS: Grid = ((1, 28), (1, 128), (1, 288), (3, 72))


@dataclass(frozen=True)
class Case:
    """One step: ``batch`` sequences of a model decode a token at ``context`` cached ones, or read prompts that long."""

    model: str
    phase: Phase
    batch: int
    context: int

    @property
    def label(self) -> str:
        """A short name."""
        return f"{self.model} {self.phase} {self.batch} x {self.context}"

    @property
    def shape(self) -> ModelShape:
        """The model's shape."""
        return STAND_INS[self.model] if self.model in STAND_INS else model_of(self.model).shape

    @property
    def work(self) -> Work:
        """The step as the simulator sees it."""
        if self.phase == "decode":
            return Work.decode(self.batch, self.context + 1, windows=self.shape.windows)
        return Work.prefill(self.batch, self.context, windows=self.shape.windows)

    def seconds(self, watch: Stopwatch) -> float:
        """What the step takes."""
        steps = Steps(model_of(self.model), self.batch, self.context)
        return steps.round_s(watch) if self.phase == "decode" else steps.prefill_s(watch)


def fitted() -> list[Case]:
    """Steps of stand-ins that the profile is fitted to."""
    return list(_grid([name for name in STAND_INS if name.startswith("fit")], FIT_DECODES, FIT_PREFILLS))


def judged() -> list[Case]:
    """Steps of the trained models and of other stand-ins, which the profile has not seen."""
    names = ["primary", "drafter", *(name for name in STAND_INS if name.startswith("test"))]
    return list(_grid(names, TEST_DECODES, TEST_PREFILLS))


def _grid(models: list[str], decodes: Grid, prefills: Grid) -> Iterator[Case]:
    for model in models:
        yield from (Case(model, "decode", batch, context) for batch, context in decodes)
        yield from (Case(model, "prefill", batch, prompt) for batch, prompt in prefills)


@cache
def model_of(name: str) -> Transformer:
    """A shipped model, or a stand-in of that shape."""
    return stand_in(STAND_INS[name]) if name in STAND_INS else named(name)


class Steps:
    """Rounds of a batch decoded autoregressively at one context, timed; each round is undone before the next."""

    def __init__(self, model: Transformer, batch: int, context: int) -> None:
        """``batch`` sequences of ``context`` cached tokens each."""
        prompts = [stream(i, "step").integers(0, model.shape.vocab, context) for i in range(batch)]
        self.begin: Callable[[], Session] = lambda: autoregressive.Twin().begin(model, prompts, Sampler(), 0)
        self.batch, self.context = range(batch), context

    def round_s(self, watch: Stopwatch) -> float:
        """Seconds of a decode round."""
        session: Any = self.begin()
        session.prefill()

        def back() -> None:
            for i in self.batch:
                session.cache.truncate(i, self.context)
                del session.contexts[i][self.context + 1 :]

        return watch.best(lambda: session.round(self.batch), back)

    def prefill_s(self, watch: Stopwatch) -> float:
        """Seconds of reading the prompts, first token included."""
        fresh: list[Session] = []
        return watch.best(lambda: fresh.pop().prefill(), lambda: fresh.append(self.begin()))
