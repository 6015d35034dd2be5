"""Policies: how forward passes turn into tokens. One per file; found by name, never registered.

A policy is a frozen dataclass whose fields are its options in a scenario. It answers two questions: which passes does
one decode round run for this batch (:meth:`Policy.passes`), and what will a sequence gain in each of its rounds
(:meth:`Policy.future`)? ``tests/test_conformance_policies.py`` says what every policy owes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sim.analytic.work import Work, pairs_of, reads_of

IntArray = NDArray[np.int64]
Windows = tuple[int | None, ...]
Totals = IntArray | list[int]


class Draws(Protocol):
    """Addressed uniforms of one sample: see sim/serving/luck.py. ``prompt``: tokens of the sample's prompt.

    Before its decode round with e tokens out, the first of them from the prefill, prompt + e - 1 tokens are cached.
    """

    @property
    def prompt(self) -> int:
        """Prompt tokens of the sample's request."""
        ...

    def uniforms(self, purpose: str, start: int, count: int) -> NDArray[np.float64]:
        """``count`` draws in [0, 1) for own decode rounds ``start, start + 1, ...``."""
        ...

    def from_tile(self, purpose: str, build: Callable[..., Any], *beside: str) -> tuple[Any, int, int]:
        """What ``build`` makes of the first draws of neighbouring requests, this one's row, and how many rounds.

        It gets an array for ``purpose`` and one for each purpose ``beside`` it.
        """
        ...


class Future(NamedTuple):
    """What one sample does in each of its decode rounds, shape [rounds] each.

    ``gains`` tokens emitted (the last one clipped to what was left to emit); ``offsets`` tokens gained before each
    round; ``kept`` drafted tokens that verification accepts, before clipping; ``drafted`` tokens drafted. ``noted``:
    what the policy may leave to its own :meth:`Policy.rows`, which does without it too.
    """

    gains: IntArray
    offsets: IntArray
    kept: IntArray
    drafted: IntArray
    noted: Any = None


class Chunk(NamedTuple):
    """A piece of a prompt: ``new`` tokens after ``cached`` ones; ``last`` when tokens come out at its end.

    ``prompt``: tokens of the request's own prompt, which an encoder reads (0: all of ``new``); what a preempted request
    had emitted is read again beside them.
    """

    cached: int
    new: int
    last: bool
    prompt: int = 0


class Pass(NamedTuple):
    """One forward pass of model number ``model`` (0: the target); fields of work may have leading axes to sum over."""

    model: int
    work: Work


@dataclass(frozen=True)
class Model:
    """A further model that a policy runs: ``name`` of a shape, None for the target itself.

    ``variants`` rewrite it (specs as in a scenario, or variants that are built already), the target's own ones before
    them where it is the target. ``own_kv`` False: it reads and writes the target's KV cache and keeps none of its own.
    """

    name: str | None
    variants: tuple[Any, ...] = ()
    own_kv: bool = True


class Policy(Protocol):
    """What the engine asks of a policy. ``windows`` are the attention kinds of each model it runs, target first.

    It may also have ``linear`` (passes are linear in seats and totals, always the same ones), ``host_s`` (host seconds
    of a round with decodes, and of each decoding sequence: look-ups, trees), ``prompt_s`` (of each prompt read),
    ``needs_encoder`` (True: it decodes with an encoder-decoder only), ``quality`` (sim/quality.py; absent where
    it is lossless), ``clashes`` (variants it cannot go with, and why) and ``settled(context)``, the policy as it is at
    one context where acceptance depends on it. One whose gamma follows the load has ``tier_of``, ``least_seats``,
    ``tier_future``, ``switch_ns`` and ``loaded(batch)`` (load_adaptive.py): the replica asks for each round's tier.
    """

    @property
    def name(self) -> str:
        """What a scenario calls it."""
        ...

    @property
    def tokens_per_round(self) -> int:
        """Rows of the target pass for each sequence, which is also how many tokens the round may add to the cache."""
        ...

    @property
    def drafts(self) -> tuple[str | Model, ...]:
        """Further models that the policy runs, a bare name for a model as it is; model 1, 2, ... of its passes."""
        ...

    def future(self, draws: Draws, start: int, remaining: int) -> Future:
        """Rounds from own decode round ``start`` on until ``remaining`` more tokens are out."""
        ...

    def rows(self, future: Future, context: int, windows: tuple[Windows, ...]) -> tuple[IntArray, ...]:
        """Additive integer channels of one sample by round; ``context`` tokens are cached before the first one."""
        ...

    def channels(self, windows: tuple[Windows, ...]) -> int:
        """How many arrays :meth:`rows` returns."""
        ...

    def passes(
        self, seats: Any, totals: Totals | None, prompts: Prompts | None, windows: tuple[Windows, ...]
    ) -> Iterable[Pass]:
        """The passes of a round with ``seats`` decoding sequences.

        ``totals`` of the channels have shape [channels, rounds], or are whole numbers for a single round; None where
        nobody decodes. ``prompts`` is None where no prompt is read. Accounting calls this with arrays of many rounds
        for ``seats``, so it must broadcast.
        """
        ...


