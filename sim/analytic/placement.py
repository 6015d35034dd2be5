"""Where a model's numbers live: cut over the devices of a layout, and on chip or in main memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, inf

from sim.analytic.hardware import Device
from sim.analytic.layout import Layout, check_cut
from sim.analytic.model import Attention, Ffn, Layer, ModelShape

__all__ = ["Layout", "Placement", "place", "shard"]


def shard(shape: ModelShape, layout: Layout) -> ModelShape:
    """The part of ``shape`` that one device of a stage computes, as a model of its own.

    Heads, hidden units and vocabulary are divided by ``tensor``; the vocabulary is padded up to a multiple, as engines
    do. Experts are dealt to the ``expert`` groups and cut within one. Norms, the router, MLA's latent and KV heads
    fewer than devices are replicated: each device then holds ``ceil(kv_heads / tensor)`` of them. Raises ValueError
    where something does not divide.
    """
    if layout.stage_devices == 1:
        return shape
    check_cut(shape, layout)
    return replace(
        shape,
        vocab=ceil(shape.vocab / layout.tensor),
        layers=tuple(_shard_layer(layer, layout) for layer in shape.layers),
        encoder=tuple(_shard_layer(layer, layout) for layer in shape.encoder),
    )


def _shard_layer(layer: Layer, layout: Layout) -> Layer:
    return replace(
        layer,
        attention=_shard_attention(layer.attention, layout.tensor),
        cross=None if layer.cross is None else _shard_attention(layer.cross, layout.tensor),
        ffn=_shard_ffn(layer.ffn, layout),
    )


def _shard_attention(block: Attention, t: int) -> Attention:
    heads = block.heads // t
    if block.latent is not None:
        return replace(block, heads=heads, kv_heads=heads)
    return replace(block, heads=heads, kv_heads=max(1, block.kv_heads // t))


def _shard_ffn(block: Ffn, layout: Layout) -> Ffn:
    if not block.experts:
        return replace(block, width=block.width // layout.tensor)
    shared, width = block.shared_width // layout.tensor, block.width // layout.expert_tensor
    return replace(block, width=width, shared_width=shared, expert_groups=layout.expert)


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
