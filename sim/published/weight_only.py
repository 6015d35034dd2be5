"""What quantized weights gain in speed: weight-only decoding, 1.58 bits, single products, and eight bits at width."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np

from sim.analytic.cost import PassCost
from sim.analytic.hardware import Device
from sim.analytic.model import Attention, Ffn, Layer, ModelShape
from sim.analytic.precision import FORMATS as STORED
from sim.analytic.work import Work
from sim.published import shapes
from sim.published.quantized import OPT_175B, bitnet_shape
from sim.published.table import Published, Table
from sim.variants.quantization import Quantization

TINYCHAT = {"LLaMA-3-8B": "llama-3-8b", "LLaMA-2-7B": "llama-2-7b", "LLaMA-2-13B": "llama-2-13b",
            "Vicuna-7B": "llama-2-7b", "VILA-7B": "llama-2-7b"}  # fmt: skip
WHERE = {"RTX4090": "rtx-4090", "A100": "a100-sxm-80gb", "Jetson Orin": "orin", "A6000 8->2": "a6000",
         "A100-80 5->1": "a100-sxm-80gb"}  # fmt: skip


def gain(shape: ModelShape, where: Device, variant: Quantization, work: Work) -> float:
    """Seconds in 16 bits over seconds with the variant."""
    wide = PassCost(shape, where, shapes.FP16).seconds(work)
    return float(wide / PassCost(shape, where, shapes.FP16, variants=[variant]).seconds(work))


def awq(row: Published, table: Table) -> float:
    """Gain of W4A16 on a data sheet with default terms, four tokens of context."""
    return _awq(row, shapes.typical(WHERE[row.hardware]), Quantization("awq"))


def awq_bytes(row: Published, table: Table) -> float:
    """By bytes over bandwidth alone: decoding the weights costs nothing."""
    return _awq(row, shapes.device(WHERE[row.hardware]), Quantization("awq", dequantise="overlapped"))


def _awq(row: Published, where: Device, variant: Quantization) -> float:
    return gain(shapes.shape(TINYCHAT[row.model]), where, variant, Work.decode(1, 4))


def awq_ms(row: Published, table: Table) -> float:
    """Milliseconds a token at the effective bandwidth of the Llama-2-7B row, same device and format."""
    fitted = table.one(row, quantity=row.quantity, hardware=row.hardware, model="LLaMA-2-7B")
    return table.value(fitted.id) * _read_bytes(row.model, row.quantity) / _read_bytes(fitted.model, row.quantity)


@cache
def _read_bytes(model: str, quantity: str) -> float:
    """Bytes through main memory in a step, in 16 bits or in W4A16."""
    variants = [Quantization("awq")] if quantity == "w4a16_ms" else []
    cost = PassCost(shapes.shape(TINYCHAT[model]), shapes.device("rtx-4090"), shapes.FP16, variants=variants)
    return float(cost.counts(Work.decode(1, 4))["hbm_bytes"])


THREE_BITS = Quantization("gptq", weights=3, group="channel")


def gptq(row: Published, table: Table) -> float:
    """OPT-175B in three bits: several GPUs in turn against few."""
    return gain(OPT_175B, shapes.typical(WHERE[row.hardware]), THREE_BITS, Work.decode(1, 128))


def gptq_bytes(row: Published, table: Table) -> float:
    """By bytes over bandwidth alone."""
    bytes_alone = replace(THREE_BITS, dequantise="overlapped")
    return gain(OPT_175B, shapes.device(WHERE[row.hardware]), bytes_alone, Work.decode(1, 128))


def bitnet_latency(row: Published, table: Table) -> float:
    """Gain of 1.58 bits in a decode step on an A100 with default terms."""
    return gain(bitnet_shape(row.model), shapes.typical("a100-sxm-80gb"), Quantization("bitnet"), Work.decode(1, 512))


def bitnet_latency_roofline(row: Published, table: Table) -> float:
    """The same on the pure roofline."""
    return gain(bitnet_shape(row.model), shapes.device("a100-sxm-80gb"), Quantization("bitnet"), Work.decode(1, 512))


@cache
def _gemv_line(table: Table, quantity: str) -> tuple[float, float]:
    """Seconds of a launch and seconds a byte through the eight shapes."""
    rows = [r for r in table.rows if r.source == "bitnet-gemv" and r.quantity == quantity]
    size = [_gemv_bytes(r) for r in rows]
    slope, start = np.polyfit(size, [table.value(r.id) * 1e-6 for r in rows], 1)
    return float(start), float(slope)


def _gemv_bytes(row: Published) -> float:
    n, k = (int(side) for side in row.model.split("x"))
    stored = "ternary" if row.quantity == "w2a8_us" else "bf16"
    return n * k * STORED[stored].stored_bits / 8


def gemv(row: Published, table: Table) -> float:
    """Microseconds of one product: a launch and its bytes, both fitted on all eight shapes of the kernel."""
    start, slope = _gemv_line(table, row.quantity)
    return (start + slope * _gemv_bytes(row)) * 1e6


def feed_forward(row: Published, table: Table) -> float:
    """Speed of up and down at 2,048 tokens relative to fp16, d from the row's name."""
    d = int(row.model.split("d=")[1].split()[0])
    shape = ModelShape("ffn", d, 2, (Layer(Attention(1, 1, d, d), Ffn(4 * d, gated=False)),))

    def seconds(*variants: Quantization) -> float:
        cost = PassCost(shape, shapes.typical("a100-sxm-80gb"), shapes.FP16, variants=variants)
        kernels = cost.bounds(Work.prefill(1, 2048))
        return sum(float(b.seconds) for ops, b in kernels if ops[0].name.startswith(("mlp.up", "mlp.down")))

    return seconds() / seconds(Quantization("llm_int8"))


def awq_ms_line(row: Published, table: Table) -> float:
    """Milliseconds from a fixed time and a bandwidth through the Llama-2-7B and 13B rows of the same device."""
    known = {}
    for model in ("LLaMA-2-7B", "LLaMA-2-13B"):
        fitted = table.one(row, quantity=row.quantity, hardware=row.hardware, model=model)
        known[_read_bytes(model, row.quantity)] = table.value(fitted.id)
    (small, first), (large, second) = known.items()
    return first + (second - first) / (large - small) * (_read_bytes(row.model, row.quantity) - small)
