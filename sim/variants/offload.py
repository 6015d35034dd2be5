"""Weights or KV cache kept in the host's memory, or in flash, and fetched over a link whenever a pass needs them.

FlexGen (Sheng et al. 2023, arXiv 2303.06865, section 4.2): a share of the weights and of the cache lies elsewhere, and
the fetch of what comes next runs beside the work. LLM in a flash (Alizadeh et al. 2023, arXiv 2312.11514, section 2):
of a feed-forward block only the neurons that are predicted and not held yet (``loaded``) are fetched, in chunks that
decide the throughput: ``chunk / (chunk / bandwidth + request)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from sim.analytic.hardware import GB, MICRO, Device
from sim.analytic.model import ModelShape
from sim.analytic.ops import Op
from sim.analytic.precision import FORMATS, Precision
from sim.analytic.work import Work
from sim.quality import LOSSLESS, UNKNOWN, Quality
from sim.variants.layer_ops import half_of, layer_of
from workloads.errors import shown

__all__ = ["Offload"]

Count = Any
KEY = "variants.offload"
LAYERS = ("attn.", "cross.", "mlp.", "moe.", "encoder.attn.", "encoder.mlp.", "encoder.moe.")
# 8 KiB chunks at 1.25 GB/s where long reads get 6.1 (arXiv 2312.11514, table 2): 5.2 us a chunk beyond its bytes.
REQUEST_US = 5.2


@dataclass(frozen=True)
class Offload:
    """``weights``, ``kv``: shares of the layers' weights and of the cache that lie behind the link.

    ``link_GBps``: its rate, None for the device's link to its host. ``overlap``: fetched while the product or attention
    that needs it runs (the longer of the two counts), else before it. ``loaded``: share of the offloaded feed-forward
    weights that one token fetches; a batch fetches the union. ``chunk_KiB``: bytes fetched in one request, None for
    long reads at the full rate; ``request_us``: time of a request beyond its bytes.
    """

    name: ClassVar[str] = "offload"
    stage: ClassVar[int] = 2
    weights: float = 0.0
    kv: float = 0.0
    link_GBps: float | None = None
    overlap: bool = True
    loaded: float = 1.0
    chunk_KiB: float | None = None
    request_us: float = REQUEST_US

    def __post_init__(self) -> None:
        """Raise ValueError naming option, value and what is allowed."""
        for option in ("weights", "kv", "loaded"):
            _number(option, getattr(self, option), 0.0, 1.0)
        for option, low, high in (("link_GBps", 1e-3, 1e5), ("chunk_KiB", 1e-2, 1e7)):
            if getattr(self, option) is not None:
                _number(option, getattr(self, option), low, high)
        _number("request_us", self.request_us, 0.0, 1e6)
        if not isinstance(self.overlap, bool):
            raise ValueError(f"{KEY}.overlap: {shown(self.overlap)}: must be true or false")

    def reshape(self, shape: ModelShape) -> ModelShape:
        """The shape as it is. Raises ValueError for latent attention."""
        if any(layer.attention.latent is not None for layer in shape.layers):
            raise ValueError(f"{KEY}: {shape.name} has latent attention, whose fetches are not modelled")
        return shape

    def rate_Bps(self, device: Device) -> float:
        """Bytes a second in chunks of this size. Raises ValueError where the device's host link is unknown."""
        host = device.host_link
        rate = host.bandwidth_Bps and host.bandwidth_Bps * host.efficiency
        if self.link_GBps is not None:
            rate = self.link_GBps * GB
        if rate is None:
            raise ValueError(f"{KEY}.link_GBps: missing: the profile of {device.name} gives no link to its host")
        if self.chunk_KiB is None:
            return rate
        chunk = self.chunk_KiB * 1024
        return chunk / (chunk / rate + self.request_us * MICRO)

    def bound(self, shape: ModelShape, precision: Precision, device: Device) -> _Fetched:
        """The fetches of one device."""
        return _Fetched(self, shape, FORMATS[precision.kv].stored_bytes, self.rate_Bps(device))

    @property
    def quality(self) -> Quality:
        """Nothing is lost, unless neurons that a predictor leaves out are never fetched."""
        return LOSSLESS if self.loaded == 1.0 else UNKNOWN


@dataclass(frozen=True)
class _Fetched:
    asked: Offload
    shape: ModelShape
    kv_bytes: float
    link_Bps: float

    def resident(self, weight_bytes: Mapping[str, float]) -> dict[str, float]:
        """What stays on the device."""
        left = 1.0 - self.asked.weights
        return {op: size * (left if op.startswith(LAYERS) else 1.0) for op, size in weight_bytes.items()}

    def cached(self, bytes_per_token: tuple[float, ...]) -> tuple[float, ...]:
        """The device's share of the cache; the host's is taken to be large enough."""
        return tuple(size * (1.0 - self.asked.kv) for size in bytes_per_token)

    def rewrite(self, ops: list[Op], work: Work) -> list[Op]:
        """Bytes over the link, in the kernel that needs them or in one before it."""
        return [new for op in ops for new in self._with(op, work)]

    def _with(self, op: Op, work: Work) -> list[Op]:
        moved = self._weights(op, work) if op.inner else self._cache(op, work)
        if moved is None or layer_of(op, self.shape) is None:
            return [op]
        if self.asked.overlap and op.driver[0] != "prefill":  # a chunk's K and V are read by tiles, fetched once
            return [replace(op, link_bytes=moved, link_Bps=self.link_Bps)]
        kernel = f"{op.kernel}.{op.name.rpartition('.')[2]}.fetch"
        fetch = Op(f"{op.name}.fetch", kernel, "link", "", "link", op.driver, op.layers)
        alone = replace(fetch, link_bytes=moved, link_Bps=self.link_Bps)
        return [alone, op]

    def _weights(self, op: Op, work: Work) -> Count | None:
        """Of a product: the share of its weights, of a feed-forward block only the neurons that some row needs."""
        asked, name = self.asked, op.name.removeprefix("encoder.")
        if not asked.weights or not name.startswith(LAYERS):
            return None
        share: Count = asked.weights
        if asked.loaded < 1.0 and name in ("mlp.up", "mlp.down"):
            rows = np.asarray(work.encoder_tokens if name != op.name else work.tokens, dtype=np.float64)
            share = asked.weights * (1.0 - np.power(1.0 - asked.loaded, rows))
        return op.weight_bytes * share

    def _cache(self, op: Op, work: Work) -> Count | None:
        """Of attention: cached keys and values once a pass; of the write: the new ones."""
        layer = layer_of(op, self.shape)
        if not self.asked.kv or layer is None:
            return None
        if op.name == "kv.append":
            return op.kv_write_bytes * self.asked.kv
        if op.name not in ("attn.scores", "attn.values") or isinstance(op.driver, str):
            return None
        block = layer.attention
        width = block.kv_heads * (block.head_dim if op.name == "attn.scores" else block.value_dim)
        return half_of(op, work)[3] * (width * self.kv_bytes * self.asked.kv)


def _number(option: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{KEY}.{option}: {shown(value)}: must be a number from {low:g} to {high:g}")
