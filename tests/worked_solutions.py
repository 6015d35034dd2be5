"""Worked problems of teaching texts, answered by the project's own objects: shapes, devices, passes, theory.

``SOLVED`` maps a row of tests/data/worked_problems.csv to a function that gives its answer in the row's unit. Rows that
are not here are plain arithmetic (pods of chips, queries a second) and are left to their own expression.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

from analysis.plots import energy_ladder_table
from sim import theory
from sim.analytic.collectives import link_seconds, sent_bytes
from sim.analytic.cost import PassCost
from sim.analytic.hardware import FORMATS, Device, Link, Terms
from sim.analytic.memory import kv_bytes_per_token, weight_bytes
from sim.analytic.model import Attention, Ffn, Layer, ModelShape
from sim.analytic.ops import Op
from sim.analytic.ops import ops as ops_of
from sim.analytic.placement import Placement
from sim.analytic.precision import Precision
from sim.analytic.roofline import Bound, on_device
from sim.analytic.work import Work
from sim.build import load_device, load_shape

INT8 = Precision(weights="int8", kv="int8")
BF16 = Precision()
NOTHING_ON_CHIP = Placement(resident=False, free_bytes=0.0, tile_bytes=float("inf"))


# -- devices as the texts round them


def chip(bf16: float, memory_Bps: float, chips: int = 1) -> Device:
    """A textbook device of these rates, int8 twice as fast as bf16; several ``chips`` count as one."""
    plain = dict.fromkeys(FORMATS, Terms())
    peaks = {"bf16": bf16 * chips, "int8": 2 * bf16 * chips}
    return replace(
        load_device("tpu-v5e"), peaks=peaks, memory_Bps=memory_Bps * chips, matmul=plain, decode_attention=plain
    )


V5E = chip(1.97e14, 8.1e11)


def product(
    device: Device, rows: float, inputs: float, outputs: float, number: str = "bf16", stored: float = 2
) -> Bound:
    """[rows, inputs] @ [inputs, outputs] in a format, weights of ``stored`` bytes, activations through main memory."""
    width = {"bf16": 2, "int8": 1}[number]
    moved = width * rows * (inputs + outputs)
    flops, weights = 2 * rows * inputs * outputs, stored * inputs * outputs
    op = Op("x", "x", "tensor", number, "matmul", "tokens", flops=flops, weight_bytes=weights, activation_bytes=moved)
    return on_device([op], device, NOTHING_ON_CHIP)


def critical_batch(device: Device, number: str, stored: float) -> float:
    """Rows at which a product takes as long to compute as its weights take to read, activations left out."""
    one = product(device, 1, 1024, 1024, number, stored)
    return float(one.weights_s / one.compute_s)


def critical_batch_with_activations(memory_Bps: float) -> float:
    """The same of int8[16384, 4096] with activations counted."""
    one = product(chip(1.97e14, memory_Bps), 1, 16384, 4096, "int8", 1)
    return float(one.weights_s / (one.compute_s - one.activations_s))


def step_s(batch: int, chips: int = 16) -> float:
    """30 billion int8 parameters and 819 MB of cache a sequence: products in bf16, then attention."""
    device = chip(1.97e14, 8.1e11, chips)
    linear = Op("x", "x", "tensor", "bf16", "matmul", "tokens", flops=2 * batch * 30e9, weight_bytes=30e9)
    cache_ = Op("y", "y", "tensor", "bf16", "decode_attention", ("decode", 0), kv_read_bytes=batch * 819e6)
    return sum(float(on_device([op], device, NOTHING_ON_CHIP).seconds) for op in (linear, cache_))


def vector_add_s(numbers: float) -> float:
    """Two fp32 arrays in, one out, on an H100."""
    op = Op("x", "x", "vector", "fp32", "elementwise", "tokens", flops=numbers, activation_bytes=12 * numbers)
    h100 = replace(load_device("h100-sxm"), elementwise=dict.fromkeys(FORMATS, Terms()))
    return float(on_device([op], h100, NOTHING_ON_CHIP).memory_s)


def two_chip_crossover() -> float:
    """Contracted width at which half of it takes as long to multiply as the partial sums take over one link."""
    rows = outputs = 1024
    compute_s = float(product(V5E, rows, 1, outputs).compute_s) / 2  # one of the width, on two chips
    return link_seconds("send", 2, 2 * rows * outputs, Link("ICI", 4.5e10)) / compute_s


# -- models as the texts describe them


def model(
    layers: int, d: int, width: int, vocab: int, heads: int, kv_heads: int, head_dim: int, **more: object
) -> ModelShape:
    """A gated model with one norm a layer and none at the end; ``more``: fields of Ffn, and ``tied``."""
    tied = bool(more.pop("tied", False))
    block = Layer(Attention(heads, kv_heads, head_dim, head_dim), Ffn(width, **more), norms=1)  # type: ignore[arg-type]
    return ModelShape("of a text", d, vocab, (block,) * layers, tied=tied, final_norm=False)


X1 = model(64, 4096, 16384, 32000, 32, 32, 128)
I1 = model(64, 4096, 16384, 32128, 32, 8, 256, tied=True)
I5 = model(64, 4096, 16384, 32128, 32, 8, 256, tied=True, experts=16, experts_per_token=2)
M52 = model(64, 8192, 32768, 50000, 64, 64, 128, gated=False)


@cache
def shipped(name: str, kv_heads: int | None = None) -> ModelShape:
    """A shipped model, with as many key heads as said."""
    found = load_shape(name, "model")
    if kv_heads is None:
        return found
    layers = tuple(replace(one, attention=replace(one.attention, kv_heads=kv_heads)) for one in found.layers)
    return replace(found, layers=layers)


L13, L13G, L70 = shipped("llama-2-13b"), shipped("llama-2-13b", 8), shipped("llama-3-70b")


def parameters(shape: ModelShape, *ops: str) -> float:
    """Parameters of these ops; without names all but norms and routers, which the texts leave out."""
    found = shape.parameters()
    return sum(n for op, n in found.items() if (op in ops if ops else op not in ("norm", "moe.router")))


def kv_bytes(shape: ModelShape, precision: Precision = BF16, tokens: float = 1) -> float:
    """Cache of one sequence."""
    return sum(kv_bytes_per_token(shape, precision)) * tokens


def resident_bytes(shape: ModelShape, precision: Precision) -> float:
    """Weights in memory."""
    return sum(weight_bytes(shape, precision).values())


def read_s(shape: ModelShape, kv: float, batch: int, memory_Bps: float) -> float:
    """A step that reads all resident weights and the caches, ``kv`` bytes a sequence, and does nothing else."""
    return (2 * parameters(shape) + batch * kv) / memory_Bps


def sequences_left(capacity_bytes: float, number: str) -> float:
    """Sequences of 8,192 tokens of Llama-3-70B beside its weights, weights and cache in one format."""
    precision = Precision(weights=number, embedding=number, head=number, kv=number) if number != "bf16" else BF16
    return (capacity_bytes - resident_bytes(L70, precision)) / kv_bytes(L70, precision, 8192)


def queries_per_s(sequences: float, chips: int) -> float:
    """Of one chip: so many sequences of 512 tokens at 19 ms a step."""
    return sequences / (0.019 * 512 * chips)


def activated(shape: ModelShape) -> float:
    """Parameters that one token meets."""
    width = shape.layers[0].ffn.width * shape.layers[0].ffn.experts_per_token
    dense = tuple(replace(one, ffn=Ffn(width)) for one in shape.layers)
    return parameters(replace(shape, layers=dense))


def moe_critical_batch() -> float:
    """Tokens at which the experts of I5 take as long to multiply in bf16 as all of them take to read in int8."""
    one = next(op for op in ops_of(I5, INT8, Work(10**6, 0)) if op.name == "moe.up")  # every expert is visited
    bound = on_device([replace(one, format="bf16")], chip(1.97e14, 1.97e14 / 240), NOTHING_ON_CHIP)
    return float(10**6 * bound.weights_s / bound.compute_s)


def attention_intensity(work: Work, shape: ModelShape) -> float:
    """FLOP per byte of scores and values, queries and results counted as if they went through memory."""
    attention = [op for op in ops_of(shape, BF16, work) if op.name in ("attn.scores", "attn.values", "kv.append")]
    flops = sum(op.flops for op in attention)
    moved = sum(op.kv_read_bytes + op.kv_write_bytes for op in attention)
    return float(flops / (moved + sum(op.activation_bytes for op in attention if op.name != "kv.append")))


def grouped(groups: int) -> ModelShape:
    """One layer with so many query heads to a key head."""
    return model(1, 4096, 16384, 32000, 32, 32 // groups, 128)


def whole_square(tokens: int) -> Work:
    """A prompt whose queries see every key, as the texts count."""
    return Work(tokens, 0, prefill_pairs=(tokens * tokens,), prefill_reads=(0,), prefill_tokens=tokens)


def equal_flops_tokens() -> float:
    """Prompt length at which attention over the whole square takes as many FLOPs as the projections around it."""
    counted = {op.name: op.flops for op in ops_of(X1, BF16, whole_square(1))}
    return float((counted["attn.qkv"] + counted["attn.out"]) / (counted["attn.scores"] + counted["attn.values"]))


# -- the rest


def ladder_pJ(item: str) -> float:
    """Low end of an item of the energy ladder."""
    table = energy_ladder_table()
    return float(table["low_pJ"][list(table["item"]).index(item)])


def deepseek_latent() -> float:
    """Width of all values over what latent attention caches for a token and layer."""
    block = shipped("deepseek-v3").layers[0].attention
    return block.heads * block.value_dim / block.cached_width


def trained_percent(device: str) -> float:
    """Model FLOPs of DeepSeek-V3's training over what so many hours of a device could do in fp8."""
    return 6 * 37e9 * 14.8e12 / (2.79e6 * 3600 * load_device(device).peak_flops("fp8").flops) * 100


