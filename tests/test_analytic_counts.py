"""FLOPs and bytes of passes against totals worked out by hand from the architecture."""

from collections import Counter

import numpy as np
import pytest
from analytic_models import DENSE, LATENT, device, model
from hypothesis import given
from hypothesis import strategies as st

from sim.analytic.cost import PassCost
from sim.analytic.model import ModelShape
from sim.analytic.ops import ops, visited_experts
from sim.analytic.precision import Precision
from sim.analytic.work import Work, pairs_of, reads_of

A100, H100 = device("a100-sxm-80gb"), device("h100-sxm")


def named(shape: ModelShape, work: Work, field: str, precision: Precision | None = None) -> Counter[str]:
    """One count by op name, summed over layers."""
    total: Counter[str] = Counter()
    for op in ops(shape, precision or Precision(), work):
        total[op.name] += op.layers * getattr(op, field)
    return total


def product_flops(shape: ModelShape, work: Work) -> float:
    return sum(op.layers * op.flops for op in ops(shape, Precision(), work) if op.unit == "tensor")


def test_llama_2_7b_decode_flops_are_the_published_closed_form() -> None:
    """13,751,025,664 at batch 1 and 32 times that at batch 32 (peer_counts_llama2_7b_a100.csv), exactly."""
    shape = model("llama-2-7b")
    assert product_flops(shape, Work.decode(1, 1024)) == 13_751_025_664
    assert product_flops(shape, Work.decode(32, 1024)) == 440_032_821_248
    # the same by hand: 32 layers of 4d^2 + 3df, the head, and 4*d*context a layer for attention
    d, f = 4096, 11008
    by_hand = 2 * (32 * (4 * d * d + 3 * d * f) + 32000 * d) + 32 * 4 * d * 1024
    assert product_flops(shape, Work.decode(1, 1024)) == by_hand


def test_llama_2_7b_reads_its_product_weights_once_whatever_the_batch() -> None:
    shape = model("llama-2-7b")
    for batch in (1, 32):
        products = [op for op in ops(shape, Precision(), Work.decode(batch, 1024)) if op.unit == "tensor"]
        assert sum(op.layers * op.weight_bytes for op in products) == 13_214_154_752


def test_llama_2_7b_kv_traffic_is_half_a_mebibyte_a_token() -> None:
    """1,023 cached tokens are read and one is written, 524,288 bytes each."""
    counts = PassCost(model("llama-2-7b"), A100).counts(Work.decode(1, 1024))
    assert counts["kv_bytes"] == 1024 * 524_288


def test_llama_2_7b_causal_prefill_with_the_head_on_the_last_row() -> None:
    """13.538 TFLOP for 1,024 tokens: no full square, no logits of tokens that nobody samples from."""
    shape = model("llama-2-7b")
    d, f, n = 4096, 11008, 1024
    by_hand = 2 * n * 32 * (4 * d * d + 3 * d * f) + 2 * 32000 * d + 32 * 4 * d * n * (n + 1) // 2
    assert product_flops(shape, Work.prefill(1, n)) == by_hand
    assert by_hand / 1e12 == pytest.approx(13.538, abs=5e-4)


