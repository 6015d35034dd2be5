"""Where a model's numbers live: cut over devices (tensor parallelism), and on chip or in main memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, inf

from sim.analytic.hardware import Device
from sim.analytic.model import Attention, Ffn, Layer, ModelShape

__all__ = ["Layout", "Placement", "place", "shard"]


@dataclass(frozen=True)
class Layout:
    """How one replica is cut: ``tensor`` devices share every layer.

    ``pipeline`` and ``data`` are named so that a file can say 1; more than 1 raises ValueError.
    """

    tensor: int = 1
    pipeline: int = 1
    data: int = 1

    def __post_init__(self) -> None:
        """Raise ValueError naming the key for anything that is not implemented."""
        for key in ("tensor", "pipeline", "data"):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"layout.{key}: {value!r} must be a whole number of at least 1")
        if self.pipeline > 1:
            raise ValueError(f"layout.pipeline: {self.pipeline} is not supported yet; allowed: 1 (use tensor)")
        if self.data > 1:
            raise ValueError(f"layout.data: {self.data} is not supported inside a replica; allowed: 1 (use replicas)")

    @property
    def devices(self) -> int:
        """Devices of one replica."""
        return self.tensor * self.pipeline * self.data


def shard(shape: ModelShape, layout: Layout) -> ModelShape:
    """The part of ``shape`` that one device of ``layout`` computes, as a model of its own.

    Heads, hidden units (of every expert) and vocabulary are divided; the vocabulary is padded up to a multiple, as
    engines do. Norms, the router, MLA's latent and KV heads fewer than devices are replicated: each device then
    holds ``ceil(kv_heads / tensor)`` of them. Raises ValueError where heads or widths do not divide.
    """
    if layout.tensor == 1:
        return shape
    t = layout.tensor
    return replace(
        shape,
        vocab=ceil(shape.vocab / t),
        layers=tuple(_shard_layer(layer, t) for layer in shape.layers),
        encoder=tuple(_shard_layer(layer, t) for layer in shape.encoder),
    )


def _shard_layer(layer: Layer, t: int) -> Layer:
    return replace(
        layer,
        attention=_shard_attention(layer.attention, t),
        cross=None if layer.cross is None else _shard_attention(layer.cross, t),
        ffn=_shard_ffn(layer.ffn, t),
    )


def _shard_attention(block: Attention, t: int) -> Attention:
    heads = _divide(block.heads, t, "attention heads")
    if block.latent is not None:
        return replace(block, heads=heads, kv_heads=heads)
    if block.kv_heads < t:
        if t % block.kv_heads:
            raise ValueError(f"layout.tensor: {block.kv_heads} KV heads cannot be replicated evenly over {t} devices")
        return replace(block, heads=heads, kv_heads=1)
    return replace(block, heads=heads, kv_heads=_divide(block.kv_heads, t, "KV heads"))


def _shard_ffn(block: Ffn, t: int) -> Ffn:
    shared = _divide(block.shared_width, t, "shared expert width")
    return replace(block, width=_divide(block.width, t, "feed-forward width"), shared_width=shared)


def _divide(count: int, t: int, what: str) -> int:
    if count % t:
        raise ValueError(f"layout.tensor: {t} does not divide the {what} ({count})")
    return count // t


@dataclass(frozen=True)
class Placement:
    """What one device keeps on chip (docs/conventions.md, "What touches memory").

    ``resident``: all weights are read from on-chip memory. ``free_bytes``: on-chip memory left for the
    activations of one op. ``tile_bytes``: what a flash-attention tile may use; infinite where the main memory is
    itself on chip or nothing is known, so that K and V are read once.
    """

    resident: bool
    free_bytes: float
    tile_bytes: float


def place(device: Device, weight_bytes: float, claim_bytes: float = 0.0) -> Placement:
    """Put ``weight_bytes`` on chip if all fit beside ``claim_bytes`` of higher claims; the rest is for activations.

    Weights go there only where the on-chip bandwidth is known: without it their reads could not be timed.
    """
    onchip = device.onchip
    left = max(0.0, onchip.capacity_bytes - claim_bytes)
    resident = onchip.bandwidth_Bps is not None and 0 < weight_bytes <= left
    free = left - weight_bytes if resident else left
    return Placement(resident, free, _tile(onchip.capacity_bytes, onchip.near_bytes, free))


def _tile(capacity_bytes: float, near_bytes: float | None, free_bytes: float) -> float:
    if capacity_bytes > 0:
        return free_bytes
    return inf if near_bytes is None else near_bytes
