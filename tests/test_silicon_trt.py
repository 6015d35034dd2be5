"""TensorRT-LLM's throughput tables: limits by hand, what cannot be predicted, what memory decides, and int4."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from sim import Scenario, simulate
from sim.analytic.hardware import GB
from sim.build import build_scenario, load_device, load_engine, with_kernels
from sim.calibration import serving_trt
from sim.silicon import at_once_judged, tensorrt_llm
from sim.silicon.at_once import device_named, model_named

CELL: dict[str, Any] = {
    "model": "LLaMA v3.1 8B", "gpu": "H100", "gpu_variant": "H100 80GB HBM3", "precision": "FP8", "parallelism": "TP1",
    "isl": 500, "osl": 200, "num_requests": 300, "output_tok_s_total": 1.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("held", "prompt", "output", "limits"),
    [(23.2, 2048, 128, (64, 2048)), (444.0, 2048, 128, (512, 7680)), (5e4, 128, 128, (4096, 8192)),
     (1211.5, 2048, 128, (1280, 21504))],
)  # fmt: skip
def test_engines_are_built_for_what_the_cache_holds(
    held: float, prompt: int, output: int, limits: tuple[int, int]
) -> None:
    """Batch to the next 32, 128 or 256, tokens batch * (1 + prompt/output) to 256, 512 or 1024; 64, 2048 at least."""
    assert tensorrt_llm.limits(held, prompt, output) == limits


def test_names_of_the_tables_are_names_of_ours() -> None:
    """Models and devices as NVIDIA, Splitwise and users spell them."""
    assert model_named("LLaMA v3 70B") == "llama-3-70b" and model_named("llama2-70b") == "llama-2-70b"
    assert model_named("Mistral 7B") == "mistral-7b-v0.3" and model_named("Qwen 2.5 7B") == "qwen2.5-7b"
    assert device_named("H100 80GB HBM3") == "h100-sxm" and device_named("A100-SXM4-80GB") == "a100-sxm-80gb"
    assert device_named("A100-PCIE-80GB") == "a100-pcie-80gb" and device_named("GH200 96GB HBM3 CG1") == "gh200-96gb"
    assert device_named("h100-80gb-pcap") == "h100-sxm"


@pytest.mark.parametrize(
    ("change", "said"),
    [({"model": "GPT-J 6B"}, "model: 'GPT-J 6B'"), ({"gpu_variant": "X9", "gpu": "X9"}, "gpu: 'X9'"),
     ({"precision": "W3"}, "precision: 'W3'"), ({"parallelism": "TP2 of 8"}, "parallelism"), ({"isl": -4}, "isl"),
     ({"osl": float("nan")}, "osl: empty"), ({"model": "LLaMA v3.1 405B"}, "which leaves no KV cache"),
     ({"parallelism": "TP3"}, "layout.tensor: 3")],
)  # fmt: skip
def test_a_row_that_cannot_be_predicted_says_why(change: dict[str, Any], said: str) -> None:
    """The row stays, with an empty prediction and one line naming what is not known; the others are predicted."""
    done: list[int] = []
    found = tensorrt_llm.predict(pd.DataFrame([{**CELL, **change}, CELL]), done.append)
    reasons = found["reason"].tolist()
    assert said in reasons[0] and "\n" not in reasons[0] and reasons[1] == "" and done == [1, 2]
    assert found["predicted_tok_s_total"].isna().tolist() == [True, False]


def test_an_empty_table_keeps_its_columns() -> None:
    """No rows in, no rows out, with the columns of predictions."""
    found = tensorrt_llm.predict(pd.DataFrame([CELL]).iloc[:0])
    assert {"predicted_tok_s_total", "reason"} <= set(found.columns) and not len(found)


def test_columns_identify_the_shipped_table() -> None:
    """What recognises a layout is in the table, and so is every measured column of its pairs."""
    columns = set(at_once_judged.grid(400).columns)
    assert columns >= tensorrt_llm.COLUMNS and {m for m, _, _ in tensorrt_llm.pairs()} <= columns


def test_memory_is_a_share_of_what_weights_and_the_process_leave() -> None:
    """pool = 0.95 * (reported - weights - workspace - runtime), not a share of the marketed capacity."""
    built = tensorrt_llm.prepared({**CELL, "model": "LLaMA v3.1 70B"})
    engine, lines = load_engine("tensorrt-llm"), dict(built.budget.lines)
    device = load_device("h100-sxm")
    assert device.reported_bytes == 85.5 * GB and engine.memory_fraction_of == "free" and engine.runtime_bytes > 2 * GB
    assert lines["workspace"] > engine.runtime_bytes
    left = device.reported_bytes - lines["weights"] - lines["workspace"]
    assert lines["KV pool"] == pytest.approx(0.95 * left)


@pytest.mark.slow
def test_one_device_with_no_room_is_seven_times_slower_than_two() -> None:
    """Llama-3.1-70B in fp8: 912 tokens/s on one H100 where two give 6,170 (measured); both within 25 %."""
    cell = {**CELL, "model": "LLaMA v3.1 70B", "isl": 128, "osl": 2048, "num_requests": 3000}
    one, two = (tensorrt_llm.cell({**cell, "parallelism": ways}) for ways in ("TP1", "TP2"))
    assert one == pytest.approx(911.6, rel=0.25) and two == pytest.approx(6169.6, rel=0.25) and two > 5 * one


def test_more_stages_are_another_layout() -> None:
    """TP2PP2 is two stages of two devices, whose cell runs."""
    said = tensorrt_llm.scenario({**CELL, "parallelism": "TP2PP2"})
    assert said["layout"] == {"tensor": 2, "pipeline": 2}
    assert tensorrt_llm.cell({**CELL, "parallelism": "TP2PP2", "num_requests": 60}) > 0


def test_collectives_wait_and_run_at_a_share_of_their_pace() -> None:
    """Each algorithm of each collective: the wait is added and the pace multiplied; PCIe takes the engine's own."""
    engine = load_engine("tensorrt-llm")
    bare = with_kernels(load_device("h100-sxm"), load_engine("sglang")).kernels
    own = with_kernels(load_device("h100-sxm"), engine).kernels
    pcie = with_kernels(load_device("l40s"), engine)
    assert bare is not None and own is not None and pcie.kernels is not None
    one = own.collective("all_reduce", 4)
    assert one is not None and one.small_s > engine.collective_us * 1e-6
    sent = 1e8
    over_pcie = pcie.kernels.collective("all_reduce", 4)
    assert over_pcie is not None and engine.pcie_efficiency is not None
    wanted = engine.pcie_us * 1e-6 + sent / (32e9 * engine.pcie_efficiency)
    assert float(over_pcie.seconds(sent, 32e9)) == pytest.approx(wanted)


