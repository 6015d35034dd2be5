"""Number formats: bits with their block scales, and what each kind of weight is stored and multiplied in."""

import pytest
from analytic_models import device, model

from sim.analytic.cost import PassCost
from sim.analytic.memory import weight_bytes
from sim.analytic.precision import FORMATS, Precision, number_format
from sim.analytic.units import show_bytes, show_seconds, with_unit


def test_block_scales_count() -> None:
    """OCP MX: 8 bits for 32 numbers; NVFP4: 8 for 16; GPTQ g128: a 16-bit scale and a 4-bit zero point for 128."""
    stored = {name: FORMATS[name].stored_bits for name in ("mxfp4", "nvfp4", "mxfp8", "int4_g128", "int4", "bf16")}
    assert stored == {"mxfp4": 4.25, "nvfp4": 4.5, "mxfp8": 8.25, "int4_g128": 4.15625, "int4": 4, "bf16": 16}


def test_gguf_blocks() -> None:
    """Bytes of a block over its numbers, as ggml's block structures have them."""
    blocks = {
        "q8_0": (34, 32), "q6_k": (210, 256),
        "q5_k": (176, 256), "q5_1": (24, 32), "q5_0": (22, 32), "q4_k": (144, 256),
        "q4_1": (20, 32), "q4_0": (18, 32), "q3_k": (110, 256), "q2_k": (84, 256),
    }  # fmt: skip
    assert {name: FORMATS[name].stored_bytes for name in blocks} == {name: b / n for name, (b, n) in blocks.items()}
    assert Precision("q4_k").product_format("q4_k") == "bf16"


def test_a_misspelt_format_gets_a_hint() -> None:
    with pytest.raises(ValueError, match=r"precision\.kv: 'bf61' .* did you mean 'bf16'"):
        Precision(kv="bf61")
    with pytest.raises(ValueError, match=r"precision\.weights: 'nine'"):
        number_format("nine", "weights")


def test_quantized_weights_leave_embedding_head_and_norms_wide() -> None:
    """Llama-3.1-8B in int4: 6.98 B linear weights at half a byte, 1.05 B embedding and head at two bytes."""
    held = weight_bytes(model("llama-3.1-8b"), Precision("int4"))
    linear = 32 * (4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14336)
    assert sum(held.values()) == linear / 2 + 2 * (8_030_261_248 - linear)
    everything = weight_bytes(model("llama-3.1-8b"), Precision("int4", head="int4"))
    assert sum(everything.values()) == 8_030_261_248 / 2


def test_expert_weights_keep_the_format_of_the_checkpoint_unless_told() -> None:
    shape = model("gpt-oss-20b")
    assert weight_bytes(shape, Precision())["moe.down"] == 24 * 32 * (2880 * 2880 + 2880) * 4.25 / 8
    assert weight_bytes(shape, Precision(experts="bf16"))["moe.down"] == 24 * 32 * (2880 * 2880 + 2880) * 2


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        (Precision(), "bf16"),
        (Precision("int4"), "bf16"),
        (Precision("fp8", compute="fp8"), "fp8"),
        (Precision("fp8", "fp8"), "fp8"),
        (Precision("fp32", "bf16"), "fp32"),
        (Precision("mxfp8", "mxfp8"), "fp8"),
        (Precision("fp16", "fp16"), "fp16"),
    ],
)
def test_products_run_in_the_wider_format_unless_told(precision: Precision, expected: str) -> None:
    assert precision.product_format(precision.weights) == expected


def test_w8a8_keeps_the_head_in_sixteen_bits() -> None:
    precision = Precision("fp8", compute="fp8")
    assert precision.product_format(precision.weight_format("logits")) == "bf16"
    assert precision.attention_format == "bf16"


def test_every_format_can_be_costed_on_every_kind_of_device() -> None:
    """A format that the device lacks falls back; nothing is refused and nothing is free."""
    from sim.analytic.work import Work

    for name in FORMATS:
        for where in ("v100", "tpu-v5e", "groq", "h100-sxm", "apple-m2-ultra"):
            cost = PassCost(model("smollm2-135m"), device(where), Precision(name, name, name))
            assert cost.seconds(Work.decode(4, 100)) > 0


def test_numbers_are_shown_with_decimal_prefixes() -> None:
    assert (show_bytes(80e9), show_bytes(512), with_unit(3.35e12, "B/s")) == ("80 GB", "512 B", "3.35 TB/s")
    assert (show_seconds(0.0042), show_seconds(2.0), show_seconds(3e-8)) == ("4.2 ms", "2 s", "30 ns")
