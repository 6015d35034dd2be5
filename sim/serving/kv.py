"""The KV cache of a replica as a budget of bytes, handed out in blocks.

Target and draft caches, and layers with different windows, are pools with their own block sizes; a context of t tokens
takes ``ceil(t / block_tokens)`` blocks of each pool, and the pools share one budget. Counting in bytes makes the
pools additive, so the horizon carries one channel for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Span:
    """One kind of cache: bytes that a token takes, and the window after which tokens are dropped (None: never)."""

    token_bytes: int
    window: int | None = None


class KvBudget:
    """Bytes of KV cache by context length, and the budget they come from.

    ``paged`` allocates blocks as the context grows; ``reserved`` sets ``reserve_tokens`` aside for every sequence, as
    engines did before paging (Kwon et al. 2023, arXiv 2309.06180, section 3.1). ``watermark`` is the share of the
    budget that admission leaves free.
    """

    def __init__(
        self,
        capacity_bytes: int,
        spans: tuple[Span, ...],
        block_tokens: int = 16,
        mode: Literal["paged", "reserved"] = "paged",
        reserve_tokens: int = 0,
        watermark: float = 0.0,
        lookahead: int = 1,
    ) -> None:
        self.capacity_bytes = capacity_bytes
        self.watermark_bytes = int(watermark * capacity_bytes)
        self.spans, self.block_tokens, self.mode = spans, block_tokens, mode
        self.reserve_tokens, self.lookahead = reserve_tokens, lookahead
        self.token_bytes = sum(span.token_bytes for span in spans)
        self._table = np.zeros(0, dtype=np.int64)
        self._grow(4096)

    def _grow(self, tokens: int) -> None:
        t = np.full(tokens, self.reserve_tokens) if self.mode == "reserved" else np.arange(tokens)
        blocks = -(-t // self.block_tokens)
        table = np.zeros(tokens, dtype=np.int64)
        for span in self.spans:
            held = blocks if span.window is None else np.minimum(blocks, self._window_blocks(span.window))
            table += held * (span.token_bytes * self.block_tokens)
        table[0] = 0
        self._table = table

    def _window_blocks(self, window: int) -> int:
        """Blocks that a sliding window can touch: its keys, the new tokens, and one block it straddles."""
        return -(-(window - 1 + self.lookahead) // self.block_tokens) + 1

    def bytes_of(self, tokens: int, prompt: int = 0) -> int:
        """KV bytes allocated to one sequence with this many tokens cached; ``prompt`` of them are its prompt's, which
        matters where an encoder reads that (sim/serving/encoded_kv.py).
        """
        if tokens >= len(self._table):
            self._grow(2 * tokens)
        return int(self._table[tokens])

    def bytes_along(self, context: NDArray[np.int64], more: int = 0, prompt: int = 0) -> NDArray[np.int64]:
        """The same for ``context + more``, rising by at least one a round as in a decoding sequence; shape kept."""
        first, last = int(context[0]) + more, int(context[-1]) + more
        if last >= len(self._table):
            self._grow(2 * last)
        if last - first == len(context) - 1:
            return self._table[first : last + 1]
        return self._table[context + more]

    def shared_tokens(self, prompt: int, samples: int) -> int:
        """Prompt tokens in full blocks, which samples of one prompt share copy-on-write."""
        if samples == 1 or self.mode == "reserved":
            return 0
        return prompt // self.block_tokens * self.block_tokens

    def shared_bytes(self, prompt: int, samples: int) -> int:
        """Bytes of the blocks that samples of one prompt share. A windowed pool shares none: its blocks move on."""
        whole = sum([span.token_bytes for span in self.spans if span.window is None])
        return whole * self.shared_tokens(prompt, samples)

    def group_bytes(self, prompt: int, contexts: list[int]) -> int:
        """Bytes held by the running samples of one prompt, given the tokens that each has cached."""
        if len(contexts) == 1:
            return self.bytes_of(contexts[0], prompt)
        shared = self.shared_bytes(prompt, len(contexts))
        return shared + sum(self.bytes_of(c, prompt) - shared for c in contexts)

    def most_bytes(self, prompt: int, output: int, samples: int) -> int:
        """The most that a request can ever hold: all its samples in their last round, look-ahead included."""
        if samples == 1:
            return self.bytes_of(prompt + output - 1 + self.lookahead, prompt)
        return self.group_bytes(prompt, [prompt + output - 1 + self.lookahead] * samples)
