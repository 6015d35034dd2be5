"""InferenceX points: a row becomes the scenario that was measured, and what cannot be predicted says why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import hardware_profiles
from hardware_profiles.schema import check_engine
from sim.analytic.cost import PassCost
from sim.analytic.hardware import Device
from sim.analytic.kernel_book import ExpertTerms, KernelBook, scheme
from sim.analytic.precision import FORMATS, Precision
from sim.analytic.work import Work
from sim.build import build_scenario, load_shape
from sim.scenario import Scenario
from sim.silicon import inferencex, inferencex_judged
from sim.silicon.inferencex_fit import half
from sim.silicon.inferencex_rows import Unpredictable, scenario, trap

DENSE: dict[str, Any] = {
    "backend": "vllm", "model_path": "meta-llama/Llama-3.1-70B", "system": "h200_sxm", "mode": "agg", "isl": 1024,
    "osl": 1024, "concurrency": 16.0, "gemm_quant_mode": "fp8", "tp_size": 4.0, "pp_size": 1.0,
    "attention_dp_size": 1.0, "moe_tp_size": 4.0, "moe_ep_size": 1.0, "silicon_ttft_ms": 126.2,
    "silicon_tpot_ms": 10.94,
}  # fmt: skip
MOE = {**DENSE, "backend": "trtllm", "model_path": "deepseek-ai/DeepSeek-R1"}


def layout(**changed: Any) -> tuple[int, int, int]:
    """(tensor, data, expert) of a row with experts."""
    said = scenario({**MOE, **changed})["layout"]
    return said["tensor"], said["data"], said["expert"]


def test_a_dense_point_is_met_without_anything_fitted_to_it() -> None:
    """Measured 126.2 and 10.94 ms: within a sixth and a tenth."""
    found = inferencex.predict(pd.DataFrame([DENSE])).iloc[0]
    assert found["predicted_ttft_ms"] == pytest.approx(126.2, rel=1 / 6)
    assert found["predicted_tpot_ms"] == pytest.approx(10.94, rel=0.1) and found["reason"] == ""


def test_the_loop_is_the_measured_one() -> None:
    """Ten requests a slot, lengths uniform from 0.8 to 1.0 of nominal: 819 to 1024."""
    said = scenario(DENSE)["workload"]
    assert said["concurrency"] == 16 and said["requests"] == 160
    assert said["prompt"] == said["output"] == {"kind": "uniform", "low": 819, "high": 1024}


@pytest.mark.parametrize("wait", [-1, 1001, 2.0, True, "20"])
def test_a_wait_that_is_no_number_of_rounds_is_refused(wait: Any) -> None:
    """From 0 to 1,000 rounds, whole; one line names the key."""
    said = {**scenario(DENSE), "scheduler": {"name": "chunked", "batch_wait": wait}}
    with pytest.raises(ValueError, match="scheduler.batch_wait: .* is not a whole number from 0 to 1000"):
        build_scenario(Scenario.parse(said))


def test_fixed_lengths_run_in_step_under_sglang_alone() -> None:
    """Of NVIDIA's gap analyses: 1,024 tokens exactly, or 922 to 1126 where users are seen not to run in step."""
    fixed = {**DENSE, "source": "NVIDIA gap-analysis"}
    assert scenario({**fixed, "backend": "sglang"})["workload"]["prompt"] == 1024
    assert scenario(fixed)["workload"]["prompt"] == {"kind": "uniform", "low": 922, "high": 1126}


