"""A model that really runs on packed weights: decoded for each tile of rows, or multiplied in narrow arithmetic.

The twin of ``sim/variants/quantization.py``; the meter counts the bytes of the arrays stored and the work around them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.reference.meter import Meter
from sim.reference.packed_matrix import FP4, FP8, Packed, Rule, nearest, pack, top
from sim.reference.transformer import Transformer

Array = NDArray[Any]
LAYER_PRODUCTS = ("attn.qkv", "attn.out", "cross.q", "cross.kv", "cross.out", "mlp.up", "mlp.down")
DECODE_FLOPS = {"linear": 1, "ternary": 1, "fp8": 1, "fp4": 2, "nf4": 2, "kmeans": 1}


@dataclass(frozen=True)
class Bits:
    """What is quantised, and how. ``activations``: bits inside the products, None for weight-only.

    ``outliers``: share of inputs, those of largest magnitude in the pass, multiplied in the wide format.
    ``separate``: weights are written out decoded and read again. ``head``, ``embedding``, ``kv``: bits, or None.
    """

    weights: Rule | None = None
    activations: int | None = None
    head: int | None = None
    embedding: int | None = None
    kv: int | None = None
    kv_group: int | None = None
    outliers: float = 0.0
    separate: bool = False
    tile_rows: int = 128


@dataclass
class Quantized(Transformer):
    """A model with ``packed`` matrices in place of some weights; the rest stays as it is."""

    bits: Bits = field(default_factory=Bits)
    packed: Mapping[str, Packed] = field(default_factory=dict)

    @staticmethod
    def of(model: Transformer, bits: Bits) -> Quantized:
        """The same model, packed. Raises ValueError for experts, whose products this twin does not run."""
        if any(layer.ffn.experts for layer in model.shape.layers):
            raise ValueError(f"{model.shape.name}: experts: not supported by the quantized witness")
        packed = {}
        for name, w in model.weights.items():
            rule = _rule(name, bits)
            if rule is not None:
                packed[name] = pack(w.T if name == "embed" else w, rule)
        return Quantized(model.shape, model.numerics, model.weights, Meter(), model.exact, bits, packed)

    def linear(self, op: str, key: str, x: Array) -> Array:
        """The product with packed weights, [m, in] -> [m, out]."""
        packed, bias = self.packed.get(key + op), self.weights.get(f"{key}{op}.bias")
        if packed is None:
            return super().linear(op, key, x)
        out = (self._wide if self._is_wide(packed) else self._narrow)(op, x, packed).astype(self.dtype)
        if bias is not None:
            self.meter.add(op, weights=bias.nbytes)
            out += bias
        return out

    def embed(self, ids: Array, positions: Array) -> Array:
        """Rows of the packed table, each with its scale, [tokens] -> [tokens, d]."""
        packed = self.packed.get("embed")
        if packed is None:
            return super().embed(ids, positions)
        table = packed.decode().T.astype(self.dtype)
        with_table = replace(self, meter=Meter(), weights={**self.weights, "embed": table}, packed={})
        x = with_table.embed(ids, positions)
        read = len(ids) * packed.nbytes // self.shape.vocab
        self.meter.add("embed", weights=read, activations=len(ids) * self.shape.d_model * self.dtype.itemsize)
        return x

    def project(self, i: int, x: Array, positions: Array, lengths: Array, prefix: str = "") -> tuple[Array, ...]:
        """Queries, keys and values; keys and values rounded to the bits of the cache."""
        q, k, v = super().project(i, x, positions, lengths, prefix)
        if self.bits.kv is None or prefix:
            return q, k, v
        return q, self._cached(k), self._cached(v)

    def _cached(self, x: Array) -> Array:
        """[tokens, heads, dim] rounded in groups along dim, or along all of a token's numbers."""
        assert self.bits.kv is not None
        group = self.bits.kv_group or x[0].size
        flat = x.reshape(len(x), -1).T
        return np.asarray(pack(flat, Rule(self.bits.kv, group, zero_point=True)).decode().T.reshape(x.shape), x.dtype)

    def _is_wide(self, packed: Packed) -> bool:
        """A matrix of more bits than the layers' is decoded, as are all where activations stay wide."""
        bits = self.bits
        return bits.activations is None or bits.weights is None or packed.rule.bits > bits.weights.bits

    def _wide(self, op: str, x: Array, packed: Packed) -> Array:
        """Decoded once for each tile of rows, or once and for all if written out."""
        k, n = packed.shape
        out = np.empty((len(x), n), self.dtype)
        tile = max(len(x), 1) if self.bits.separate else self.bits.tile_rows
        for start in range(0, len(x), tile):
            w = packed.decode().astype(self.dtype)
            self.meter.add(f"{op}.dequantise", flops=w.size * decode_flops(packed.rule))
            out[start : start + tile] = self.meter.matmul(op, x[start : start + tile], w)
        wide = k * n * self.dtype.itemsize if self.bits.separate and len(x) else 0
        self.meter.add(f"{op}.dequantise", weights=packed.nbytes + wide if wide else 0)
        self.meter.add(op, weights=wide or packed.nbytes * bool(len(x)), activations=x.nbytes + out.nbytes)
        return out

    def _narrow(self, op: str, x: Array, packed: Packed) -> Array:
        """Inputs rounded, products of levels, outputs rescaled; outlying inputs apart, in the wide format."""
        k, n = packed.shape
        outlying = self._outlying(x)
        inlying = np.setdiff1d(np.arange(k), outlying)
        out = np.empty((len(x), n))
        tile = self.bits.tile_rows
        for start in range(0, len(x), tile):
            out[start : start + tile] = self._levels_product(op, x[start : start + tile][:, inlying], packed, inlying)
        self.meter.add(op, weights=packed.nbytes * bool(len(x)), activations=x.nbytes + out.size * self.dtype.itemsize)
        return out + self._outliers_product(op, x[:, outlying], packed, outlying) if len(outlying) else out

    def _levels_product(self, op: str, x: Array, packed: Packed, rows: Array) -> Array:
        levels = packed.levels()[rows]
        if packed.rule.bits < compute_bits(self.bits.activations or 8):
            self.meter.add(f"{op}.dequantise", flops=packed.shape[0] * packed.shape[1])
        self.meter.add(f"{op}.quantise", flops=3 * x.size)
        if packed.rule.codebook == "fp4":
            return self.meter.matmul(op, _blocks_of_fp4(x, packed.rule), packed.decode()[rows])
        codes, scales = _rounded(x, self.bits.activations or 8, packed.rule.codebook)
        sums = self.meter.matmul(op, codes, levels)  # integers: exact in float64
        self.meter.add(f"{op}.rescale", flops=2 * sums.size)
        return np.asarray(sums * scales * packed.unit_scales())

    def _outlying(self, x: Array) -> Array:
        count = ceil(self.bits.outliers * x.shape[1])
        return np.sort(np.argsort(-np.abs(x).max(axis=0), kind="stable")[:count])

    def _outliers_product(self, op: str, x: Array, packed: Packed, rows: Array) -> Array:
        w = packed.decode()[rows]
        name = f"{op}.outliers"
        self.meter.add(f"{name}.dequantise", flops=w.size * decode_flops(packed.rule))
        moved = (x.size + len(x) * w.shape[1]) * self.dtype.itemsize
        self.meter.add(name, weights=ceil(w.size * packed.rule.bits / 8), activations=moved)
        return self.meter.matmul(name, x.astype(np.float64), w)