Solution = Callable[[], float]
A100 = load_device("a100-sxm-40gb")
ARRAY = 128 * 1024 * 128 * 1024  # T6: int8[128k, 128k]

SOLVED: dict[str, Solution] = {
    "R1": lambda: chip(1.97e14, 8.2e11).ridge_point("bf16"),
    "R3": lambda: critical_batch(V5E, "int8", 1),
    "R4": lambda: critical_batch(chip(1.97e14, 8.2e11), "bf16", 1),
    "R6": two_chip_crossover,
    "R7": lambda: critical_batch(chip(1e15, 3.35e12), "bf16", 2),
    "R8": lambda: critical_batch(load_device("h100-sxm"), "bf16", 2),
    "T3": lambda: critical_batch(chip(9.2e14, 1.5e10), "bf16", 2),
    "T4a": lambda: critical_batch_with_activations(8.1e11),
    "T4b": lambda: critical_batch_with_activations(1.78e13),
    "T5a": lambda: 1e6 * link_seconds("send", 2, 2 * 8 * 128 * 8192, Link("two ports", 9e10)),
    "T5b": lambda: 1e6 * link_seconds("send", 2, 2 * 8 * 128 * 8192, Link("two ports", 9e10, latency_s=6e-6)),
    "T6a": lambda: 1e3 * link_seconds("send", 2, ARRAY / 16, Link("PCIe", 1.5e10)),
    "T6b": lambda: 1e3 * link_seconds("all_gather", 16, ARRAY, Link("two ports", 9e10)),
    "T6d": lambda: 1e3 * float(product(V5E, 8, 128 * 1024, 128 * 1024).compute_s),
    "X1a": lambda: X1.total_parameters,
    "X1b": lambda: (
        parameters(X1, "attn.qkv", "attn.out") / parameters(X1, "attn.qkv", "attn.out", "mlp.up", "mlp.down")
    ),
    "X1c": lambda: kv_bytes(X1, INT8),
    "X4": lambda: attention_intensity(whole_square(8192), grouped(8)),
    "X4b": lambda: attention_intensity(Work.decode(1, 8192), grouped(8)),
    "X5": equal_flops_tokens,
    "X7": lambda: trained_percent("h100-pcie"),
    "X7b": lambda: trained_percent("h100-sxm"),
    "S5b": lambda: 1e6 * link_seconds("all_gather", 4, 2048 * 8192 * 2, Link("ICI", 4.5e10)),
    "I0a": lambda: 1e3 * step_s(4),
    "I0b": lambda: 1e3 * step_s(256),
    "I13a": lambda: parameters(L13, "mlp.up", "mlp.down"),
    "I13b": lambda: parameters(L13, "embed", "logits"),
    "I13c": lambda: parameters(L13, "attn.qkv", "attn.out"),
    "I13d": lambda: kv_bytes(L13, tokens=8192) / 1e9,
    "I1": lambda: parameters(I1),
    "I1b": lambda: kv_bytes(I1, INT8),
    "I2": lambda: (16 * 16e9 - parameters(I1)) / kv_bytes(I1, INT8, 128e3),
    "I3": lambda: 1e3 * parameters(I1) / (16 * V5E.memory_Bps),
    "I5a": lambda: parameters(I5),
    "I5b": lambda: activated(I5),
    "I5c": moe_critical_batch,
    "I6a": lambda: 1e3 * parameters(I5) / (128 * V5E.memory_Bps),
    "I6b": lambda: (V5E.memory_bytes - parameters(I5) / 128) / 1e9,
    "A1": lambda: kv_bytes(L70, INT8),
    "A1b": lambda: kv_bytes(L70, INT8, 32768) / 1e9,
    "A2": lambda: (parameters(L70) + kv_bytes(L70, INT8, 32 * 8192)) / 1e9,
    "A3a": lambda: 1e3 * (parameters(L70) + kv_bytes(L70, INT8, 32 * 8192)) / (8 * V5E.memory_Bps),
    "A3d": lambda: 1e3 * (parameters(L70) + kv_bytes(L70, INT8, 32 * 8192)) / (16 * V5E.memory_Bps),
    "A4": lambda: 1e3 * V5E.memory_bytes / chip(1.97e14, 8.2e11).memory_Bps,
    "A5a": lambda: sequences_left(256e9, "bf16"),
    "A5c": lambda: sequences_left(128e9, "int8"),
    "A5e": lambda: sequences_left(64e9, "int4"),
    "A6c": lambda: queries_per_s(sequences_left(128e9, "int8"), 8),
    "A6e": lambda: queries_per_s(sequences_left(64e9, "int4"), 4),
    "A7b": lambda: queries_per_s(sequences_left(512e9, "bf16"), 32),
    "A8b": lambda: 1e6 * float(product(chip(1.97e14, 8.1e11, 32), 64, 8192, 28672).weights_s),
    "A8c": lambda: 1e6 * float(product(chip(1.97e14, 8.1e11, 32), 64, 8192, 28672).compute_s),
    "A12c": lambda: kv_bytes(shipped("llama-3-8b"), INT8),
    "A12d": lambda: parameters(shipped("llama-3.1-405b")) / (0.015 * V5E.memory_Bps),
    "G3": lambda: load_device("h100-sxm").ridge_point("bf16"),
    "G4": lambda: replace(load_device("b200-sxm"), memory_Bps=8e12).ridge_point("bf16"),
    "G5": lambda: 1e6 * float(product(chip(2.25e15, 8e12), 64, 4096, 8192).seconds),
    "G6": lambda: 1e6 * float(product(chip(2.25e15, 8e12), 512, 4096, 8192).seconds),
    "G7": lambda: (load_device("h100-sxm").onchip.near_bytes or 0) / 2**20,
    "G9": lambda: 1e6 * vector_add_s(65536),
    "G10": lambda: 1e3 * vector_add_s(2**30),
    "C1": lambda: parameters(L13),
    "C2": lambda: kv_bytes(L13, tokens=1024),
    "C3": lambda: load_device("h100-sxm").ridge_point("bf16"),
    "C4": deepseek_latent,
    "K1": lambda: replace(A100, memory_Bps=1.5e12).ridge_point("fp16"),
    "K2": lambda: kv_bytes(M52),
    "K4": lambda: 1e3 * 26e9 / A100.memory_Bps,
    "K5": lambda: 1e3 * 2 * 13e9 * 512 / A100.peak_flops("fp16").flops,
    "B1": lambda: load_device("a10").ridge_point("fp16"),
    "B2": lambda: 1e3 * 14e9 / load_device("a10").memory_Bps,
    "B3": lambda: 1e3 * 350 * 2 * 7e9 / load_device("a10").peak_flops("fp16").flops,
    "B4": lambda: kv_bytes(shipped("llama-2-7b")),
    "L_lim": lambda: theory.expected_tokens(1.0, 4),
    "H1": lambda: A100.peaks["fp16"] / A100.peaks["fp32"],
    "H2": lambda: 8 * ladder_pJ("DDR DRAM") / ladder_pJ("fp32 multiply"),
    "H3": lambda: ladder_pJ("fp32 multiply") / ladder_pJ("int8 multiply"),
    "N1": lambda: float(PassCost(shipped("llama-2-7b"), A100).counts(Work.decode(1, 1024))["flops"]),
}