def test_llama_3_1_8b_decode_and_prefill_by_hand() -> None:
    shape, d, f, vocab, layers = model("llama-3.1-8b"), 4096, 14336, 128_256, 32
    layer = d * (4096 + 2 * 1024) + 4096 * d + 3 * d * f
    decode = 64 * 2 * (layers * layer + vocab * d) + 64 * layers * 4 * 4096 * 2048
    assert product_flops(shape, Work.decode(64, 2048)) == decode
    chunk = 2 * 512 * layers * layer + layers * 4 * 4096 * (512 * 1000 + 512 * 513 // 2)
    assert product_flops(shape, Work.chunk(512, 1000, last=False)) == chunk
    counts = PassCost(shape, H100).counts(Work.decode(64, 2048))
    assert counts["kv_bytes"] == 64 * 2048 * 131_072
    norms_and_rows = (2 * layers + 1) * d + 64 * d  # what the products do not read: norms, gathered embeddings
    assert counts["weight_bytes"] == 2 * (layers * layer + vocab * d + norms_and_rows)


@pytest.mark.parametrize("name", ["llama-2-70b", "qwen2.5-7b", "qwen3-8b", "gemma-2-9b", "gpt2-xl", "mistral-7b-v0.3"])
def test_a_pass_reads_every_parameter_once_but_the_gathered_ones(name: str) -> None:
    """Weight bytes of a one-token pass are the parameters, less embedding table and positions, plus one row."""
    shape = model(name)
    gathered = (0 if shape.tied else shape.vocab * shape.d_model) + sum(count for _, count in shape.extra)
    expected = 2 * (shape.total_parameters - gathered + shape.d_model)
    assert sum(named(shape, Work.decode(1, 100, windows=shape.windows), "weight_bytes").values()) == expected


def test_windows_bound_what_gemma_reads() -> None:
    """Gemma-2-2B, 26 layers in turn: 13 read 4,095 cached tokens, 13 read all 8,191; each writes one."""
    shape = model("gemma-2-2b")
    assert shape.windows == (4096, None)
    counts = PassCost(shape, H100).counts(Work.decode(1, 8192, windows=shape.windows))
    a_token = 4 * (256 + 256) * 2
    assert counts["kv_bytes"] == a_token * (13 * 4095 + 13 * 8191 + 26)
    scores = named(shape, Work.decode(1, 8192, windows=shape.windows), "flops")["attn.scores"]
    assert scores == 2 * 8 * 256 * (13 * 4096 + 13 * 8192)


@given(st.integers(1, 60), st.integers(0, 60), st.integers(1, 50))
def test_pairs_of_a_window_equal_a_count_of_the_mask(new: int, cached: int, window: int) -> None:
    """Query i stands at position cached + i and sees min(window, position + 1) keys."""
    assert pairs_of(new, cached, window) == sum(min(window, cached + i + 1) for i in range(new))
    assert pairs_of(new, cached, None) == sum(cached + i + 1 for i in range(new))
    first_query_sees_cached = min(window, cached + 1) - 1
    assert reads_of(cached, window) == first_query_sees_cached


def test_chunks_of_a_prompt_attend_to_as_many_pairs_as_the_whole() -> None:
    for window in (None, 7, 100):
        whole = pairs_of(100, 0, window)
        assert pairs_of(40, 0, window) + pairs_of(60, 40, window) == whole


def test_expected_experts_agree_with_a_simulation() -> None:
    """E(1-(1-k/E)^n) within four standard errors of random routing, for 1 to 64 tokens of 8 of 128 experts."""
    draws = np.random.Generator(np.random.Philox(7))
    for tokens in (1, 4, 16, 64):
        keys = draws.random((1500, tokens, 128))
        chosen = np.zeros((1500, 128), dtype=bool)
        np.put_along_axis(chosen, np.argpartition(keys, 8, axis=2)[:, :, :8].reshape(1500, -1), True, axis=1)
        distinct = chosen.sum(axis=1)
        error = max(distinct.std() / np.sqrt(len(distinct)), 1e-9)
        assert abs(distinct.mean() - visited_experts(128, 8, tokens)) < 4 * error


def test_mixtral_reads_two_experts_for_one_token_and_nearly_all_for_many() -> None:
    shape = model("mixtral-8x7b")
    expert = 3 * 4096 * 14336 * 2
    for tokens, experts in ((1, 2.0), (2, 3.5), (64, 8 * (1 - 0.75**64))):
        read = named(shape, Work.decode(tokens, 100), "weight_bytes")
        assert read["moe.up"] + read["moe.down"] == pytest.approx(32 * experts * expert, rel=1e-12)
        assert named(shape, Work.decode(tokens, 100), "flops")["moe.up"] == 32 * tokens * 2 * 2 * 4096 * 2 * 14336


def test_gpt_oss_reads_its_experts_in_mxfp4() -> None:
    """4.25 bits a number for experts (4 and an 8-bit scale for 32), 16 for the rest, sinks once a head."""
    shape = model("gpt-oss-20b")
    read = named(shape, Work.decode(1, 100, windows=shape.windows), "weight_bytes")
    one_down = 2880 * 2880 + 2880
    assert read["moe.down"] == pytest.approx(24 * 4 * one_down * 4.25 / 8)
    assert read["attn.scores"] == 24 * 64 * 2
    assert read["logits"] == 201_088 * 2880 * 2


def test_latent_attention_decodes_absorbed_and_prefills_decompressed() -> None:
    """Counts of docs/conventions.md for rank 40, RoPE 8, nope 16, value 16, four heads, two layers."""
    decode = named(LATENT, Work.decode(3, 50), "flops")
    assert decode["attn.q_absorb"] == 2 * 2 * 3 * 4 * 16 * 40
    assert decode["attn.scores"] == 2 * 2 * 4 * (40 + 8) * 150
    assert decode["attn.values"] == 2 * 2 * 4 * 40 * 150
    assert decode["attn.v_absorb"] == 2 * 2 * 3 * 4 * 40 * 16
    assert named(LATENT, Work.decode(3, 50), "kv_read_bytes").total() == 2 * 3 * 49 * 48 * 2
    prefill = named(LATENT, Work.prefill(1, 50), "flops")
    assert prefill["attn.kv_up"] == 2 * 2 * 50 * 40 * 4 * (16 + 16)
    assert prefill["attn.scores"] == 2 * 2 * 4 * 24 * 1275
    assert prefill["attn.values"] == 2 * 2 * 4 * 16 * 1275
    assert "attn.kv_up" not in decode and "attn.q_absorb" not in prefill


def test_latent_weights_are_read_once_in_either_form() -> None:
    """The two absorb products together read what decompression reads: kv_up, once."""
    decode, prefill = (named(LATENT, work, "weight_bytes") for work in (Work.decode(1, 50), Work.prefill(1, 50)))
    assert decode["attn.q_absorb"] + decode["attn.v_absorb"] == prefill["attn.kv_up"] > 0


def test_deepseek_v3_caches_576_numbers_a_token_and_layer() -> None:
    cost = PassCost(model("deepseek-v3"), device("h200-sxm"))
    assert cost.kv_bytes_per_token == (61 * 576 * 2,)


def test_t5_encodes_and_crosses_by_hand() -> None:
    """T5 v1.1 small: 8 + 8 layers, d 512, 6 heads of 64, gated 1024; 100 input tokens, 10th output token."""
    shape = model("t5-v1.1-small")
    work = Work.encode(1, 100)._replace(tokens=1, logit_rows=1, decode_pairs=(10,), decode_reads=(9,), cross_pairs=100)
    flops = named(shape, work, "flops")
    assert flops["encoder.attn.qkv"] == 8 * 2 * 100 * 512 * 3 * 384
    assert flops["encoder.attn.scores"] == flops["encoder.attn.values"] == 8 * 2 * 384 * 100 * 100
    assert flops["encoder.mlp.up"] == 8 * 2 * 100 * 512 * 2048
    assert flops["cross.kv"] == 8 * 2 * 100 * 512 * 2 * 384
    assert flops["cross.q"] == flops["cross.out"] == 8 * 2 * 512 * 384
    assert flops["cross.scores"] == 8 * 2 * 384 * 100
    assert flops["attn.scores"] == 8 * 2 * 384 * 10
    assert flops["logits"] == 2 * 512 * 32128
    written = named(shape, work, "kv_write_bytes")
    assert written["cross.kv"] == 8 * 100 * 768 * 2 and "encoder.kv.append" not in written
    assert PassCost(shape, A100).cross_bytes_per_token == 8 * 768 * 2


def test_standard_attention_writes_the_scores_and_flash_does_not() -> None:
    """4*Hq*pairs numbers more, and nothing else differs."""
    work = Work.prefill(1, 64)
    standard = ops(DENSE, Precision(), work, attention="standard")
    flash = ops(DENSE, Precision(), work)
    written, fused = (sum(op.layers * op.activation_bytes for op in done) for done in (standard, flash))
    assert written - fused == 3 * 4 * 8 * (64 * 65 // 2) * 2
    assert sum(op.layers * op.flops for op in standard) == sum(op.layers * op.flops for op in flash)


def test_an_unknown_kind_of_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed: flash, standard"):
        ops(DENSE, Precision(), Work.decode(1, 2), attention="ring")  # type: ignore[arg-type]


def test_a_prompt_chunk_that_is_not_the_last_needs_no_head() -> None:
    read = named(DENSE, Work.chunk(16, 0, last=False), "weight_bytes")
    assert read["logits"] == read["norm.final"] == 0 and read["attn.qkv"] > 0


def test_vector_flops_are_kept_apart() -> None:
    """Llama-3.1-8B, one token: norms 4d, RoPE 3 a number, SwiGLU 5f, softmax 5 a score, sampling 5V."""
    counts = PassCost(model("llama-3.1-8b"), H100).counts(Work.decode(1, 100))
    a_layer = 2 * 4 * 4096 + 3 * 40 * 128 + 5 * 14336 + 5 * 32 * 100
    assert counts["vector_flops"] == 32 * a_layer + 4 * 4096 + 5 * 128_256
