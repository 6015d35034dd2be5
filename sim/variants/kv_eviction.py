"""A KV cache of fixed size: each sequence keeps ``budget`` tokens of every layer and evicts the rest.

window: the last tokens (Longformer's sliding window, arXiv 2004.05150, section 3.1). streaming: StreamingLLM (Xiao et
al. 2023, arXiv 2309.17453, section 3.2): the first ``sinks`` tokens and the last ones, positions counted inside the
cache. h2o: H2O (Zhang et al. 2023, arXiv 2306.14048, algorithm 1): ``recent`` last tokens, and those whose attention
weights summed up highest, by key/value head. A query sees min(budget, position + 1) tokens, itself included, and a pass
reads min(cached, budget - 1) of them. Memory saturates with the reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar

from sim.analytic.hardware import Device
from sim.analytic.model import Layer, ModelShape
from sim.analytic.ops import Op
from sim.analytic.precision import Precision
from sim.analytic.work import Work
from sim.quality import UNKNOWN, Quality
from sim.variants.layer_ops import half_of, layer_of
from sim.variants.options import choice, whole
from workloads.errors import shown

__all__ = ["KvEviction"]

Count = Any
KEY = "variants.kv_eviction"
METHODS = ("streaming", "h2o", "window")
SCORE_BYTES = 4  # a float32 sum for each key/value head and token kept
NO_ROLLBACK = "rejected drafts have evicted tokens and added to scores by then; streaming and window can roll back"
# Every policy that verifies drafts; tests/test_variant_kv_eviction.py holds the list complete.
VERIFYING = (
    "adaptive", "bigram", "bild", "blockwise", "input_copy", "load_adaptive", "ngram", "retrieval", "speculative",
    "tandem", "text_editing", "tree",
)  # fmt: skip


@dataclass(frozen=True)
class KvEviction:
    """``budget``: tokens kept of every sequence and layer. ``method``: streaming, h2o or window.

    ``sinks``: first tokens that streaming never evicts. ``recent``: last tokens that h2o never evicts, half of the
    budget where None. Layers with a window no larger than the budget stay as they are (method window only).
    """

    name: ClassVar[str] = "kv_eviction"
    budget: int = 1024
    method: str = "streaming"
    sinks: int = 4
    recent: int | None = None

    def __post_init__(self) -> None:
        """Raise ValueError naming option, value and what is allowed."""
        whole(f"{KEY}.budget", self.budget, 2, 1 << 24)
        choice(f"{KEY}.method", self.method, METHODS)
        whole(f"{KEY}.sinks", self.sinks, 0, 1 << 20)
        if self.method == "streaming" and self.sinks > self.budget - 2:
            raise ValueError(f"{KEY}.sinks: {self.sinks}: must leave two of the budget of {self.budget} tokens")
        if self.recent is not None:
            whole(f"{KEY}.recent", self.recent, 0, 1 << 24)
            if self.recent > self.budget - 2:
                raise ValueError(f"{KEY}.recent: {self.recent}: must leave two of the budget of {self.budget} tokens")

    @property
    def clashes(self) -> Mapping[str, str]:
        """H2O cannot take back what a verification added to its scores."""
        return MappingProxyType(dict.fromkeys(VERIFYING, NO_ROLLBACK) if self.method == "h2o" else {})

    def reshape(self, shape: ModelShape) -> ModelShape:
        """Every decoder layer with a window of the budget. Raises ValueError for encoders, latents, smaller windows."""
        if not shape.layers:
            raise ValueError(f"{KEY}: {shape.name} is an encoder, which keeps no cache")
        return replace(shape, layers=tuple(self._layer(layer, shape.name) for layer in shape.layers))

    def bound(self, shape: ModelShape, precision: Precision, device: Device) -> _Bookkeeping:
        """What the method does beside attention, on one device."""
        return _Bookkeeping(self.method, shape)

    @property
    def quality(self) -> Quality:
        """Unknown: it depends on the text; docs/policies/kv-eviction.md has what the witness measures."""
        return UNKNOWN

    def _layer(self, layer: Layer, model: str) -> Layer:
        block = layer.attention
        if self.method != "window":
            if block.latent is not None:
                said = f"{self.method}: {model} has latent attention, whose heads share what is cached"
                raise ValueError(f"{KEY}.method: {said}")
            if block.window is not None and block.window <= self.budget:
                said = f"{model} has layers with a window of {block.window}; take a smaller budget, or method window"
                raise ValueError(f"{KEY}.budget: {shown(self.budget)}: {said}")
        window = self.budget if block.window is None else min(block.window, self.budget)
        return replace(layer, attention=replace(block, window=window))


@dataclass(frozen=True)
class _Bookkeeping:
    method: str
    shape: ModelShape

    def rewrite(self, ops: list[Op], work: Work) -> list[Op]:
        """StreamingLLM rotates each query once more, for the sinks; H2O adds up weights and looks for the smallest."""
        if self.method == "window":
            return ops
        return [new for op in ops for new in (op, *self._beside(op, work))]

    def _beside(self, op: Op, work: Work) -> list[Op]:
        layer = layer_of(op, self.shape)
        if layer is None or op.name not in ("attn.rope", "attn.values"):
            return []
        if self.method == "streaming":
            return [_reindexed(op, layer)] if op.name == "attn.rope" else []
        return [_scored(op, layer, work)] if op.name == "attn.values" else []


def _reindexed(rope: Op, layer: Layer) -> Op:
    """Queries rotated to their place inside the cache: only their distance to the sinks is not the true one."""
    block = layer.attention
    every = block.heads + block.kv_heads
    return replace(
        rope,
        name="attn.reindex",
        flops=rope.flops // every * block.heads,
        activation_bytes=rope.activation_bytes / every * block.heads,
    )


def _scored(values: Op, layer: Layer, work: Work) -> Op:
    """Weights added up by key/value head, the least found; the sums are read and written with the cache.

    Beside fused decode attention it runs in that kernel; a prefill needs the weights once more, in a kernel of its own.
    """
    block = layer.attention
    half, _, pairs, reads = half_of(values, work)
    state_bytes = SCORE_BYTES * block.kv_heads
    fused = half == "decode" and values.kernel.endswith("/attn.decode")
    return Op(
        "attn.evict",
        values.kernel if fused else f"{values.kernel.split('/')[0]}/attn.evict.{half}",
        "vector",
        "fp32",
        values.terms,
        values.driver,
        values.layers,
        flops=(block.heads + block.kv_heads) * pairs,
        kv_read_bytes=state_bytes * reads,
        kv_write_bytes=state_bytes * reads,
        activation_bytes=state_bytes * work.half_tokens(half),
    )
