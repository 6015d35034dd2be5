"""`explain` and the roofline points: lines that add up, bounds that follow from the ridge point, the first limit."""

from dataclasses import asdict
from math import inf

import pytest
from analytic_models import CROSS, DENSE, LATENT, MOE, WINDOWED, device, model

from sim.analytic.cost import DoesNotFit, Layout, PassCost
from sim.analytic.hardware import Engine
from sim.analytic.model import ModelShape
from sim.analytic.precision import Precision
from sim.analytic.roofline import CAUSES
from sim.analytic.work import Work
from sim.ask import explain, roofline_points, sequence_bytes

H100, A100 = device("h100-sxm"), device("a100-sxm-80gb")
LLAMA = model("llama-3.1-8b")


def test_kv_capacity_is_what_memory_is_left_over() -> None:
    """80 GB * 0.9 less 16.06 GB of weights and the workspace, at 128 KiB a token."""
    said = explain(LLAMA, H100, memory_fraction=0.9, prompt=1024, context=2048)
    lines = dict(said.budget.lines)
    assert lines["weights"] == 2 * 8_030_261_248 and said.kv_bytes_per_token == 131_072
    assert lines["workspace"] == 1024 * 3 * 14336 * 2  # gate, up and their product are the widest op
    assert said.kv_tokens == int((72e9 - lines["weights"] - lines["workspace"]) // 131_072)
    assert said.kv_sequences == said.kv_tokens // 2048
    assert sum(lines.values()) == pytest.approx(80e9)


def test_ops_say_what_binds_them() -> None:
    """Decode of 8 sequences is bound by weights and KV, prefill of 1,024 tokens by arithmetic."""
    said = explain(LLAMA, H100, batch=8, prompt=1024)
    by_phase = {(point.phase, point.op): point for point in said.ops}
    assert by_phase["decode", "mlp.up"].bound == "weights" and by_phase["decode", "attn.scores"].bound == "kv"
    assert by_phase["prefill", "mlp.up"].bound == "compute"
    assert by_phase["decode", "mlp.up"].intensity == pytest.approx(8)
    # eight sequences share nothing: 4 query heads use each KV byte pair, whatever the batch
    assert by_phase["decode", "attn.scores"].intensity == pytest.approx(4, rel=2e-3)
    assert {point.bound for point in said.ops} <= set(CAUSES)


@pytest.mark.parametrize("shape", [LLAMA, WINDOWED, MOE, LATENT, CROSS], ids=lambda s: s.name)
def test_the_seconds_of_the_ops_add_up_to_the_pass(shape: ModelShape) -> None:
    said = explain(shape, H100, batch=4, prompt=300, context=200)
    for phase, seconds in (("prefill", said.prefill_s), ("decode", said.decode_s)):
        assert sum(p.seconds for p in said.ops if p.phase == phase) == pytest.approx(seconds, rel=1e-9)
        assert sum(said.causes[phase].values()) == pytest.approx(seconds, rel=1e-9)


def test_no_op_is_above_the_roof() -> None:
    """Attained FLOP/s stay below the peak and below intensity times bandwidth."""
    works = {"decode": Work.decode(32, 2000), "prefill": Work.prefill(1, 2000)}
    for point in roofline_points(PassCost(LLAMA, H100), works):
        if point.unit == "tensor":
            roof = min(989e12, point.intensity * 3350e9 if point.intensity < inf else inf)
            assert 0 < point.attained_flops <= roof * (1 + 1e-9)
        assert {"op", "phase", "flops", "hbm_bytes", "bound"} <= set(asdict(point))


def test_fused_attention_is_one_point_of_the_roofline() -> None:
    """Scores and values together: 4 FLOPs a byte of KV cache for Llama-3's four query heads a KV head."""
    points = roofline_points(PassCost(LLAMA, H100), {"decode": Work.decode(32, 2000)})
    [point] = [p for p in points if p.op == "attn.decode"]
    assert point.intensity == pytest.approx(4, rel=1e-3) and point.bound == "kv"
    assert not any(p.op in ("attn.scores", "attn.softmax", "attn.values") for p in points)


def test_what_saturates_first_depends_on_the_context() -> None:
    """Llama-3.1-8B on an H100: at 256 tokens arithmetic at batch 296, at 8,192 the KV cache long before that."""
    short, long = (explain(LLAMA, H100, context=context) for context in (256, 8192))
    assert short.first_limit.what == "linear layers are compute-bound"
    assert short.first_limit.batch in range(296, 299)  # norms and gathered rows add a little to the weights
    assert long.first_limit.what == "KV cache is full" and long.first_limit.batch == long.kv_sequences + 1
    assert [limit.batch or inf for limit in long.limits] == sorted(limit.batch or inf for limit in long.limits)


def test_the_engine_brings_limits_and_host_time() -> None:
    engine = Engine("slow", step_s=1e-3, layer_s=1e-4, sequence_s=1e-5, max_sequences=64, memory_fraction=0.8)
    plain, said = explain(LLAMA, H100, batch=10), explain(LLAMA, H100, batch=10, engine=engine)
    assert said.decode_s - plain.decode_s == pytest.approx(1e-3 + 32 * 1e-4 + 10 * 1e-5)
    assert said.first_limit.batch == 65 and dict(said.budget.lines)["reserve"] == pytest.approx(16e9)
    assert said.tokens_per_s == pytest.approx(10 / said.decode_s)


def test_fallbacks_are_told() -> None:
    """fp8 on an A100: stored in 8 bits, multiplied in 16, and the answer says so."""
    [note] = explain(LLAMA, A100, Precision("fp8", compute="fp8")).notes
    assert "fp8" in note and "bf16" in note
    assert any("power is unknown" in note for note in explain(DENSE, device("tpu-v5e")).notes)
    assert any("on-chip memory (L2)" in note for note in explain(DENSE, H100).notes)


def test_a_cut_model_is_explained_per_device() -> None:
    one, two = explain(model("llama-2-13b"), H100), explain(model("llama-2-13b"), H100, layout=Layout(tensor=2))
    assert dict(two.budget.lines)["weights"] == pytest.approx(dict(one.budget.lines)["weights"] / 2, rel=1e-3)
    assert two.kv_bytes_per_token == one.kv_bytes_per_token / 2 and two.decode_s < one.decode_s


def test_a_window_bounds_what_a_sequence_keeps() -> None:
    cost = PassCost(WINDOWED, H100)
    near, full = cost.kv_bytes_per_token
    assert sequence_bytes(cost, 10) == 10 * (near + full)
    assert sequence_bytes(cost, 1000) == 32 * near + 1000 * full


def test_what_does_not_fit_says_so() -> None:
    with pytest.raises(DoesNotFit, match="weights 141 GB"):
        explain(model("llama-3-70b"), H100)


def test_an_encoder_alone_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="bert-base: an encoder alone"):
        explain(model("bert-base"), H100)
    points = roofline_points(PassCost(model("bert-base"), H100), {"encode": Work.encode(8, 128)})
    assert sum(p.flops for p in points if p.op == "encoder.mlp.up") == 12 * 2 * 8 * 128 * 768 * 3072


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"prompt": -1}, {"context": 1.5}, {"batch": True}])
def test_numbers_below_one_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be a whole number of at least 1"):
        explain(LLAMA, H100, **wrong)  # type: ignore[arg-type]
