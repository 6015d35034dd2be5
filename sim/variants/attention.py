"""Other ways to attend: what each costs, from exact tiling to low rank, features and hashing.

standard: scores written out and read again. flash, block_sparse: FlashAttention (Dao et al. 2022, arXiv 2205.14135,
theorem 2 and proposition 4: a share ``density`` of the blocks). local: each query sees ``window`` keys (arXiv
1802.05751). linear: phi(x) = elu(x) + 1, a state in place of the cache (Katharopoulos et al. 2020, arXiv 2006.16236,
section 3.4). performer: the same with ``features`` random features (arXiv 2009.14794). linformer: keys and values
projected to ``rank`` rows (arXiv 2006.04768). reformer: keys of the same hash bucket, in chunks, ``rounds`` times
(arXiv 2001.04451). smyrf: balanced clusters (arXiv 2010.05315). The last three see a whole text at once: encoders only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from sim.analytic.hardware import Device
from sim.analytic.model import Attention as Block
from sim.analytic.model import Layer, ModelShape
from sim.analytic.ops import Op
from sim.analytic.precision import FORMATS, Precision
from sim.analytic.work import Work
from sim.quality import LOSSLESS, UNKNOWN, Quality
from sim.variants.attention_ops import Features, hashing, projection, spilled, stateful
from sim.variants.layer_ops import half_of, layer_of
from sim.variants.options import choice, whole
from workloads.errors import shown

__all__ = ["KINDS", "LRA", "Attention"]

Count = Any
KEY = "variants.attention"
EXACT = ("standard", "flash")
RECURRENT = ("linear", "performer")
ENCODERS = ("linformer", "reformer", "smyrf")
KINDS = (*EXACT, "block_sparse", "local", *RECURRENT, *ENCODERS)
PROPER = ("scores", "softmax", "values")
SOURCE = "arXiv 2205.14135, table 3"
# Mean accuracy over five tasks of Long Range Arena, and how many times faster than the Transformer training was.
LRA: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "standard": (59.3, 1.0), "flash": (59.8, 2.4), "block_sparse": (59.6, 2.8), "linformer": (54.9, 2.5),
        "linear": (59.6, 2.3), "performer": (58.9, 1.8), "local": (56.0, 1.7), "reformer": (57.6, 1.3),
        "smyrf": (57.9, 1.7),
    }
)  # fmt: skip


@dataclass(frozen=True)
class Attention:
    """``kind``: standard, flash, block_sparse, local, linear, performer, linformer, reformer or smyrf.

    ``window``: keys that a query of local sees. ``density``: share of the blocks of block_sparse. ``features``: of
    performer. ``rank``: rows of linformer. ``chunk``: keys of a reformer chunk or smyrf cluster, ``rounds``: hashes,
    each of them attended by itself, ``buckets``: of one hash of reformer.
    """

    name: ClassVar[str] = "attention"
    kind: str = "flash"
    window: int = 256
    density: float = 0.25
    features: int = 256
    rank: int = 256
    chunk: int = 64
    rounds: int = 2
    buckets: int = 64

    def __post_init__(self) -> None:
        """Raise ValueError naming option, value and what is allowed."""
        choice(f"{KEY}.kind", self.kind, KINDS)
        for option in ("window", "features", "rank", "chunk", "rounds", "buckets"):
            whole(f"{KEY}.{option}", getattr(self, option), 2 if option in ("window", "buckets") else 1)
        share = self.density
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise ValueError(f"{KEY}.density: {shown(share)}: must be a share of the blocks, above 0 and at most 1")

    @property
    def clashes(self) -> Mapping[str, str]:
        """Without a cache of tokens there is nothing to evict."""
        said = "linear attention keeps a state, not tokens that could be evicted or quantized"
        return MappingProxyType({"kv_eviction": said} if self.kind in RECURRENT else {})

    def reshape(self, shape: ModelShape) -> ModelShape:
        """Windows where reads saturate. Raises ValueError where the kind does not apply."""
        if self.kind == "flash":
            return shape
        if any(one.attention.latent is not None for one in shape.layers):
            raise ValueError(f"{KEY}.kind: {self.kind}: {shape.name} has latent attention; allowed: flash")
        if self.kind in ENCODERS and not shape.encoder:
            raise ValueError(f"{KEY}.kind: {self.kind}: sees all of a text at once, and {shape.name} has no encoder")
        return replace(shape, layers=tuple(replace(one, attention=self._block(one.attention)) for one in shape.layers))

    def state_tokens(self, block: Block) -> int:
        """Tokens of KV cache that take as much memory as the state of linear attention, rounded up."""
        return ceil(self.state_numbers(block) / block.cached_width)

    def state_numbers(self, block: Block) -> int:
        """Numbers of one layer's state: a sum of phi(k) v^T and one of phi(k), for each key/value head."""
        return block.kv_heads * self.mapped(block) * (block.value_dim + 1)

    def mapped(self, block: Block) -> int:
        """Width of phi(x)."""
        return self.features if self.kind == "performer" else block.head_dim

    def keys_of(self, pairs: Count, tokens: Count) -> Count:
        """(query, key) pairs that an encoder multiplies where all of them would be ``pairs``."""
        if self.kind == "block_sparse":
            return pairs * self.density
        each = {
            "local": self.window, "linformer": self.rank,
            "reformer": 2 * self.chunk * self.rounds, "smyrf": self.chunk * self.rounds,
        }.get(self.kind)  # fmt: skip
        if each is None:
            return pairs
        return np.minimum(pairs, tokens * each) if self.kind == "local" else tokens * each

    def bound(self, shape: ModelShape, precision: Precision, device: Device) -> _Attended:
        """The ops of one shape's attention."""
        return _Attended(self, shape, precision)

    @property
    def quality(self) -> Quality:
        """Mean accuracy on Long Range Arena, trained with that attention; for a model that was not, unknown."""
        if self.kind in EXACT:
            return LOSSLESS
        whole_score, score = LRA["standard"][0], LRA[self.kind][0]
        lost = round(100 * (whole_score - score) / whole_score, 1)
        what = f"Long Range Arena, mean accuracy {whole_score} -> {score}, trained so; put into another model: unknown"
        return Quality(lost, what, SOURCE) if self == Attention(self.kind) else UNKNOWN

    def _block(self, block: Block) -> Block:
        if self.kind == "local":
            return replace(block, window=self.window if block.window is None else min(block.window, self.window))
        return replace(block, window=self.state_tokens(block) + 1) if self.kind in RECURRENT else block


