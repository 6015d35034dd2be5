"""Quantization against what was published: bytes (identities), speed of weight-only decoding, memory, known failures.

Labels: *identity*, *prediction* (nothing fitted on the row's source), *P1* (one number fitted on a named row), *known
failure* (shown with what it misses). Ours is always a ``PassCost`` with the variant. Speeds are on data sheet rates
with the default terms of a device never measured (0.78 of compute, 0.85 of bandwidth, 3.3 us a kernel, p 1.9; fitted
to bf16 products of many devices). That decoding a weight takes one or two FLOPs of the vector units, before its
product, is the variant's own assumption.
"""

from dataclasses import replace

import pytest
from analytic_models import device, model

from sim.analytic.cost import PassCost
from sim.analytic.hardware import FORMATS, Device, Terms
from sim.analytic.model import Attention, Ffn, Layer, ModelShape
from sim.analytic.precision import FORMATS as STORED
from sim.analytic.precision import Precision
from sim.analytic.work import Work
from sim.variants.quantization import Quantization

FP16 = Precision("fp16", "fp16", "fp16")
UNMEASURED = Terms(0.78, 0.85, 3.3e-6, 1.9, 0.0, 0.6e-6)
OPT_175B = ModelShape(
    "opt-175b",
    12288,
    50272,
    (Layer(Attention(96, 96, 128, 128, qkv_bias=True, out_bias=True, rope=False), Ffn(49152, gated=False, bias=True)),)
    * 96,
    tied=True,
    norm="layer",
)


def typical(name: str) -> Device:
    """A data sheet with the default terms."""
    groups = ("matmul", "decode_attention", "prefill_attention", "elementwise")
    return replace(device(name), **{group: dict.fromkeys(FORMATS, UNMEASURED) for group in groups})


def gain(shape: ModelShape, where: Device, variant: Quantization, work: Work) -> float:
    """Seconds in 16 bits over seconds with the variant."""
    wide = PassCost(shape, where, FP16).seconds(work)
    return float(wide / PassCost(shape, where, FP16, variants=[variant]).seconds(work))


def weights(shape: ModelShape, *variants: Quantization) -> float:
    """Bytes of the weights in memory."""
    return PassCost(shape, device("a100-sxm-80gb"), FP16, variants=variants).bytes_weights