def _leviathan() -> dict[str, Solution]:
    """Table 1: tokens a round with a draft that takes no time, and operations over those without it."""
    found: dict[str, Solution] = {}
    for alpha, gamma in ((0.6, 2), (0.7, 3), (0.8, 2), (0.8, 5), (0.9, 2), (0.9, 10)):
        found[f"L_s_{alpha}_{gamma}"] = lambda a=alpha, g=gamma: theory.wall_time_factor(a, g, 0.0)  # type: ignore[misc]
        found[f"L_o_{alpha}_{gamma}"] = lambda a=alpha, g=gamma: theory.operations_factor(a, g, 0.0)  # type: ignore[misc]
    return found


def _thirteen() -> dict[str, Solution]:
    """Llama-2-13B by batch: on 8 TPU v5e with 8,192 tokens (the book keeps the weights of 40 key heads for its smaller
    cache), and on an H100 with 1,024 tokens and 40 or 8 key heads.
    """
    found: dict[str, Solution] = {}
    book = chip(1.97e14, 8.2e11, 8).memory_Bps
    for batch in (1, 8, 16, 32, 64, 240):
        for tag, shape in (("", L13), ("g", L13G)):
            seconds = read_s(L13, kv_bytes(shape, tokens=8192), batch, book)
            found[f"I13{tag or 't'}{batch}"] = lambda s=seconds: 1e3 * s  # type: ignore[misc]
            found[f"I13{tag}p{batch}"] = lambda s=seconds, b=batch: b / s  # type: ignore[misc]
    for batch in (1, 64, 256):
        for tag, shape in (("MHA", L13), ("GQA8", L13G)):
            seconds = read_s(shape, kv_bytes(shape, tokens=1024), batch, load_device("h100-sxm").memory_Bps)
            found[f"C_{tag}_b{batch}_ms"] = lambda s=seconds: 1e3 * s  # type: ignore[misc]
            found[f"C_{tag}_b{batch}_tps"] = lambda s=seconds, b=batch: b / s  # type: ignore[misc]
    return found


SOLVED |= _leviathan() | _thirteen()


def ring_us() -> float:
    """G11 with the share that a ring really sends: seven eighths."""
    return 1e6 * float(sent_bytes("all_gather", 8, 2 * 1024 * 16384)) / 450e9
