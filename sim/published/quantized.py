"""Quantized models in bytes: codes and scales, what lies beside the weights, how many sequences fit."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from sim.analytic.cost import PassCost
from sim.analytic.memory import kv_bytes_per_token
from sim.analytic.model import ModelShape
from sim.analytic.precision import FORMATS as STORED
from sim.published import shapes
from sim.published.table import Published, Table
from sim.variants.quantization import Quantization

OPT_175B = shapes.opt("opt-175b", 12288, 96, 96)
BITNET = {
    "700M": shapes.bitnet(1536, 4096, 16, 24),
    "1.3B": shapes.bitnet(2048, 5460, 32, 24),
    "3B": shapes.bitnet(3200, 8640, 32, 26),
    "3.9B": shapes.bitnet(3200, 12800, 32, 26),
}
LLAMA = {"7B": "llama-2-7b", "13B": "llama-2-13b", "70B": "llama-2-70b"}


def weights(shape: ModelShape, *variants: Quantization) -> float:
    """Bytes of the weights in memory."""
    return PassCost(shape, shapes.device("a100-sxm-80gb"), shapes.FP16, variants=variants).bytes_weights


def k_means(row: Published, table: Table) -> float:
    """Sixteen weights of 32 bits against codes of two and a table of four."""
    grid = Quantization(weights=2, codebook="kmeans", group=16).grid
    assert grid is not None
    return 32 / STORED[grid.spelled].stored_bits


def smoothquant_memory(row: Published, table: Table) -> float:
    """OPT-175B in 16 bits over W8A8."""
    return weights(OPT_175B) / weights(OPT_175B, Quantization("smoothquant"))


def bytes_per_weight(row: Published, table: Table) -> float:
    """As the number formats of the simulator store it."""
    return STORED["fp32"].stored_bits / 8


def bitnet_shape(size: str) -> ModelShape:
    """A size of the paper: its own small Llamas, Llama-2 from 7B on."""
    return BITNET[size] if size in BITNET else shapes.shape(LLAMA[size])


def _beside(table: Table) -> float:
    """Bytes beside the weights, fitted on the 3B Llama's 7.89 GB."""
    fitted = table.one(table.known["bitnet-fig2-001"], quantity="memory_GB", model="LLaMA 3B")
    return table.value(fitted.id) * 1e9 - weights(BITNET["3B"])


def bitnet_memory(row: Published, table: Table) -> float:
    """Gigabytes of a row of table 1: weights, and what was fitted beside them."""
    kind, size = row.model.split()
    variants = [Quantization("bitnet")] if kind == "BitNet" else []
    return (weights(bitnet_shape(size), *variants) + _beside(table)) / 1e9


def bitnet_memory_ratio(row: Published, table: Table) -> float:
    """Memory of figure 2: 16 bits over 1.58, the same bytes beside both."""
    shape, beside = bitnet_shape(row.model), _beside(table)
    return (weights(shape) + beside) / (weights(shape, Quantization("bitnet")) + beside)


@cache
def _bitnet_batch(kv_bits: int) -> float:
    """Sequences of 512 tokens that 70B of 1.58 bits hold on two A100, by the room that 16 of plain Llama leave.

    The paper's 70B has a key and value head for every query head.
    """
    grouped = shapes.shape("llama-2-70b")
    layers = tuple(
        replace(layer, attention=replace(layer.attention, kv_heads=layer.attention.heads)) for layer in grouped.layers
    )
    full = replace(grouped, layers=layers)
    cache_bytes = sum(kv_bytes_per_token(full, shapes.FP16)) * 512
    room = weights(grouped) + 16 * cache_bytes
    return (room - weights(grouped, Quantization("bitnet"))) / (cache_bytes * kv_bits / 16)


def bitnet_batch(row: Published, table: Table) -> float:
    """With the cache in the bits that ``ours`` says."""
    return _bitnet_batch(int(row.argument)) / (16 if row.quantity == "batch_ratio" else 1)
