"""Memory of fine-tuning: bytes a parameter by hand, QLoRA's published sizes, the command's table."""

from __future__ import annotations

import json

import pytest
from analytic_models import LATENT, MOE, model
from typer.testing import CliRunner

from sim.cli import app
from sim.finetune import activation_bytes, memory_table
from sim.variants.peft import Peft

LLAMA = model("llama-2-7b")


def lines(shape_name: str, **more: object) -> dict[str, float]:
    rows = memory_table(model(shape_name), tokens=1, **more)  # type: ignore[arg-type]
    return {r.way: r.total_bytes for r in rows}


def test_bytes_a_parameter() -> None:
    """16, 16 and 12 for everything; 2 for what is frozen, and 16 for what an adapter trains."""
    rows = {r.way: r for r in memory_table(LLAMA, tokens=1)}
    held = {way: r.total_bytes - r.activations_bytes for way, r in rows.items()}
    n, lora = LLAMA.total_parameters, Peft().trainable(LLAMA)
    assert held["full, float32"] == held["full, mixed precision"] == 16 * n and held["full, 16 bits"] == 12 * n
    assert held["lora, 16-bit base"] == 2 * n + 16 * lora
    assert rows["lora, 16-bit base"].trainable == lora == 4_194_304


def test_qlora_sizes_as_published() -> None:
    """A 65B model: more than 780 GB in 16 bits, less than 48 GB with a 4-bit base (arXiv 2305.14314, abstract).

    LLaMA-65B is not shipped: 12 bytes of its 65.2 B parameters, and the 70B model's bytes in proportion.
    """
    assert 12 * 65.2e9 > 780e9
    found = lines("llama-2-70b", peft=Peft(rank=64, targets=["q", "k", "v", "o", "gate", "up", "down"]))
    assert found["full, 16 bits"] > 780e9 and found["lora, 4-bit base (QLoRA)"] * 65.2 / 69 < 48e9


def test_a_4_bit_base_is_a_quarter_and_a_little() -> None:
    """4.127 bits for the layers' matrices, 16 for embedding, head and norms."""
    rows = {r.way: r for r in memory_table(LLAMA)}
    wide = 2 * 32_000 * 4096 * 2 + 2 * 4096 * 65
    layers = LLAMA.total_parameters - wide // 2
    packed = rows["lora, 4-bit base (QLoRA)"].weights_bytes
    assert packed == pytest.approx(wide + layers * 4.126953125 / 8, rel=1e-6)


def test_activations_by_hand() -> None:
    """2,048 tokens of Llama-2-7B: 32 checkpoints of 2 bytes, one layer of 34, logits of 4."""
    assert activation_bytes(LLAMA, 2048) == 2048 * (4096 * (2 * 32 + 34) + 4 * 32_000)


def test_ways_that_do_not_apply_are_left_out_or_refused() -> None:
    """No biases, no bitfit; experts' adapters and latents are not modelled, and asking for them says so."""
    assert not any("bitfit" in r.way for r in memory_table(LLAMA))
    assert any("bitfit" in r.way for r in memory_table(model("gpt2")))
    assert [r.way for r in memory_table(model("bert-large"))][-1] != "lora, 4-bit base (QLoRA)"
    with pytest.raises(ValueError, match="has experts"):
        memory_table(MOE, Peft(targets=["up"]))
    with pytest.raises(ValueError, match="latent attention"):
        memory_table(LATENT)


def test_the_command_prints_the_table() -> None:
    """`decodesim explain FILE --finetune`, in words and as JSON, also for models that the device could not serve."""
    run = CliRunner().invoke(app, ["explain", "chat_h100", "--finetune", "--batch", "4"])
    assert run.exit_code == 0 and "QLoRA" in run.output and "float32" in run.output
    settings = ["--set", "model=llama-2-70b", "--set", "variants=[{peft: {rank: 64}}]", "--json"]
    rows = json.loads(CliRunner().invoke(app, ["explain", "chat_h100", "--finetune", *settings]).output)
    by_way = {r["way"]: r for r in rows}
    assert by_way["lora, 4-bit base (QLoRA)"]["fits"] and not by_way["full, 16 bits"]["fits"]
    assert by_way["lora, 16-bit base"]["trainable"] == 80 * 64 * (2 * 8192 + 8192 + 1024)