def bitnet_shape(d: int, width: int, heads: int, layers: int) -> ModelShape:
    """The Llamas of arXiv 2402.17764 (sizes as in github.com/microsoft/unilm/bitnet)."""
    block = Layer(Attention(heads, heads, d // heads, d // heads), Ffn(width))
    return ModelShape("bitnet", d, 32000, (block,) * layers)


# --- bytes ---------------------------------------------------------------------------------------


def test_k_means_on_sixteen_weights() -> None:
    """identity: 16 float32 weights, 2-bit codes, a table of four: 512 / (32 + 128) bits = 3.2x (arXiv 1510.00149)."""
    assert 32 / STORED[Quantization(weights=2, codebook="kmeans", group=16).grid.spelled].stored_bits == 3.2


def test_double_quantization() -> None:
    """identity: scales of NF4 take 0.5 bit a weight, 0.127 when quantised again (arXiv 2305.14314, section 3)."""
    plain, double = (STORED[Quantization(name).grid.spelled].stored_bits - 4 for name in ("nf4", "nf4_double"))
    assert plain == 0.5 and round(double, 3) == 0.127


def test_smoothquant_halves_memory() -> None:
    """prediction, 1 %: 2.0x for OPT-175B (arXiv 2211.10438, abstract)."""
    assert weights(OPT_175B) / weights(OPT_175B, Quantization("smoothquant")) == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize(("name", "published"), [("llama-2-7b", 4.40), ("llama-2-13b", 5.12), ("llama-2-70b", 7.16)])
def test_bitnet_memory(name: str, published: float) -> None:
    """P1, 10 %: 1.0 GB beside the weights, fitted on the 3B row (table 1: 7.89 GB); arXiv 2402.17764, fig. 2."""
    beside = 7.89e9 - weights(bitnet_shape(3200, 8640, 32, 26))
    assert beside == pytest.approx(1.0e9, rel=0.1)
    ours = (weights(model(name)) + beside) / (weights(model(name), Quantization("bitnet")) + beside)
    assert ours == pytest.approx(published, rel=0.10)


# --- speed of weight-only decoding, batch 1 ------------------------------------------------------

TINYCHAT = [  # device, model, fp16 ms, W4A16 ms: github.com/mit-han-lab/llm-awq, tinychat README; 4 context tokens
    ("rtx-4090", "llama-3-8b", 17.07, 6.39),
    ("rtx-4090", "llama-2-7b", 15.50, 5.28),
    ("a100-sxm-80gb", "llama-3-8b", 12.37, 6.29),
    ("a100-sxm-80gb", "llama-2-7b", 10.77, 5.71),
    ("a100-sxm-80gb", "llama-2-13b", 19.08, 7.90),
]


@pytest.mark.parametrize(("where", "name", "fp16_ms", "w4a16_ms"), TINYCHAT)
def test_awq(where: str, name: str, fp16_ms: float, w4a16_ms: float) -> None:
    """prediction, 4090 within 5 %, A100 within 16 %: the gain of W4A16 (milliseconds: engine time is not in ours)."""
    ours = gain(model(name), typical(where), Quantization("awq"), Work.decode(1, 4))
    assert ours == pytest.approx(fp16_ms / w4a16_ms, rel=0.05 if where == "rtx-4090" else 0.16)


def test_awq_bytes_alone() -> None:
    """known failure: without the work of decoding, the A100 should gain 3.2 to 3.7x; it measured 1.9 to 2.4x."""
    for where, name, fp16_ms, w4a16_ms in TINYCHAT[2:]:
        bytes_alone = gain(model(name), device(where), Quantization("awq", dequantise="overlapped"), Work.decode(1, 4))
        assert bytes_alone > 1.4 * fp16_ms / w4a16_ms


def test_gptq_3_bits_on_an_a100() -> None:
    """prediction, 5 %: OPT-175B 230 -> 71 ms, 3.24x, five GPUs in turn against one (arXiv 2210.17323, table 6)."""
    where, three = typical("a100-sxm-80gb"), Quantization("gptq", weights=3, group="channel")
    assert gain(OPT_175B, where, three, Work.decode(1, 128)) == pytest.approx(230 / 71, rel=0.05)
    bytes_alone = replace(three, dequantise="overlapped")
    assert gain(OPT_175B, device("a100-sxm-80gb"), bytes_alone, Work.decode(1, 128)) > 5  # known failure: 5.3x by bytes


def test_gptq_3_bits_on_an_a6000() -> None:
    """prediction, 5 %: 589 -> 130 ms, 4.53x. An A40 with the A6000's sheet: 768 GB/s, 38.7 TFLOP/s on vectors."""
    a40 = typical("a40")
    a6000 = replace(a40, name="a6000", memory_Bps=768e9, peaks={**a40.peaks, "fp32": 38.7e12})
    three = Quantization("gptq", weights=3, group="channel")
    assert gain(OPT_175B, a6000, three, Work.decode(1, 128)) == pytest.approx(589 / 130, rel=0.05)


BITNET = [  # shape, published gain in latency (tables 1 and figure 2), tolerance
    (bitnet_shape(1536, 4096, 16, 24), 1.18 / 0.96, 0.35),
    (bitnet_shape(2048, 5460, 32, 24), 1.62 / 0.97, 0.20),
    (bitnet_shape(3200, 8640, 32, 26), 5.07 / 1.87, 0.15),
    (model("llama-2-7b"), 2.90, 0.15),
    (model("llama-2-13b"), 3.68, 0.15),
    (model("llama-2-70b"), 4.10, 0.15),
]


@pytest.mark.parametrize(("shape", "published", "tolerance"), BITNET, ids=["700M", "1.3B", "3B", "7B", "13B", "70B"])
def test_bitnet_latency(shape: ModelShape, published: float, tolerance: float) -> None:
    """prediction, 15 % from 3B on (35 and 20 % below), A100, batch 1; known failure: pure roofline, 1.3x too fast."""
    work = Work.decode(1, 512)
    assert gain(shape, typical("a100-sxm-80gb"), Quantization("bitnet"), work) == pytest.approx(
        published, rel=tolerance
    )
    assert gain(shape, device("a100-sxm-80gb"), Quantization("bitnet"), work) > 1.3 * published


# --- known failures ------------------------------------------------------------------------------


def feed_forward(d: int, variant: Quantization) -> float:
    """Speed of up and down at 2,048 tokens relative to fp16."""
    shape = ModelShape("ffn", d, 2, (Layer(Attention(1, 1, d, d), Ffn(4 * d, gated=False)),))

    def seconds(*variants: Quantization) -> float:
        cost = PassCost(shape, typical("a100-sxm-80gb"), FP16, variants=variants)
        kernels = cost.bounds(Work.prefill(1, 2048))
        return sum(float(b.seconds) for ops, b in kernels if ops[0].name.startswith(("mlp.up", "mlp.down")))

    return seconds() / seconds(variant)


LLM_INT8 = [(768, 0.14), (1024, 0.20), (1536, 0.36), (2048, 0.51), (2560, 0.64), (4096, 0.86), (5140, 1.22)]


def test_llm_int8_speed() -> None:
    """known failure (arXiv 2208.07339, table 5): slower than fp16 below d = 5,140; ours, one launch a product, never.

    Right are the direction (the gain grows with d) and the last row, 1.81x at d = 12,288, within 10 %. What is missing
    is that implementation's own time for a product: launches, copies and a gather of outliers.
    """
    ours = [feed_forward(d, Quantization("llm_int8")) for d, _ in LLM_INT8]
    assert all(mine > published for mine, (_, published) in zip(ours, LLM_INT8, strict=True))
    assert ours[0] < ours[3] < ours[6]
    assert feed_forward(12288, Quantization("llm_int8")) == pytest.approx(1.81, rel=0.10)
