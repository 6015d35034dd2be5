"""Number formats: how many bits a number takes in memory, block scales included, and which format a product runs in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType

__all__ = ["FORMATS", "Format", "Precision", "number_format"]


@dataclass(frozen=True)
class Format:
    """A number format as stored: ``bits`` of a number, plus ``overhead_bits`` shared by a block of ``block``.

    ``stored_bits`` is the average: nvfp4 keeps one 8-bit scale for 16 numbers, hence 4.5 bits. A scale per row or
    tensor is below 0.01 bit and not counted (``block`` is then 0).
    """

    name: str
    bits: int
    overhead_bits: int = 0
    block: int = 0

    @property
    def stored_bits(self) -> float:
        """Bits of memory one number takes on average, its share of the block's scale included."""
        return self.bits + (self.overhead_bits / self.block if self.block else 0.0)

    @property
    def stored_bytes(self) -> float:
        """Bytes of memory one number takes on average."""
        return self.stored_bits / 8


SPELLED = re.compile(r"([1-9]|1[0-6])bit(?:\+([1-9]\d{0,5})/([1-9]\d{0,6}))?")


class _Formats(dict[str, Format]):
    """The named formats, and any other spelled by its numbers: ``3bit``, or ``3bit+19/64`` (19 bits shared by 64)."""

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and SPELLED.fullmatch(name) is not None)

    def __missing__(self, name: str) -> Format:
        found = SPELLED.fullmatch(name)
        if found is None:
            raise KeyError(name)
        bits, overhead, block = found.groups()
        return Format(name, int(bits), int(overhead or 0), int(block or 0))


# Blocks: OCP microscaling v1.0 (32 numbers, 8-bit scale), NVFP4 (16, 8-bit), GPTQ/AWQ g128 (16-bit scale, 4-bit zero
# point). BitNet's ternary numbers are stored in two bits. GGUF (ggml-common.h, blocks): q8_0 and q4_0 keep a 16-bit
# scale for 32 numbers, q4_1 a minimum too; the K kinds keep, for 256, scales of 16 or 32 numbers and scales of those.
FORMATS: Mapping[str, Format] = MappingProxyType(
    _Formats(
        (f.name, f)
        for f in (
            Format("fp32", 32),
            Format("tf32", 32),
            Format("bf16", 16),
            Format("fp16", 16),
            Format("fp8", 8),
            Format("int8", 8),
            Format("mxfp8", 8, 8, 32),
            Format("fp8_block", 8, 32, 16384),
            Format("int4", 4),
            Format("int4_g128", 4, 20, 128),
            Format("fp4", 4),
            Format("nvfp4", 4, 8, 16),
            Format("mxfp4", 4, 8, 32),
            Format("ternary", 2),
            Format("q8_0", 8, 16, 32),
            Format("q6_k", 6, 144, 256),
            Format("q5_k", 5, 128, 256),
            Format("q5_1", 5, 32, 32),
            Format("q5_0", 5, 16, 32),
            Format("q4_k", 4, 128, 256),
            Format("q4_1", 4, 32, 32),
            Format("q4_0", 4, 16, 32),
            Format("q3_k", 3, 112, 256),
            Format("q2_k", 2, 160, 256),
        )
    )
)
# Formats that differ in storage only: the device is asked for the rate of the format on the right.
_MULTIPLIES_AS = {
    "mxfp8": "fp8", "fp8_block": "fp8", "int4_g128": "int4",
    **dict.fromkeys(("q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0", "q3_k", "q2_k"), "int8"),
}  # fmt: skip


def _multiplies_as(name: str) -> str:
    if SPELLED.fullmatch(name):
        return next(wide for wide, bits in (("int4", 4), ("int8", 8), ("bf16", 16)) if FORMATS[name].bits <= bits)
    return _MULTIPLIES_AS.get(name, name)


def number_format(name: str, key: str = "format") -> Format:
    """The format called ``name``. Raises ValueError naming ``key`` and the allowed names."""
    if name in FORMATS:
        return FORMATS[name]
    near = get_close_matches(str(name), FORMATS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"precision.{key}: {name!r} is no number format; allowed: {', '.join(FORMATS)}{hint}")


@dataclass(frozen=True)
class Precision:
    """Formats of one model: ``weights`` of the linear layers, ``activations``, ``kv`` cache.

    ``head``: embedding, output head, norms and router; by default those stay in the activations' format when the
    weights are narrower than 16 bits (what GPTQ, AWQ and fp8 checkpoints do) and follow the weights otherwise.
    ``experts``: expert weights; by default what the checkpoint stores (``ModelShape.expert_format``), else
    ``weights``. ``compute``: what products of a linear layer multiply in; by default the wider of weights and
    activations, so that int4 weights with bf16 activations run at the bf16 rate. W8A8 is
    ``Precision("fp8", "bf16", compute="fp8")``: activations are 16 bits between ops and 8 inside a product.
    ``output`` and ``embedding``: the output head's matrix and the embedding table, where they differ from ``head``.
    """

    weights: str = "bf16"
    activations: str = "bf16"
    kv: str = "bf16"
    head: str | None = None
    experts: str | None = None
    compute: str | None = None
    output: str | None = None
    embedding: str | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for a name that is no number format."""
        for key in ("weights", "activations", "kv", "head", "experts", "compute", "output", "embedding"):
            name = getattr(self, key)
            if name is not None:
                number_format(name, key)

    @property
    def head_format(self) -> str:
        """Format of embedding, output head, norms and router."""
        if self.head is not None:
            return self.head
        return self.weights if FORMATS[self.weights].bits >= 16 else self.activations

    def weight_format(self, op: str, stored_experts: str | None = None) -> str:
        """Format that the weights of the op called ``op`` are stored in (names: docs/conventions.md)."""
        name = op.removeprefix("encoder.")
        if name in ("moe.up", "moe.down"):
            return self.experts or stored_experts or self.weights
        if name.startswith(("attn.", "cross.", "mlp.", "moe.shared")):
            return self.weights
        apart = {"logits": self.output, "embed": self.embedding}.get(name)
        return apart or self.head_format

    def product_format(self, weight_format: str) -> str:
        """Format that a product with weights of ``weight_format`` multiplies in; the device may fall back further."""
        if self.compute is not None and FORMATS[weight_format].bits <= FORMATS[self.weights].bits:
            return _multiplies_as(self.compute)
        wider = max(weight_format, self.activations, key=lambda name: FORMATS[name].bits)
        if FORMATS[weight_format].bits == FORMATS[self.activations].bits:
            wider = weight_format
        return _multiplies_as(wider)

    @property
    def attention_format(self) -> str:
        """Format of the products with keys and values: that of the activations."""
        return _multiplies_as(self.activations)