def test_prompts_wait_for_company_where_the_benchmark_says_so() -> None:
    """Llama 70B under TensorRT-LLM, 1,024 and 1,024 tokens, 4 devices, 16 users: 281.93 ms measured, 128 without."""
    row = {**DENSE, "backend": "trtllm"}
    assert scenario(row)["scheduler"]["batch_wait"] == 20
    assert inferencex.predict(pd.DataFrame([row])).iloc[0]["predicted_ttft_ms"] == pytest.approx(281.93, rel=0.12)
    for change in ({"osl": 8192}, {"tp_size": 8.0}, {"backend": "vllm"}):
        assert "batch_wait" not in scenario({**row, **change})["scheduler"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"tp_size": 8.0, "moe_tp_size": 8.0, "moe_ep_size": 1.0}, (8, 1, 1)),
        ({"tp_size": 8.0, "moe_tp_size": 1.0, "moe_ep_size": 8.0}, (8, 1, 8)),
        ({"tp_size": 64.0, "moe_tp_size": 8.0, "moe_ep_size": 8.0}, (8, 1, 8)),
        ({"tp_size": 1.0, "attention_dp_size": 64.0, "moe_tp_size": 8.0, "moe_ep_size": 8.0}, (1, 8, 8)),
        ({"tp_size": 1.0, "attention_dp_size": 8.0, "moe_tp_size": 1.0, "moe_ep_size": 8.0}, (1, 8, 8)),
        ({"tp_size": 1.0, "attention_dp_size": np.nan, "moe_tp_size": 2.0, "moe_ep_size": 1.0}, (1, 2, 1)),
        ({"tp_size": 2.0, "attention_dp_size": np.nan, "moe_tp_size": 4.0, "moe_ep_size": 1.0}, (2, 2, 1)),
    ],
)
def test_layouts_are_read_through_their_traps(row: dict[str, float], expected: tuple[int, int, int]) -> None:
    """Devices counted twice where experts are spread; data ranks left out where the experts' devices tell them."""
    assert layout(**row) == expected


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"model_path": "zhipuai/GLM-5"}, "model_path: zhipuai/GLM-5: no model"),
        ({"system": "tpu_v9"}, "system: tpu_v9: no device"),
        ({"backend": "mystery"}, "backend: 'mystery'"),
        ({"concurrency": np.nan}, "concurrency: not said"),
        ({"concurrency": -4.0}, "concurrency: -4.0"),
        ({"tp_size": 2.5}, "tp_size: 2.5"),
        ({"gemm_quant_mode": "fp3"}, "gemm_quant_mode: 'fp3'"),
        ({"mode": "disagg"}, "prefill_num_workers: not said"),
        ({"tp_size": 3.0}, "layout.tensor: 3 does not divide"),
        ({"system": "a100_sxm", "tp_size": 1.0, "model_path": "meta-llama/Llama-3.1-405B"}, "leaves no KV cache"),
    ],
)
def test_what_cannot_be_predicted_is_kept_with_a_reason(row: dict[str, Any], reason: str) -> None:
    """Both predictions are empty, and the line says which column."""
    found = inferencex.predict(pd.DataFrame([{**DENSE, **row}])).iloc[0]
    assert np.isnan(found["predicted_ttft_ms"]) and np.isnan(found["predicted_tpot_ms"])
    assert reason in found["reason"] and "\n" not in found["reason"]


def test_other_devices_and_models_are_predicted() -> None:
    """An 8B on one H100 and on one B200: the newer device writes faster."""
    rows = [
        {**DENSE, "model_path": "meta-llama/Llama-3.1-8B", "tp_size": 1.0, "system": s}
        for s in ("h100_sxm", "b200_sxm")
    ]
    found = inferencex.predict(pd.DataFrame(rows))
    assert (found["reason"] == "").all() and found["predicted_tpot_ms"][0] > found["predicted_tpot_ms"][1]


def test_pools_are_those_of_the_row() -> None:
    """One worker of 8 data ranks reads, nine of tensor 8 write."""
    sides = {"prefill": (1.0, 1.0, 8.0), "decode": (9.0, 8.0, 1.0)}
    row: dict[str, Any] = {**MOE, "mode": "disagg"}
    for side, (workers, tensor, data) in sides.items():
        row |= {f"{side}_num_workers": workers, f"{side}_tp_size": tensor, f"{side}_attention_dp_size": data,
                f"{side}_pp_size": 1.0, f"{side}_moe_tp_size": 1.0, f"{side}_moe_ep_size": 8.0}  # fmt: skip
    built = build_scenario(Scenario.parse(scenario(row)))
    (reads, one), (writes, nine) = built.pools
    assert (one, reads.layout.data, reads.layout.expert) == (1, 8, 8) and (nine, writes.layout.tensor) == (9, 8)


