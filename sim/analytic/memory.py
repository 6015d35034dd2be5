"""What a device's memory holds: weights, workspace, KV cache; and the arithmetic of not fitting."""

from __future__ import annotations

from dataclasses import dataclass

from sim.analytic.model import ModelShape
from sim.analytic.precision import FORMATS, Precision
from sim.analytic.units import show_bytes

__all__ = ["DoesNotFit", "MemoryBudget", "cross_bytes_per_token", "kv_bytes_per_token", "memory_budget", "weight_bytes"]


class DoesNotFit(ValueError):
    """A legal question with the answer no: what was asked for is larger than the memory. The message adds it up."""


def weight_bytes(shape: ModelShape, precision: Precision) -> dict[str, float]:
    """Bytes of the resident weights by op name, block scales included; a tied head is stored once."""
    return {
        name: count * FORMATS[precision.weight_format(name, shape.expert_format)].stored_bytes
        for name, count in shape.parameters().items()
    }


def kv_bytes_per_token(shape: ModelShape, precision: Precision) -> tuple[float, ...]:
    """Bytes that one cached token takes over all layers of each attention kind, in the order of ``shape.windows``."""
    per_number = FORMATS[precision.kv].stored_bytes
    return tuple(
        sum(layer.attention.cached_width * per_number for layer in shape.layers if layer.attention.window == window)
        for window in shape.windows
    )


def cross_bytes_per_token(shape: ModelShape, precision: Precision) -> float:
    """Bytes that one encoder token takes in the cross-attention caches of all decoder layers."""
    blocks = (layer.cross for layer in shape.layers if layer.cross is not None)
    return sum(block.cached_width for block in blocks) * FORMATS[precision.kv].stored_bytes


@dataclass(frozen=True)
class MemoryBudget:
    """A device's memory line by line, in bytes; the lines add up to ``capacity_bytes``."""

    capacity_bytes: float
    lines: tuple[tuple[str, float], ...]

    @property
    def kv_pool_bytes(self) -> float:
        """What is left for the KV cache."""
        return dict(self.lines)["KV pool"]


def memory_budget(
    device_name: str,
    capacity_bytes: float,
    weights_bytes: float,
    *,
    draft_bytes: float = 0.0,
    workspace_bytes: float = 0.0,
    memory_fraction: float = 1.0,
    least_kv_bytes: float = 0.0,
) -> MemoryBudget:
    """Split one device's memory; the KV pool gets what is left of ``memory_fraction`` of it.

    Raises DoesNotFit, with the arithmetic, if less than ``least_kv_bytes`` is left, and ValueError for a
    ``memory_fraction`` outside (0, 1].
    """
    if not 0 < memory_fraction <= 1:
        raise ValueError(f"memory_fraction: {memory_fraction!r} is outside (0, 1]")
    reserve = capacity_bytes * (1 - memory_fraction)
    pool = capacity_bytes - reserve - weights_bytes - draft_bytes - workspace_bytes
    parts = (("weights", weights_bytes), ("draft weights", draft_bytes), ("workspace", workspace_bytes))
    if pool < least_kv_bytes or pool <= 0:
        raise DoesNotFit(_refusal(device_name, capacity_bytes, parts, reserve, least_kv_bytes))
    return MemoryBudget(capacity_bytes, (*parts, ("KV pool", pool), ("reserve", reserve)))


def _refusal(name: str, capacity: float, parts: tuple[tuple[str, float], ...], reserve: float, least_kv: float) -> str:
    wanted = [(what, size) for what, size in (*parts, ("reserve", reserve), ("least KV", least_kv)) if size]
    added = " + ".join(f"{what} {show_bytes(size)}" for what, size in wanted)
    total = sum(size for _, size in wanted)
    return f"{name}: {added} = {show_bytes(total)}, which leaves no KV cache in {show_bytes(capacity)} of memory"
