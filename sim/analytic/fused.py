"""Fused attention as kernels really run: whole tiles, the longest sequence, cached tokens split over the device.

What a (device, kernel library) adds to the roofline of attention (``Terms``), as functions of a pass's totals: pairs,
reads and tokens, and so of keys per token. Where sequences differ in length their mean stands for all. Elementwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.analytic.hardware import Terms

__all__ = ["HEAD_DIM", "Attended", "decode_seconds", "layout_keys", "prefill_seconds"]

Count = Any
HEAD_DIM = 128  # of which walk_s is one token's share
WIDE = 32  # query heads per KV head beyond which libraries fall back to other kernels


@dataclass(frozen=True, slots=True)
class Attended:
    """What one attention kernel attends to, over the batch, and its heads on this device.

    ``pairs``: (query, key) pairs; ``reads``: cached tokens read; ``tokens``: queries; counts as in Work.
    ``token_bytes``: keys and values of one new token, which a prefill kernel reads back.
    """

    pairs: Count
    reads: Count
    tokens: Count
    heads: int
    kv_heads: int
    head_dim: int
    windowed: bool
    is_prefill: bool
    token_bytes: float


def layout_keys(heads: int, kv_heads: int, head_dim: int, windowed: bool) -> tuple[str, ...]:
    """Names under which a head layout may have terms of its own, the closest first: ``gqa-128-window`` ... ``any``."""
    group = heads // max(kv_heads, 1)
    kind = "mha" if group <= 1 else "gqa" if group <= WIDE else "wide"
    wide = "64" if head_dim <= 64 else "128" if head_dim <= 128 else "256"
    reach = "window" if windowed else "full"
    return f"{kind}-{wide}-{reach}", f"{kind}-{wide}", f"{wide}-{reach}", kind, wide, "any"


def decode_seconds(
    terms: Terms, pairs: Count, tokens: Count, kv_heads: Count, head_dim: Count, pair_s: Count, memory_s: Count
) -> tuple[Count, Count, Count]:
    """(compute, memory, added) seconds of one layer.

    Every token pays for ``tile_tokens`` keys at least; the keys of one sequence are walked in order (``walk_s`` a key
    of 128 head dimensions); every KV head of a token costs ``sequence_s`` beside what is read; keys split over the
    device are put together again, for which ``split_s`` is added beyond some ``split_tokens``.
    """
    keys = pairs / np.maximum(tokens, 1)
    compute = np.maximum(pairs, tokens * terms.tile_tokens) * pair_s
    compute = np.maximum(compute, keys * (terms.walk_s * head_dim / HEAD_DIM))
    memory = memory_s + tokens * (terms.sequence_s * kv_heads)
    return compute, memory, terms.split_s * (keys / (keys + terms.split_tokens))


def prefill_seconds(terms: Terms, pairs: Count, reads: Count, tokens: Count, head_dim: Count, pair_s: Count) -> Count:
    """Compute seconds of one layer: diagonal tiles are computed whole, and the longest row is waited for.

    Greedy scheduling: all the work spread evenly, plus the longest piece (Graham 1966). The last query of one sequence
    sees reads + tokens keys; of several equal ones without a cache, twice the mean: the smaller of the two is taken.
    """
    tile = terms.tile_tokens
    seen = np.minimum(2.0 * (pairs / np.maximum(tokens, 1)), reads + tokens)
    walk = seen * (terms.walk_s * head_dim / HEAD_DIM)
    return (pairs + np.maximum(tokens, tile) * (0.5 * tile)) * pair_s + walk