@dataclass(frozen=True)
class _Attended:
    kind: Attention
    shape: ModelShape
    precision: Precision

    def resident(self, weight_bytes: Mapping[str, float]) -> dict[str, float]:
        """Linformer's two projections and performer's directions are weights of their own."""
        stack = (*self.shape.layers, *self.shape.encoder)
        numbers = {
            "linformer": 2 * self.kind.rank * self.shape.max_context * len(self.shape.encoder),
            "performer": sum(one.attention.head_dim * self.kind.features for one in stack),
        }.get(self.kind.kind, 0)
        return {**weight_bytes, **({"attn.project": numbers * self._weight_bytes} if numbers else {})}

    def rewrite(self, ops: list[Op], work: Work) -> list[Op]:
        """Attention's own ops changed, features, projections, hashes and states added; cross attention stays."""
        return ops if self.kind.kind == "flash" else [new for op in ops for new in self._changed(op, work)]

    def _changed(self, op: Op, work: Work) -> list[Op]:
        layer, name = layer_of(op, self.shape), op.name.removeprefix("encoder.")
        if layer is None or not name.startswith(("attn.", "kv.append")):
            return [op]
        if self.kind.kind in RECURRENT:
            return self._recurrent(op, name, layer, work)
        proper = name.removeprefix("attn.") in PROPER and op.driver != "tokens"
        if op.driver == "encoder_pairs":
            return self._encoded(op, layer, work)
        return [self._decoded(op, layer, work)] if proper else [op]

    def _decoded(self, op: Op, layer: Layer, work: Work) -> Op:
        if self.kind.kind == "standard":
            _, _, pairs, reads = half_of(op, work)
            return spilled(op, layer.attention, pairs, reads, self._act_bytes, self._kv_bytes)
        if self.kind.kind == "block_sparse":
            return replace(op, flops=op.flops * self.kind.density, kv_read_bytes=op.kv_read_bytes * self.kind.density)
        return op

    def _encoded(self, op: Op, layer: Layer, work: Work) -> list[Op]:
        """An encoder's attention over fewer pairs; only tiled kinds leave scores on chip."""
        kind, tokens, every = self.kind.kind, work.encoder_tokens, work.encoder_pairs
        if kind == "block_sparse":
            return [self._decoded(op, layer, work)]
        pairs = self.kind.keys_of(every, tokens)
        block = layer.attention
        per_pair = {"scores": 2 * block.heads * block.head_dim, "softmax": 5 * block.heads,
                    "values": 2 * block.heads * block.value_dim}[op.name.rpartition(".")[2]]  # fmt: skip
        op = spilled(replace(op, flops=per_pair * pairs), block, pairs, 0, self._act_bytes, self._kv_bytes)
        if kind in ENCODERS:
            op = replace(op, driver="encoder")
        return [*(self._before(op, block, tokens) if op.name.endswith("scores") else []), op]

    def _before(self, op: Op, block: Block, tokens: Count) -> list[Op]:
        """Linformer's projection along the text; hashes of queries and keys."""
        if self.kind.kind == "linformer":
            longest = self.shape.max_context
            return [projection(op, block, tokens, self.kind.rank, longest, self._weight_bytes, self._act_bytes)]
        if self.kind.kind in ("reformer", "smyrf"):
            width = self.kind.buckets // 2 if self.kind.kind == "reformer" else 1
            return [hashing(op, block, tokens, width * self.kind.rounds, self._act_bytes)]
        return []

    def _recurrent(self, op: Op, name: str, layer: Layer, work: Work) -> list[Op]:
        """phi(q), phi(k); the state updated and asked; in place of scores, softmax, values and the cache's writes."""
        block = layer.attention
        state = Features(block, self.kind.mapped(block), self.kind.kind == "performer", self._act_bytes)
        if name == "attn.qkv":
            rows = work.encoder_tokens if op.driver == "encoder" else work.tokens
            return [op, *state.mapped_and_summed(op, rows, self._weight_bytes)]
        if name == "kv.append":
            return []
        if name.removeprefix("attn.") in PROPER and op.driver != "tokens":
            if name != "attn.scores" or op.driver == "encoder_pairs":
                return []
            reads = half_of(op, work)[3]
            numbers, tokens = self.kind.state_numbers(block), self.kind.state_tokens(block)
            return [stateful(op, reads * (numbers * self._kv_bytes / tokens))]
        return [op]

    @property
    def _act_bytes(self) -> float:
        return FORMATS[self.precision.activations].stored_bytes

    @property
    def _kv_bytes(self) -> float:
        return FORMATS[self.precision.kv].stored_bytes

    @property
    def _weight_bytes(self) -> float:
        return FORMATS[self.precision.weights].stored_bytes