_RAMP = np.arange(1 << 16, dtype=np.int64)
_ONES = np.ones(1 << 12, dtype=np.int64)
_ZEROS = np.zeros(1 << 12, dtype=np.int64)
for _shared in (_RAMP, _ONES, _ZEROS):
    _shared.setflags(write=False)


def ramp(start: int, count: int) -> IntArray:
    """``start, start + 1, ...`` as a read-only view; shape [count]."""
    if start + count > len(_RAMP):
        return np.arange(start, start + count, dtype=np.int64)
    return _RAMP[start : start + count]


def ones(count: int) -> IntArray:
    """A read-only view of ones; shape [count]."""
    return _ONES[:count] if count <= len(_ONES) else np.ones(count, dtype=np.int64)


def zeros(count: int) -> IntArray:
    """A read-only view of zeros; shape [count]."""
    return _ZEROS[:count] if count <= len(_ZEROS) else np.zeros(count, dtype=np.int64)


class PromptPart(NamedTuple):
    """The prompt chunks of one pass in totals; ``pairs`` and ``reads`` by attention kind, None without chunks."""

    tokens: Any
    rows: Any
    pairs: tuple[Any, ...] | None
    reads: tuple[Any, ...] | None


NO_PROMPTS = PromptPart(0, 0, None, None)


class Sources(NamedTuple):
    """What an encoder reads in one pass: ``tokens``, ``squares`` (pairs, both ways), and ``pairs`` across from the
    decoder's rows of these prompts.
    """

    tokens: Any
    squares: Any
    pairs: Any


class Prompts(Protocol):
    """The prompt chunks that ride on the passes of a round."""

    def part(self, windows: Windows) -> PromptPart:
        """Their totals for a model with these attention kinds."""
        ...


@dataclass(frozen=True, slots=True)
class Chunks:
    """The chunks of one round."""

    chunks: list[Chunk]

    def part(self, windows: Windows) -> PromptPart:
        """Sum over the chunks, in whole numbers."""
        pairs, reads = [0] * len(windows), [0] * len(windows)
        tokens = last = 0
        for chunk in self.chunks:
            cached, new, ends = chunk[:3]
            tokens += new
            last += ends
            for kind, window in enumerate(windows):
                pairs[kind] += int(pairs_of(new, cached, window))
                reads[kind] += int(reads_of(cached, window))
        return PromptPart(tokens, last, tuple(pairs), tuple(reads))

    def encoded(self) -> tuple[Chunks, Sources]:
        """What the decoder reads of them (a start token, and tokens that are out), and what the encoder does."""
        assert all(chunk.last and not chunk.cached for chunk in self.chunks), "an encoder reads a prompt in one piece"
        each = [(c.prompt or c.new, c.new - (c.prompt or c.new) + 1) for c in self.chunks]
        read = Sources(sum(s for s, _ in each), sum(s * s for s, _ in each), sum(s * n for s, n in each))
        return Chunks([Chunk(0, n, True) for _, n in each]), read
