"""The KV cache of encoder-decoders: a decoder's own tokens in blocks that grow, a source's in blocks that stay.

The keys and values that cross attention reads are made once, when the prompt is encoded. All samples of a prompt read
the same ones; of the decoder's own tokens they share nothing, since it begins with a single start token.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.serving.kv import KvBudget, Span

__all__ = ["EncodedKv"]


class EncodedKv(KvBudget):
    """As its base, which gives the decoder's own tokens; ``source_bytes`` is what a token of the source takes."""

    def __init__(self, capacity_bytes: int, spans: tuple[Span, ...], source_bytes: int, **options: Any) -> None:
        super().__init__(capacity_bytes, spans, **options)
        self.source_bytes = source_bytes

    def bytes_of(self, tokens: int, prompt: int = 0) -> int:
        """Of ``tokens``, ``prompt`` of them the source's: the decoder has cached a start token and the others."""
        return self.of_source(prompt) + super().bytes_of(tokens - prompt + 1)

    def bytes_along(self, context: NDArray[np.int64], more: int = 0, prompt: int = 0) -> NDArray[np.int64]:
        """The same for ``context + more``, shape kept."""
        return self.of_source(prompt) + super().bytes_along(context, more - prompt + 1)

    def of_source(self, tokens: int) -> int:
        """Bytes of a source's keys and values, in whole blocks; ``reserved`` sets the longest aside."""
        longest = self.reserve_tokens if self.mode == "reserved" else tokens
        return -(-longest // self.block_tokens) * self.block_tokens * self.source_bytes

    def shared_bytes(self, prompt: int, samples: int) -> int:
        """The source's, which nobody writes to: whole blocks or not."""
        return 0 if samples == 1 or self.mode == "reserved" else self.of_source(prompt)