def test_the_fit_finds_the_terms_that_made_its_cells() -> None:
    """Cells whose times are computed with a wait of 40 us and 0.6 of the pace give 40 and 0.6 back."""
    frame = serving_trt.measured(90)
    found = [cell for cell in serving_trt.cells(frame, "sglang") if cell.link == "NVLink"][:4]
    made = [serving_trt.Cell(**{**vars(cell), "measured_s": cell.seconds((40.0, 0.6))}) for cell in found]
    fitted = serving_trt._fitted(made, serving_trt.PARAMETERS["NVLink"])
    assert fitted["collective_us"][0] == pytest.approx(40, rel=0.05)
    assert fitted["collective_speed"][0] == pytest.approx(0.6, rel=0.05)


@pytest.mark.parametrize("engine", ["tensorrt-llm", "vllm-v1"])
@pytest.mark.parametrize("hardware", ["a100-sxm-80gb", "h100-sxm"])
def test_weight_only_int4_loses_at_saturation_and_wins_alone(engine: str, hardware: str) -> None:
    """At 384 users bf16 gives more tokens a second, by precision and by variant; at one user int4 does."""
    bf16, int4, variant = (
        {users: _tokens_per_s(engine, hardware, users, change) for users in (1, 384)}
        for change in ({}, {"precision": {"weights": "int4_g128"}}, {"variants": [{"quantization": {"format": "awq"}}]})
    )
    assert int4[1] > 1.1 * bf16[1] and variant[1] > 1.1 * bf16[1]
    assert int4[384] < bf16[384] and variant[384] < bf16[384]


def _tokens_per_s(engine: str, hardware: str, users: int, change: dict[str, Any]) -> float:
    said = {
        "model": "llama-3.1-8b", "hardware": hardware, "engine": engine, "clock": "fixed",
        "scheduler": {"name": "chunked", "token_budget": 8192, "max_sequences": 384},
        "workload": {"concurrency": users, "prompt": 256, "output": 128, "requests": 2 * users}, **change,
    }  # fmt: skip
    table = simulate(build_scenario(Scenario.parse(said))).recorder.requests.frame()
    return float(table["output"].sum() / (table["finish_ns"].max() * 1e-9))


@pytest.mark.slow
def test_a_sample_of_the_held_out_release() -> None:
    """Every 40th cell of v0.17, which no fit has seen: median within 15 %; a tenth of the pace is noticed."""
    frame = at_once_judged.grid(40)
    found = tensorrt_llm.predict(frame)
    error = (found["predicted_tok_s_total"] / found["output_tok_s_total"] - 1).abs()
    assert error.median() < 0.15 and error.quantile(0.9) < 0.4
    assert (0.1 * found["predicted_tok_s_total"] / found["output_tok_s_total"] - 1).abs().median() > 0.8