def test_a_shape_may_have_no_experts_for_its_ranks() -> None:
    """Experts' columns of dense rows are ignored."""
    assert scenario({**DENSE, "moe_tp_size": 1.0, "attention_dp_size": np.nan})["layout"]["data"] == 1


def test_drafted_rows_contradict_rows_that_say_the_same() -> None:
    """DeepSeek, TP 8, four users, 1024 in and out: 13.805 and 13.820 ms agree; the trap's 8.584 is 0.62 of them."""
    table = inferencex_judged.shipped(1)
    same = table[
        table["model_path"].str.contains("DeepSeek") & (table["backend"] == "trtllm") & (table["mode"] == "agg")
    ]
    same = same[(same["isl"] == 1024) & (same["osl"] == 1024) & (same["concurrency"] == 4)]
    caught = same.apply(trap, axis=1) != ""
    assert sorted(same.loc[~caught, "silicon_tpot_ms"].round(3)) == [13.805, 13.82]
    assert same.loc[caught, "silicon_tpot_ms"].round(3).tolist() == [8.584]


def test_the_same_setting_is_in_one_half_whoever_ran_it() -> None:
    """V3 and R1 are one shape; about half of all points may be fitted to."""
    row = pd.Series(MOE)
    assert half(row) == half(pd.Series({**MOE, "model_path": "deepseek-ai/DeepSeek-V3"}))
    assert 0.4 < inferencex_judged.shipped(1).apply(half, axis=1).mean() < 0.6


def experts_cost(terms: ExpertTerms | None) -> PassCost:
    """gpt-oss-120b on two H200 under vLLM, experts as said."""
    device = Device.from_profile(hardware_profiles.load("h200-sxm"))
    book = KernelBook.from_profile(hardware_profiles.kernels("h200-sxm", "vllm"))
    book = book if terms is None else replace(book, experts={"int4_wo": terms})
    return PassCost(load_shape("gpt-oss-120b", "model"), replace(device, kernels=book), Precision())


def test_neutral_expert_terms_change_no_bit() -> None:
    """Shares of 1 and times of 0."""
    work = Work(64, 64, decode_pairs=(9000, 90000), decode_reads=(9000, 90000))
    assert experts_cost(None).seconds(work) == experts_cost(ExpertTerms()).seconds(work)


def test_expert_terms_add_what_they_say() -> None:
    """36 layers: 36 times the layer's time, and us per MB of one expert's 2880 x 8640 numbers of 4.25 bits."""
    work = Work(64, 64, decode_pairs=(9000, 90000), decode_reads=(9000, 90000))
    alone = experts_cost(None).seconds(work)
    routed = experts_cost(ExpertTerms(layer_s=50e-6)).seconds(work)
    streamed = experts_cost(ExpertTerms(matrix_s=2e-12)).seconds(work)
    assert routed - alone == pytest.approx(36 * 50e-6, rel=1e-9)
    one_MB = (2880 * 5760 + 5760 + 2880 * 2880 + 2880) * 4.25 / 8 * 1e-6
    assert streamed - alone == pytest.approx(36 * 2e-6 * one_MB, rel=1e-3)


def test_engine_profiles_refuse_odd_expert_terms() -> None:
    """A share of 0, and a format that no kernel table has."""
    profile = hardware_profiles.engine("vllm-v1")
    entry = {"compute": 0.0, "memory": 1.0, "layer_us": 1.0, "matrix_us_per_MB": 0.0}
    for experts, said in (({"fp8_block": entry}, "experts.fp8_block.compute"), ({"fp7": entry}, "fp7")):
        with pytest.raises(ValueError, match=said):
            check_engine({**profile, "experts": experts}, "mine.yaml")


