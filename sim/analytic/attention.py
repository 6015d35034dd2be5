"""Fused attention as four multiplications: the part of a pass that must be costed anew for every round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import numpy as np

from sim.analytic.fused import decode_seconds, prefill_seconds
from sim.analytic.hardware import Device, Terms
from sim.analytic.ops import Op
from sim.analytic.roofline import Bound, combine, larger, terms_of
from sim.analytic.tables import Table

__all__ = ["AttentionCost"]

Count = Any
Evaluate = Callable[[Count, Count, Count], tuple[Bound, Count]]  # (pairs, reads, tokens) -> times, joules


@dataclass(frozen=True)
class Fused:
    """What a measured library adds to a kernel of so many layers (sim/analytic/fused.py); ``token_s``: keys and values
    of one new token, read back.
    """

    terms: Terms
    layers: int
    kv_heads: int
    head_dim: int
    is_prefill: bool
    token_s: float


@dataclass(frozen=True)
class AttentionCost:
    """Seconds and joules of one attention kernel over its layers, linear in pairs, cached reads and tokens.

    A coefficient is seconds (``_s``) or joules (``_J``) per pair, read
    or token; ``*_tile_*`` are those of K and V read again for each tile. ``spill``: main-memory traffic of
    activations too large for on-chip memory, from ``spill_from`` tokens on. ``link_read_s``: of a cache kept elsewhere.
    ``fused``: terms of a measured library, which are not linear.
    """

    p: float
    floor_s: float
    pair_s: float
    read_s: float
    tile_s: float
    onchip_read_s: float
    onchip_tile_s: float
    onchip_token_s: float
    pair_J: float
    read_J: float
    tile_J: float
    token_J: float
    spill: Table
    spill_from: float
    link_read_s: float = 0.0
    fused: Fused | None = None

    @classmethod
    def probe(cls, evaluate: Evaluate, spill_from: float) -> AttentionCost | None:
        """Read the coefficients off ``evaluate``; None if the kernel is not of this form (a variant may change it)."""
        pair, pair_J = evaluate(1, 0, 0)
        read, read_J = evaluate(0, 1, 0)
        token, token_J = evaluate(0, 0, 1)
        kv_J = read_J * pair.kv_s / read.kv_s if pair.kv_s and read.kv_s else 0.0
        spill = Table(lambda n: _spilled(evaluate(0, 0, n), n, token_J))
        coefficients: dict[str, Any] = {
            "p": pair.p,
            "floor_s": max(pair.overhead_s, read.overhead_s),
            "pair_s": pair.compute_s,
            "read_s": read.kv_s,
            "tile_s": pair.kv_s,
            "onchip_read_s": read.onchip_s,
            "onchip_tile_s": pair.onchip_s,
            "onchip_token_s": token.onchip_s,
            "link_read_s": read.link_s,
            "pair_J": pair_J - kv_J,
            "read_J": read_J,
            "tile_J": kv_J,
            "token_J": token_J,
        }
        found: dict[str, Any] = {name: float(value) for name, value in coefficients.items()}
        part = cls(spill=spill, spill_from=spill_from, **found)
        return part if part._agrees(evaluate) else None

    def with_terms(self, kernel: Sequence[Op], device: Device) -> AttentionCost:
        """The same with what the device's library adds to ``kernel``, if anything."""
        main = next((op for op in kernel if op.attended is not None), None)
        terms = Terms() if main is None else terms_of(main, device)
        if main is None or main.attended is None or not terms.streams:
            return self
        seen = main.attended
        token_s = seen.token_bytes / (device.memory_Bps * terms.memory_efficiency)
        fused = Fused(terms, main.layers, seen.kv_heads, seen.head_dim, seen.is_prefill, token_s)
        return replace(self, fused=fused)

    def seconds(self, pairs: Count, reads: Count, tokens: Count, token_limit: float = inf) -> Count:
        """Seconds of the kernel; elementwise over rounds. ``token_limit``: more than any entry of ``tokens``."""
        if self.fused is not None:
            return self._measured_s(self.fused, pairs, reads, tokens)
        memory = reads * self.read_s
        if self.tile_s:
            memory = larger(memory, pairs * self.tile_s)
        if self.spill_from < token_limit:
            memory = memory + self.spill.seconds(tokens)
        busy = combine(pairs * self.pair_s, memory, self.p)
        if self.onchip_read_s or self.onchip_token_s:
            busy = larger(busy, self._onchip_s(pairs, reads, tokens))
        if self.link_read_s:
            busy = larger(busy, reads * self.link_read_s)
        if self.floor_s:
            busy = busy + self.floor_s * ((pairs if self.pair_s else reads) > 0)
        return busy

    def _measured_s(self, own: Fused, pairs: Count, reads: Count, tokens: Count) -> Count:
        terms, layers, pair_s = own.terms, own.layers, self.pair_s / own.layers
        read_s, added = np.maximum(reads * self.read_s, pairs * self.tile_s) / layers, 0.0
        if own.is_prefill:
            compute = prefill_seconds(terms, pairs, reads, tokens, own.head_dim, pair_s)
            read_s = read_s + tokens * own.token_s
        else:
            compute, read_s, added = decode_seconds(terms, pairs, tokens, own.kv_heads, own.head_dim, pair_s, read_s)
        memory = layers * read_s + self.spill.seconds(tokens)
        busy = larger(combine(layers * compute, memory, self.p), self._onchip_s(pairs, reads, tokens))
        return (larger(busy, reads * self.link_read_s) + (self.floor_s + layers * added)) * (pairs > 0)

    def _onchip_s(self, pairs: Count, reads: Count, tokens: Count) -> Count:
        onchip = reads * self.onchip_read_s
        if self.onchip_tile_s:
            onchip = larger(onchip, pairs * self.onchip_tile_s)
        return onchip + tokens * self.onchip_token_s

    def joules(self, pairs: Count, reads: Count, tokens: Count, token_limit: float = inf) -> Count:
        """Dynamic joules of the kernel; elementwise over rounds."""
        moved = np.maximum(reads * self.read_J, pairs * self.tile_J)
        total = pairs * self.pair_J + moved + tokens * self.token_J
        return total + self.spill.joules(tokens) if self.spill_from < token_limit else total

    def _agrees(self, evaluate: Evaluate) -> bool:
        """Whether the formula gives what the ops give, at points off the axes."""
        points = ((10_007, 1_009, 3), (99_991, 3, 1_013), (5, 5_003, 1))
        for pairs, reads, tokens in points:
            bound, energy = evaluate(pairs, reads, tokens)
            if not np.isclose(self.seconds(pairs, reads, tokens), bound.seconds, rtol=1e-9, atol=0):
                return False
            if not np.isclose(self.joules(pairs, reads, tokens), energy, rtol=1e-9, atol=0, equal_nan=True):
                return False
        return True


def _spilled(evaluated: tuple[Bound, Count], tokens: Count, token_J: float) -> tuple[Count, Count]:
    bound, energy = evaluated
    return bound.activations_s, energy - tokens * token_J
