"""What if query heads shared keys and values otherwise: one head each (MHA), groups (GQA), one for all (MQA), latent.

Shazeer 2019 (MQA, arXiv 1911.02150); Ainslie et al. 2023 (GQA, arXiv 2305.13245); DeepSeek-V2 (MLA, arXiv 2405.04434,
section 2.1). A layer keeps ``2 Hq dh`` numbers a token with MHA, ``2 G dh`` with G groups, ``2 dh`` with MQA, and
``rank + rope`` with a latent (table 1 there). A what-if: such a model has to be trained, or trained further.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from sim.analytic.model import Attention, Latent, Layer, ModelShape
from sim.quality import UNKNOWN, Quality
from sim.variants.options import choice, whole

__all__ = ["KvSharing"]

KEY = "variants.kv_sharing"
KINDS = ("mha", "gqa", "mqa", "mla")
TABLE = "arXiv 2305.13245, table 1"
UPTRAINED = {
    "mqa": Quality(1.3, "mean score of 7 tasks 47.2 -> 46.6, T5-XXL trained 5 % further", TABLE),
    "gqa-8": Quality(0.2, "mean score of 7 tasks 47.2 -> 47.1, T5-XXL trained 5 % further", TABLE),
}


@dataclass(frozen=True)
class KvSharing:
    """``kind``: mha, gqa, mqa or mla. ``groups``: key/value heads of gqa, a divisor of the query heads.

    Of mla: ``rank``: numbers of the latent, None for 4 head dimensions; ``rope``: of the rotary key that all heads
    share, None for half a head dimension (DeepSeek-V2's choices); ``q_rank``: low rank of the queries, None for none.
    Query/key norms and biases are left out of mla. Models that are latent already become plain with heads of their
    part without rotation.
    """

    name: ClassVar[str] = "kv_sharing"
    kind: str = "gqa"
    groups: int = 8
    rank: int | None = None
    rope: int | None = None
    q_rank: int | None = None

    def __post_init__(self) -> None:
        """Raise ValueError naming option and value."""
        choice(f"{KEY}.kind", self.kind, KINDS)
        whole(f"{KEY}.groups", self.groups, 1)
        for option in ("rank", "rope", "q_rank"):
            if getattr(self, option) is not None:
                whole(f"{KEY}.{option}", getattr(self, option), 2 if option == "rope" else 1)
        if self.rope is not None and self.rope % 2:
            raise ValueError(f"{KEY}.rope: {self.rope}: must be even, since rotation turns pairs")

    def reshape(self, shape: ModelShape) -> ModelShape:
        """Every layer with the other attention. Raises ValueError where heads do not divide, or a latent cannot be."""
        if self.kind == "mla" and shape.encoder:
            raise ValueError(f"{KEY}.kind: mla: {shape.name} has an encoder; latent attention is modelled for decoders")
        layers, encoder = (tuple(self._layer(one, shape.name) for one in s) for s in (shape.layers, shape.encoder))
        return replace(shape, layers=layers, encoder=encoder)

    @property
    def quality(self) -> Quality:
        """T5-XXL's loss for MQA and 8 groups, when trained further; otherwise unknown."""
        return UPTRAINED.get(f"gqa-{self.groups}" if self.kind == "gqa" else self.kind, UNKNOWN)

    def _layer(self, layer: Layer, model: str) -> Layer:
        cross = None if layer.cross is None else self._block(layer.cross, model)
        return replace(layer, attention=self._block(layer.attention, model), cross=cross)

    def _block(self, block: Attention, model: str) -> Attention:
        if self.kind == "mla":
            return self._latent(block, model)
        if block.latent is not None:
            block = replace(block, latent=None, head_dim=block.latent.nope_dim)
        heads = {"mha": block.heads, "gqa": self.groups, "mqa": 1}[self.kind]
        if block.heads % heads:
            raise ValueError(f"{KEY}.groups: {heads}: must divide the {block.heads} query heads of {model}")
        return replace(block, kv_heads=heads)

    def _latent(self, block: Attention, model: str) -> Attention:
        if block.sinks:
            raise ValueError(f"{KEY}.kind: mla: {model} has attention sinks, which latent attention has not")
        nope = block.head_dim if block.latent is None else block.latent.nope_dim
        rope = (nope // 4 * 2 if self.rope is None else self.rope) if block.rope else 0
        rank = 4 * nope if self.rank is None else self.rank
        latent = Latent(self.q_rank, rank, rope, nope)
        return replace(block, kv_heads=block.heads, head_dim=nope + rope, latent=latent, qkv_bias=False, qk_norm=0)