def test_products_may_have_the_terms_of_another_library() -> None:
    """TensorRT-LLM's fp8 products time a scale pass, 12 us of floor; static scales take vLLM's 5; bf16 stays."""
    workload = {"rate": 1, "prompt": 8, "output": 2, "requests": 1}
    said = {"model": "llama-3.1-8b", "hardware": "h100-sxm", "engine": "tensorrt-llm-pytorch", "workload": workload}
    book = build_scenario(Scenario.parse(said)).device.kernels
    own, other = (KernelBook.from_profile(hardware_profiles.kernels("h100-sxm", lib)) for lib in ("trtllm", "vllm"))
    assert isinstance(book, KernelBook)
    assert own.product("fp8", "fp8").floor_s > 10e-6 > book.product("fp8", "fp8").floor_s
    assert book.product("fp8", "fp8") == other.product("fp8", "fp8")
    assert book.product("bf16", "bf16") == own.product("bf16", "bf16")


def test_a_scenario_says_what_products_multiply_in() -> None:
    """fp8 weights beside bf16 activations: bf16 products unless compute says fp8; another word is refused."""
    workload = {"rate": 1, "prompt": 8, "output": 2, "requests": 1}
    said = {"model": "llama-3.1-8b", "hardware": "h100-sxm", "workload": workload}
    narrow = {"weights": "fp8", "activations": "bf16"}
    formats = [
        build_scenario(Scenario.parse({**said, "precision": {**narrow, "compute": compute}})).precision.product_format(
            "fp8"
        )
        for compute in (None, "fp8")
    ]
    assert formats == ["bf16", "fp8"]
    with pytest.raises(ValueError, match=r"precision.compute: 'fp7' is no number format"):
        build_scenario(Scenario.parse({**said, "precision": {"compute": "fp7"}}))


def test_block_scales_take_a_quarter_of_a_percent_of_a_byte() -> None:
    """One 32-bit scale for 128 x 128 numbers; products multiply in fp8 with kernels of their own."""
    assert FORMATS["fp8_block"].stored_bytes == 1 + 4 / (128 * 128)
    assert (
        scheme("fp8_block", "fp8") == "fp8_block"
        and Precision("fp8_block", compute="fp8").product_format("fp8_block") == "fp8"
    )


def test_a_planted_fault_fails_the_verdict() -> None:
    """Predictions twice too long are 100 % off, whatever the sample."""
    row = pd.DataFrame([DENSE]).assign(dense=True, trap="", fitted=False, reason="", textbook_ttft_ms=1.0,
                                       textbook_tpot_ms=1.0)  # fmt: skip
    good = row.assign(predicted_ttft_ms=row["silicon_ttft_ms"] * 1.05, predicted_tpot_ms=row["silicon_tpot_ms"] * 0.97)
    bad = good.assign(predicted_tpot_ms=row["silicon_tpot_ms"] * 2)
    assert [v.passed for v in inferencex_judged.verdicts(good)[:2]] == [True, True]
    assert not inferencex_judged.verdicts(bad)[0].passed


def test_an_unpredictable_row_names_its_column() -> None:
    """Raised for callers that want one row."""
    with pytest.raises(Unpredictable, match="isl: not said"):
        scenario({key: value for key, value in DENSE.items() if key != "isl"})


@pytest.mark.slow
def test_a_fixed_part_of_the_points_stays_within_limits() -> None:
    """Every sixtieth shipped point: mean TPOT error of what can be judged below 20 %."""
    found = inferencex_judged.points(inferencex_judged.shipped(60))
    fair = found[found["predicted_tpot_ms"].notna() & (found["trap"] == "")]
    error = (fair["predicted_tpot_ms"] / fair["silicon_tpot_ms"] - 1).abs()
    assert len(fair) >= 6 and error.mean() < 0.2
