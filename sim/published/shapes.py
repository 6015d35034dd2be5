"""Models and devices of the published rows that do not ship as files."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from sim.analytic.hardware import FORMATS, Device, Terms
from sim.analytic.model import Attention, Ffn, Layer, ModelShape
from sim.analytic.precision import Precision
from sim.build import load_device, load_shape

__all__ = ["FP16", "bitnet", "device", "opt", "palm", "shape", "typical"]

FP16 = Precision("fp16", "fp16", "fp16")
UNMEASURED = Terms(0.78, 0.85, 3.3e-6, 1.9, 0.0, 0.6e-6)  # the default terms of a device never measured
ORIN_PEAKS = {"fp16": 42.5e12, "bf16": 42.5e12, "int8": 85e12, "fp32": 5.3e12}  # Jetson AGX Orin 64 GB, data sheet


def shape(name: str) -> ModelShape:
    """A shipped model."""
    return load_shape(name, "model")


def opt(name: str, d: int, heads: int, layers: int) -> ModelShape:
    """An OPT (arXiv 2205.01068, table 1)."""
    attention = Attention(heads, heads, d // heads, d // heads, qkv_bias=True, out_bias=True, rope=False)
    block = Layer(attention, Ffn(4 * d, gated=False, bias=True))
    return ModelShape(name, d, 50272, (block,) * layers, tied=True, norm="layer")


def palm(name: str, d: int, heads: int, layers: int) -> ModelShape:
    """A PaLM (arXiv 2204.02311, table 1): one key and value head, SwiGLU of 4 d, tied embeddings."""
    block = Layer(Attention(heads, 1, 256, 256), Ffn(4 * d))
    return ModelShape(name, d, 256000, (block,) * layers, tied=True)


def bitnet(d: int, width: int, heads: int, layers: int) -> ModelShape:
    """The Llamas of arXiv 2402.17764 (sizes as in github.com/microsoft/unilm, bitnet)."""
    block = Layer(Attention(heads, heads, d // heads, d // heads), Ffn(width))
    return ModelShape("bitnet", d, 32000, (block,) * layers)


@cache
def device(name: str) -> Device:
    """A shipped data sheet; ``orin`` and ``a6000`` from near relatives."""
    if name == "orin":
        return replace(load_device("rtx-3090"), name="orin", memory_Bps=204.8e9, peaks=ORIN_PEAKS)
    if name == "a6000":
        a40 = load_device("a40")
        return replace(a40, name="a6000", memory_Bps=768e9, peaks={**a40.peaks, "fp32": 38.7e12})
    return load_device(name)


@cache
def typical(name: str) -> Device:
    """The same with the default terms of a device never measured."""
    terms = dict.fromkeys(FORMATS, UNMEASURED)
    return replace(device(name), matmul=terms, decode_attention=terms, prefill_attention=terms, elementwise=terms)