def decode_flops(rule: Rule) -> int:
    """FLOPs that decode one number: a look-up, a multiplication, a zero point taken off."""
    return DECODE_FLOPS[rule.codebook] + rule.zero_point


def compute_bits(activations: int) -> int:
    """Width of the integer arithmetic that holds activations of that many bits."""
    return 4 if activations <= 4 else 8


def rounded_weights(model: Transformer, rule: Rule) -> Transformer:
    """The same model with the matrices of its layers packed and decoded again: what weight-only rounding costs."""
    changed = {
        name: pack(w, rule).decode().astype(w.dtype) for name, w in model.weights.items() if _is_layer_product(name)
    }
    return replace(model, weights={**model.weights, **changed}, meter=Meter())


def _rule(name: str, bits: Bits) -> Rule | None:
    if name in ("logits", "embed"):
        width = bits.head if name == "logits" else bits.embedding
        return None if width is None else Rule(width)
    return bits.weights if _is_layer_product(name) else None


def _is_layer_product(name: str) -> bool:
    return name.endswith(LAYER_PRODUCTS)


def _rounded(x: Array, bits: int, codebook: str) -> tuple[Array, Array]:
    """Levels of x [m, k] with one scale a token [m, 1]: integers, or FP8 numbers."""
    levels = FP8 if codebook == "fp8" else np.arange(-top(bits), top(bits) + 1.0)
    scales = np.maximum(np.abs(x).max(axis=1, keepdims=True), 1e-12) / levels.max()
    return levels[nearest(x / scales, levels)], scales.astype(np.float64)


def _blocks_of_fp4(x: Array, rule: Rule) -> Array:
    """Inputs [m, k] in FP4 with a power-of-two scale a block, decoded."""
    assert FP4.max() == 6
    return pack(x.T, rule).decode().T
