"""An encoder-decoder's form of a policy: prompts go through the encoder, and every decoder pass reads them across.

Not a policy that a scenario names: ``sim/build.py`` puts it around whatever policy decodes a model with an encoder.
The decoder begins with one start token, so that the round which encodes a prompt also runs the decoder's first step. A
sequence with t tokens out has cached t of its own; the source's keys and values stay as they are. Beside the policy's
channels there are those of the source: tokens of it, and the same times each channel that adds rows to a pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from sim.analytic.model import ModelShape
from sim.analytic.work import Work
from sim.policies import Draws, Future, IntArray, Model, Pass, Policy, Prompts, Sources, Totals, Windows

__all__ = ["Encoded", "Kind"]

FORWARDED = ("host_s", "prompt_s", "quality", "expected_tokens", "clashes")


class _Sourced(Protocol):
    """Prompts that an encoder can read."""

    def encoded(self) -> tuple[Prompts, Sources]:
        """What the decoder reads of them, and what the encoder does."""
        ...


class _Costed(Protocol):
    """What is known of a model here: its shape, variants applied."""

    @property
    def shape(self) -> ModelShape:
        """Of the whole model."""
        ...


class Kind(NamedTuple):
    """Of a model: it attends across to the source; it works on sources itself (else it uses what the target made)."""

    crosses: bool
    encodes: bool


@dataclass(frozen=True)
class Encoded:
    """``policy`` over models of these ``kinds``, the target first.

    ``source``: tokens of the request's prompt. None where no request is known (speedup): the whole context then is the
    source, but for the start token.
    """

    policy: Policy
    kinds: tuple[Kind, ...]
    windows: tuple[Windows, ...]
    source: int | None = None

    @classmethod
    def of(cls, policy: Policy, costs: Sequence[_Costed]) -> Encoded:
        """Around ``policy``, whose models cost that. Raises ValueError where not everybody runs all of its passes."""
        shapes = [cost.shape for cost in costs[: 1 + len(policy.drafts)]]
        own = [True, *(not isinstance(d, Model) or d.own_kv for d in policy.drafts)]
        kinds = tuple(
            Kind(any(layer.cross for layer in shape.layers), bool(shape.encoder) and (keeps or not shape.layers))
            for shape, keeps in zip(shapes, own, strict=True)
        )
        found = cls(policy, kinds, tuple(shape.windows for shape in shapes))
        found._check()
        return found

    def __getattr__(self, name: str) -> Any:
        if name in FORWARDED:
            return getattr(self.policy, name)
        raise AttributeError(name)

    @property
    def name(self) -> str:
        """The policy's own (a property, so that no scenario finds it)."""
        return self.policy.name

    @property
    def tokens_per_round(self) -> int:
        """The policy's own."""
        return self.policy.tokens_per_round

    @property
    def drafts(self) -> tuple[str | Model, ...]:
        """The policy's own."""
        return self.policy.drafts

    def settled(self, context: int) -> Encoded:
        """The same with the policy as it is at one context."""
        settle = getattr(self.policy, "settled", None)
        there = self.policy if settle is None else settle(context)
        return self if there is self.policy else replace(self, policy=there)

    def reading(self, source: int) -> Encoded:
        """The same for a request whose prompt has so many tokens."""
        return replace(self, source=source)

    # -- what the engine asks

    def future(self, draws: Draws, start: int, remaining: int) -> Future:
        """The policy's own."""
        return self.policy.future(draws, start, remaining)

    def channels(self, windows: tuple[Windows, ...]) -> int:
        """The policy's, then tokens of the source, then those times each channel that adds rows to a pass."""
        return self.policy.channels(windows) + 1 + len(self._adding)

    def rows(self, future: Future, context: int, windows: tuple[Windows, ...]) -> tuple[IntArray, ...]:
        """``context`` counts prompt and output but the last token, as everywhere; the decoder has cached its own."""
        source = context if self.source is None else self.source
        own = self.policy.rows(future, context - source + 1, windows)
        return (*own, np.full(len(future.gains), source), *(source * own[i] for i in self._adding))

    def passes(
        self, seats: Any, totals: Totals | None, prompts: Prompts | None, windows: tuple[Windows, ...]
    ) -> Iterator[Pass]:
        """The policy's passes with the encoder's work and cross attention added."""
        decoder, read = (None, None) if prompts is None else cast(_Sourced, prompts).encoded()
        own = None if totals is None else totals[: self.policy.channels(windows)]
        across = None if totals is None else self._across(totals, windows)
        for at, one in enumerate(self.policy.passes(seats, own, decoder, windows)):
            kind, work = self.kinds[one.model], one.work
            if across is not None and kind.crosses:
                source = totals[self.policy.channels(windows)]  # type: ignore[index]
                work = work._replace(cross_pairs=across[at], cross_reads=source)
            if read is not None and (work.prefill_pairs is not None or np.any(work.encoder_tokens)):
                work = _with_sources(work, read, kind)
            yield Pass(one.model, work)

    def _across(self, totals: Totals, windows: tuple[Windows, ...]) -> list[Any]:
        """Pairs of each pass with the source: its rows, every sequence's times the tokens of its own source."""
        channels = self.policy.channels(windows)
        weighted: list[Any] = [0 * totals[0]] * channels
        for i, column in zip(self._adding, totals[channels + 1 :], strict=True):
            weighted[i] = column
        times = weighted if isinstance(totals, list) else np.array(weighted)
        return [one.work.tokens for one in self.policy.passes(totals[channels], times, None, windows)]

    # -- read off at unit vectors

    @cached_property
    def _rates(self) -> NDArray[np.float64]:
        """Rows of each pass by a seat and by one in each channel; shape [passes, 1 + channels]."""
        units = np.eye(1 + self.policy.channels(self.windows), dtype=np.int64).tolist()
        found = [list(self.policy.passes(unit[0], unit[1:], None, self.windows)) for unit in units]
        return np.array([[float(np.max(one.work.tokens)) for one in passes] for passes in found]).T

    @cached_property
    def _adding(self) -> tuple[int, ...]:
        """Channels that add rows to some pass."""
        return tuple(int(i) for i in np.flatnonzero((self._rates[:, 1:] != 0).any(axis=0)))

    def _check(self) -> None:
        """Raise ValueError unless every sequence takes part in every pass that attends to the source."""
        name, unit = self.policy.name, [0] * self.policy.channels(self.windows)
        if hasattr(self.policy, "tier_of") or not getattr(self.policy, "linear", False):
            raise ValueError(f"policy: {name}: not modelled for a model with an encoder")
        models = [one.model for one in self.policy.passes(1, unit, None, self.windows)]
        crossing = [self.kinds[model].crosses for model in models]
        rates = self._rates[crossing]
        if (rates[:, 0] < 1).any() or (rates < 0).any():
            raise ValueError(f"policy: {name}: passes that only some sequences run are not modelled with an encoder")


def _with_sources(work: Work, read: Sources, kind: Kind) -> Work:
    """A pass on which prompts ride: they are encoded, kept for cross attention, and read across by their first row."""
    if kind.encodes:
        work = work._replace(encoder_tokens=read.tokens, encoder_pairs=read.squares)
    if kind.crosses:
        made = read.tokens if kind.encodes else 0
        pairs, reads = work.cross_pairs + read.pairs, work.cross_reads + read.tokens
        work = work._replace(cross_pairs=pairs, cross_reads=reads, cross_kv_tokens=made)
    return work
