"""What one pass is asked to do, as totals over the batch: tokens, pairs, cached tokens read."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Totals", "Work"]

Totals = Any  # an int, or an int64 array of shape [rounds]; all fields of one Work broadcast against each other
Windows = tuple[int | None, ...]


class Work(NamedTuple):
    """Totals of one pass (docs/conventions.md), each an int or an int64 array of shape [rounds].

    ``tokens``: rows through the linear layers; ``logit_rows``: rows through the head. The ``*_pairs`` and ``*_reads``
    are tuples, one entry per attention kind in the order of ``ModelShape.windows``; a half that is absent from every
    round is None, which costs nothing. ``prefill_tokens``: how many of ``tokens`` belong to the prefill half; it
    matters only where both halves are present (else it is all of them or none). Then come five for encoders.
    ``everywhere``: of a data-parallel layout, whose ranks each have their own ``tokens``, those of all ranks, which
    meet in the experts; not looked at elsewhere.
    """

    tokens: Totals
    logit_rows: Totals
    decode_pairs: tuple[Totals, ...] | None = None
    decode_reads: tuple[Totals, ...] | None = None
    prefill_pairs: tuple[Totals, ...] | None = None
    prefill_reads: tuple[Totals, ...] | None = None
    prefill_tokens: Totals = 0
    encoder_tokens: Totals = 0
    encoder_pairs: Totals = 0
    cross_pairs: Totals = 0
    cross_reads: Totals = 0
    cross_kv_tokens: Totals = 0
    everywhere: Totals = 0

    @classmethod
    def decode(cls, batch: Totals, context: Totals, new: Totals = 1, windows: Windows = (None,)) -> Work:
        """``batch`` sequences run ``new`` tokens each, all of them to the head (``new > 1``: verification).

        ``context`` counts the tokens that the last new token attends to, itself included: ``context - new`` are
        cached before the pass.
        """
        cached = _int(context) - new
        pairs, reads = _attended(batch, new, cached, windows)
        return cls(_int(batch) * new, _int(batch) * new, pairs, reads)

    @classmethod
    def prefill(cls, batch: Totals, prompt: Totals, windows: Windows = (None,)) -> Work:
        """``batch`` whole prompts of ``prompt`` tokens each, nothing cached, one row each to the head."""
        return cls.chunk(prompt, 0, batch=batch, windows=windows)

    @classmethod
    def chunk(
        cls, new: Totals, cached: Totals, *, last: bool = True, batch: Totals = 1, windows: Windows = (None,)
    ) -> Work:
        """``batch`` prompt chunks of ``new`` tokens after ``cached`` ones; only a ``last`` chunk needs logits."""
        pairs, reads = _attended(batch, new, _int(cached), windows)
        tokens = _int(batch) * new
        return cls(tokens, _int(batch) * int(last), prefill_pairs=pairs, prefill_reads=reads, prefill_tokens=tokens)

    @classmethod
    def encode(cls, batch: Totals, source: Totals) -> Work:
        """An encoder over ``batch`` inputs of ``source`` tokens each, and their keys and values for cross attention."""
        tokens = _int(batch) * source
        return cls(0, 0, encoder_tokens=tokens, encoder_pairs=tokens * source, cross_kv_tokens=tokens)

    @classmethod
    def mixed(cls, decode: Work, prefill: Work) -> Work:
        """One pass with the decode half of the first and the prefill half of the second."""
        return cls(
            decode.tokens + prefill.tokens,
            decode.logit_rows + prefill.logit_rows,
            decode.decode_pairs,
            decode.decode_reads,
            prefill.prefill_pairs,
            prefill.prefill_reads,
            prefill.tokens,
        )

    def half_tokens(self, half: str) -> Totals:
        """Tokens of the ``"prefill"`` or ``"decode"`` half."""
        present = self.prefill_pairs if half == "prefill" else self.decode_pairs
        other = self.decode_pairs if half == "prefill" else self.prefill_pairs
        if present is None:
            return 0
        if other is None:
            return self.tokens
        return self.prefill_tokens if half == "prefill" else self.tokens - self.prefill_tokens


def pairs_of(new: Totals, cached: Totals, window: int | None) -> Totals:
    """Causal (query, key) pairs of ``new`` queries after ``cached`` tokens: query i sees min(window, cached+i+1)."""
    full = new * cached + new * (new + 1) // 2
    if window is None:
        return full
    growing = np.clip(window - cached, 0, new)  # queries that still see everything before them
    return growing * cached + growing * (growing + 1) // 2 + (new - growing) * window


def reads_of(cached: Totals, window: int | None) -> Totals:
    """Cached tokens that the first new query still sees: all of them, or min(cached, window - 1)."""
    return cached if window is None else np.minimum(cached, window - 1)


def _attended(
    batch: Totals, new: Totals, cached: Totals, windows: Windows
) -> tuple[tuple[Totals, ...], tuple[Totals, ...]]:
    batch, new = _int(batch), _int(new)
    pairs = tuple(batch * pairs_of(new, cached, w) for w in windows)
    return pairs, tuple(batch * reads_of(cached, w) for w in windows)


def _int(value: Totals) -> NDArray[np.int64] | np.int64:
    return np.int64(value) if np.ndim(value) == 0 else np.asarray(value, dtype=np.int64)
