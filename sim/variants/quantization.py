"""Quantization: fewer bits for weights, products, KV cache, head or embedding, with the work that it adds.

Formats by name: gptq (arXiv 2210.17323) and awq (arXiv 2306.00978): W4A16 in groups of 128; smoothquant
(arXiv 2211.10438) and llm_int8 (arXiv 2208.07339): W8A8; fp8 (arXiv 2209.05433); mxfp4, nvfp4; nf4 (arXiv 2305.14314);
bitnet (arXiv 2402.17764): W1.58A8 stored in two bits; kivi (arXiv 2402.02750): 2-bit KV. Bits alone: int8, int4.
Weight-only formats read less and decode every number before it is multiplied, again for each tile of rows, so that
they lose at large batch; narrow activations multiply at the narrow rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar

from sim.analytic.model import ModelShape
from sim.analytic.ops import Op
from sim.analytic.precision import Precision
from sim.analytic.work import Work
from sim.plugin import suggest
from sim.quality import UNKNOWN, Quality
from sim.variants.number_grid import CODEBOOKS, Grid, check_grid
from sim.variants.quantized_products import Product, narrow, weight_only, wide_bytes
from workloads.errors import shown

Count = Any
KEY = "variants.quantization"
USUAL: Mapping[str, Any] = MappingProxyType({"group": "channel", "codebook": "linear", "zero_point": False})
LINEAR = ("attn.", "cross.", "mlp.", "moe.up", "moe.down", "moe.shared")

NAMED: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "gptq": {"weights": 4, "group": 128, "zero_point": True},
        "awq": {"weights": 4, "group": 128, "zero_point": True},
        "int8": {"weights": 8},
        "int4": {"weights": 4, "group": 128},
        "smoothquant": {"weights": 8, "activations": 8},
        "llm_int8": {"weights": 8, "activations": 8, "outliers": 0.001},
        "fp8": {"weights": 8, "activations": 8, "codebook": "fp8", "group": "tensor"},
        "mxfp4": {"weights": 4, "activations": 4, "codebook": "fp4", "group": 32},
        "nvfp4": {"weights": 4, "activations": 4, "codebook": "fp4", "group": 16},
        "nf4": {"weights": 4, "codebook": "nf4", "group": 64},
        "nf4_double": {"weights": 4, "codebook": "nf4", "group": 64, "double": True},
        "bitnet": {"weights": 2, "activations": 8, "codebook": "ternary", "group": "tensor"},
        "kivi": {"kv": 2, "kv_group": 32},
    }
)
# Perplexity in 16 bits -> in the format, the worst of what the source prints; what is not here is unknown.
QUALITY: Mapping[str, Quality] = MappingProxyType(
    {
        "smoothquant": Quality(
            4.38, "perplexity 2.857 -> 2.982, Llama-3-70B, WikiText2; 0.75 % for Llama-2-7B",
            "github.com/mit-han-lab/smoothquant, README",
        ),
        "llm_int8": Quality(-0.45, "perplexity 13.30 -> 13.24, 6.7B, C4", "arXiv 2208.07339, table 1"),
        "bitnet": Quality(
            -1.29, "perplexity 10.04 -> 9.91, 3B, trained as ternary from scratch", "arXiv 2402.17764, table 1"
        ),
    }
)  # fmt: skip
MODES = ("serial", "overlapped", "separate")


@dataclass(frozen=True)
class Quantization:
    """``format``: one of NAMED; every other option overrides it, None leaves what it says.

    ``weights``: bits of the linear layers. ``activations``: bits inside their products (16 or None: wide, weight-only).
    ``kv``, ``head``, ``embedding``: bits of the cache, output head and embedding table (None: as they are).
    ``group``, ``codebook``, ``zero_point``: see :class:`Grid`; head and embedding are linear with a scale a vector.
    ``kv_group``: numbers of the cache that share a 16-bit scale and zero point (None: scales are not counted).
    ``outliers``: share of a product's inputs multiplied in 16 bits. ``dequantise``: serial (before the product),
    overlapped (beside it, on the vector units) or separate (written out wide and read again).
    ``tile_rows``: rows that one decoding of the weights serves.
    """

    name: ClassVar[str] = "quantization"
    stage: ClassVar[int] = 0
    format: str | None = None
    weights: int | None = None
    activations: int | None = None
    kv: int | None = None
    head: int | None = None
    embedding: int | None = None
    group: int | str | None = None
    codebook: str | None = None
    zero_point: bool | None = None
    kv_group: int | None = None
    outliers: float | None = None
    dequantise: str = "serial"
    tile_rows: int = 128

    def __post_init__(self) -> None:
        """Raise ValueError naming option, value and what is allowed."""
        _choice("format", self.format, (None, *NAMED))
        _choice("dequantise", self.dequantise, MODES)
        _number("tile_rows", self.tile_rows, 1, 1 << 20)
        for option in ("kv", "activations"):
            _number(option, self._said(option, 16), 1 if option == "kv" else 2, 16)
        _number("kv_group", self._said("kv_group", 1), 1, 4096)
        _number("outliers", self._said("outliers", 0), 0, 0.5)
        self._check_weights()
        for option in ("head", "embedding"):
            self._vectors(option)

    def reshape(self, shape: ModelShape) -> ModelShape:
        """The shape as it is. Raises ValueError where head and embedding are one matrix but two formats."""
        if shape.tied and self.head != self.embedding:
            said = f"head {self.head}, embedding {self.embedding}"
            raise ValueError(f"{KEY}.head: {said}: {shape.name} ties them, so both must have the same bits")
        return shape

    def reformat(self, precision: Precision) -> Precision:
        """Storage formats by kind of weight, and what their products multiply in."""
        changes: dict[str, str] = {}
        if self.grid is not None:
            changes |= {"weights": self.grid.spelled, "experts": self.grid.spelled}
        if self.multiplies is not None:
            changes["compute"] = self.multiplies
        if self._said("kv", 16) < 16:
            group = self._said("kv_group", 0)
            changes["kv"] = f"{self._said('kv', 16)}bit" + (f"+32/{group}" if group else "")
        for option, key in (("head", "output"), ("embedding", "embedding")):
            vectors = self._vectors(option)
            changes |= {key: vectors.spelled, "head": precision.activations} if vectors is not None else {}
        return replace(precision, **changes)

    def rewrite(self, ops: list[Op], work: Work) -> list[Op]:
        """Exact bytes of codes and scales, and the arithmetic around each product."""
        wide = max((wide_bytes(op) for op in ops if op.inner), default=0.0)
        return [new for op in ops for new in self._around(op, wide, work)]

    # -- what the options say

    @cached_property
    def grid(self) -> Grid | None:
        """How the linear layers are stored; None where they are left alone."""
        bits = self._said("weights", 16)
        if bits == 16:
            return None
        options = {key: self._said(key, usual) for key, usual in USUAL.items()}
        return Grid(bits, **options, double=bool(self._named.get("double")))

    @cached_property
    def multiplies(self) -> str | None:
        """The narrow format of the products (int8, int4, fp8, fp4); None: weight-only."""
        bits = self._said("activations", 16)
        if self.grid is None or bits == 16:
            return None
        return f"{CODEBOOKS[self.grid.codebook].multiplies}{4 if bits <= 4 else 8}"

    @property
    def quality(self) -> Quality:
        """What the format is known to cost, with its source; unknown for anything changed by hand."""
        same = replace(self, dequantise="serial", tile_rows=128) == Quantization(self.format)
        return QUALITY.get(self.format or "", UNKNOWN) if same else UNKNOWN

    def _said(self, option: str, default: Any) -> Any:
        given = getattr(self, option)
        return self._named.get(option, default) if given is None else given

    @property
    def _named(self) -> Mapping[str, Any]:
        return NAMED[self.format] if self.format is not None else {}

    def _vectors(self, option: str) -> Grid | None:
        bits = getattr(self, option)
        return None if bits in (None, 16) else check_grid(f"{KEY}.{option}", Grid(bits))

    def _check_weights(self) -> None:
        if self.grid is None:
            if self._said("activations", 16) != 16:
                raise ValueError(f"{KEY}.activations: {self.activations}: needs weights of at most 8 bits")
            return
        grid = check_grid(f"{KEY}.weights", self.grid)
        bits = self._said("activations", 16)
        if bits == 16:
            return
        if CODEBOOKS[grid.codebook].multiplies is None:
            raise ValueError(f"{KEY}.activations: {bits}: {grid.codebook} codes have no arithmetic; leave them at 16")
        if not grid.bits <= bits <= 8:
            raise ValueError(f"{KEY}.activations: {bits}: must be from {grid.bits}, the weights' bits, to 8 (or 16)")
        if CODEBOOKS[grid.codebook].multiplies == "int" and (isinstance(grid.group, int) or grid.zero_point):
            raise ValueError(f"{KEY}.activations: {bits}: integer sums need group: channel or tensor, no zero point")

    # -- one op

    def _around(self, op: Op, wide: float, work: Work) -> list[Op]:
        name = op.name.removeprefix("encoder.")
        if name == "embed":
            return [self._gathered(op, wide, work.tokens if name == op.name else work.encoder_tokens)]
        grid = self._stored(name) if op.unit == "tensor" and op.inner else None
        if grid is None:
            return [op]
        product = Product.of(op, grid)
        if op.format != self.multiplies:
            return weight_only(product, self.dequantise, self.tile_rows)
        return narrow(product, self.dequantise, self.tile_rows, int(self.multiplies[-1]), self._said("outliers", 0))

    def _stored(self, name: str) -> Grid | None:
        """How the weights of a product are stored; None: as they were."""
        if name == "logits":
            return self._vectors("head")
        return self.grid if name.startswith(LINEAR) else None

    def _gathered(self, op: Op, wide: float, rows: Count) -> Op:
        """Rows of the table, each with its scale; :meth:`reformat` put what is wide in the activations' format."""
        grid = self._vectors("embedding")
        if grid is None or not wide:
            return op
        return replace(op, weight_bytes=op.weight_bytes * (grid.bits / 8 / wide) + rows * (grid.scale_bits / 8))


def _choice(option: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        names = [a for a in allowed if a is not None]
        said = f"{KEY}.{option}: {shown(value)}: must be one of {', '.join(names)}"
        raise ValueError(said + suggest(str(value), names))


def _number(option: str, value: Any, low: float, high: float) -> None:
    whole = isinstance(low, int) and isinstance(high, int)
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        what = "a whole number" if whole else "a number"
        raise ValueError(f"{KEY}.{option}: {shown(value)}: must be {what} from {low} to {high}")
