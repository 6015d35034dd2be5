"""Metrics: conservation laws, hand-made tables, percentiles against their definition, warnings that can be silent."""

import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from output_runs import RUNS, TRAFFIC, run, scenario

from analysis.frames import masked
from analysis.latency import describe, describe_weighted, weighted_percentiles
from analysis.promise import judge, kept
from analysis.requests import STATUS
from analysis.rounds import expand_rounds
from analysis.verdict import sentence, verdict
from analysis.warnings import backlog
from sim import simulate
from sim.account import SECONDS
from sim.scenario import SloPart
from sim.serving import record

WEIGHTED = st.dictionaries(st.integers(1, 10**9), st.integers(1, 40), min_size=1, max_size=30)


@given(WEIGHTED, st.lists(st.floats(0, 100), min_size=1, max_size=5))
def test_weighted_percentiles_are_those_of_the_expanded_multiset(table: dict, percentiles: list) -> None:
    """NumPy's linear interpolation, to the last bit but two."""
    values = np.array(sorted(table), dtype=float)
    weights = np.array([table[int(v)] for v in values])
    expanded = np.repeat(values, weights)
    found = weighted_percentiles(values, weights, percentiles)
    np.testing.assert_allclose(found, np.percentile(expanded, percentiles), rtol=1e-12)
    ours, theirs = describe_weighted(values, weights), describe(expanded)
    assert all(ours[k] == pytest.approx(theirs[k], rel=1e-9, abs=1e-3) for k in theirs)


def test_statistics_of_nothing_are_unknown() -> None:
    """No value is None, never 0 or NaN."""
    assert set(describe(np.zeros(0)).values()) == {None}
    assert set(describe_weighted(np.zeros(0), np.zeros(0, dtype=int)).values()) == {None}


def test_status_words_are_the_recorders() -> None:
    """analysis may not import the recorder, so it spells the words itself."""
    assert STATUS == record.STATUS


@pytest.mark.parametrize("name", ["plain", "two replicas", "windows", "offline"])
def test_seats_times_time_is_the_time_of_decoding(name: str) -> None:
    """Little's law without averages: batch x duration over rounds is last minus first token over requests, exactly."""
    result = run(name)
    rounds, requests = result.round_columns, result.request_columns
    assert (rounds["batch"] * rounds["duration_ns"]).sum() == (requests["finish_ns"] - requests["first_token_ns"]).sum()


@pytest.mark.parametrize("name", RUNS)
def test_tokens_are_conserved(name: str) -> None:
    """Rounds of sequences, prompt tokens and gaps between tokens are as many as the requests say."""
    result = run(name)
    rounds, requests = result.round_columns, result.request_columns
    assert (requests["status"] == "finished").all()
    assert (rounds["batch"] * rounds["n_rounds"]).sum() == requests["rounds"].sum()
    gaps, weights = result.recorder.gaps.weighted()
    emitted = requests["output_tokens"] * requests["samples"]
    if name == "speculative":
        assert (requests["rounds"] + requests["accepted_tokens"] >= emitted - 1).all()
        return
    assert weights.sum() == (emitted - requests["samples"]).sum()
    if requests["preemptions"].sum() == 0:
        assert rounds["prefill_tokens"].sum() == requests["prompt_tokens"].sum()
        assert requests["rounds"].sum() == (emitted - requests["samples"]).sum()
    else:
        assert rounds["prefill_tokens"].sum() > requests["prompt_tokens"].sum()
    if name != "samples":
        assert (gaps * weights).sum() == (requests["finish_ns"] - requests["first_token_ns"]).sum()


def test_preemptions_happen_where_memory_is_tight() -> None:
    """Else the branch above was never taken."""
    assert run("tight memory").metrics["requests"]["preemptions"] > 0


@pytest.mark.parametrize("name", RUNS)
def test_summary_is_json_and_its_parts_add_up(name: str) -> None:
    """Phases share the busy time, causes share a phase, shares are shares."""
    found = json.loads(json.dumps(run(name).metrics, allow_nan=False))
    assert sum(p["share"] for p in found["phases"].values()) == pytest.approx(1)
    for phase in found["phases"].values():
        assert sum(phase["seconds_by_cause"].values()) == pytest.approx(phase["seconds"], rel=1e-9)
        assert 0 <= phase["mfu"] <= 1 and 0 <= phase["mbu"] <= 1.001
        assert phase["seconds_by_cause"][phase["bound_by"]] == max(phase["seconds_by_cause"].values())
    replicas = run(name).scenario.replicas
    busy = sum(p["seconds"] for p in found["phases"].values())
    assert found["utilisation"]["busy"] == pytest.approx(busy / (replicas * found["duration_s"]))
    assert 0 <= found["kv"]["waste"] < 1 and found["kv"]["peak_share"] <= 1
    requests = found["requests"]
    assert requests["arrived"] == sum(requests[s] for s in STATUS)


def test_throughput_is_tokens_over_time() -> None:
    """vLLM's definitions, by hand."""
    found = run("plain").metrics
    seconds = found["duration_s"]
    assert found["throughput"]["requests_per_s"] == pytest.approx(150 / seconds)
    assert found["throughput"]["output_tokens_per_s"] == pytest.approx(150 * 40 / seconds)
    assert found["throughput"]["total_tokens_per_s"] == pytest.approx(150 * 340 / seconds)


def test_a_bill_is_rent_by_the_hour() -> None:
    """Two replicas of one device each, from start to end."""
    found, device = run("two replicas").metrics, run("two replicas").built.device
    usd = 2 * device.usd_per_hour * found["duration_s"] / 3600
    assert found["cost"]["usd"] == pytest.approx(usd)
    assert found["cost"]["usd_per_million_output_tokens"] == pytest.approx(usd / (150 * 40) * 1e6)


def test_latencies_of_a_request_alone() -> None:
    """One request: TTFT is its prefill, TPOT the mean decode round, and ITL sees the same rounds."""
    result = simulate(scenario(workload={**TRAFFIC, "requests": 1}))
    rounds, found = result.round_columns, result.metrics["latency"]
    assert found["ttft_ms"]["mean"] == pytest.approx(rounds["duration_ns"][0] * 1e-6)
    decode = rounds["duration_ns"][1:].sum() * 1e-6 / 39
    assert found["tpot_ms"]["mean"] == pytest.approx(decode)
    assert found["itl_ms"]["mean"] == pytest.approx(decode)


def test_acceptance_of_speculative_decoding() -> None:
    """alpha = 0.7, gamma = 3: 1 + 0.7 + 0.49 + 0.343 tokens a round, 51 % of the drafted ones kept."""
    found = run("speculative").metrics["acceptance"]
    assert found["mean_accepted_length"] == pytest.approx(2.533, rel=0.05)
    assert found["draft_acceptance_rate"] == pytest.approx((found["mean_accepted_length"] - 1) / 3)
    assert run("plain").metrics["acceptance"]["draft_acceptance_rate"] is None


def test_one_token_has_no_tpot_and_still_is_good() -> None:
    """vLLM leaves it out of the mean and counts it as 0 for goodput."""
    found = run("one token").metrics
    assert found["latency"]["tpot_ms"]["mean"] is None
    assert found["goodput"]["attainment"] == 1.0


def columns(**values: list) -> dict:
    return {name: np.array(column) for name, column in values.items()}


def test_goodput_counts_misses_failures_and_single_tokens() -> None:
    """Hand-made: good, too slow, rejected, one token."""
    table = columns(status=["finished", "finished", "rejected", "finished"])
    table["ttft_ms"] = masked(np.array([100.0, 100.0, 0.0, 90.0]), [False, False, True, False])
    table["tpot_ms"] = masked(np.array([20.0, 60.0, 0.0, 0.0]), [False, False, True, True])
    table["e2el_ms"] = masked(np.array([1e3, 3e3, 0.0, 90.0]), [False, False, True, False])
    slo = SloPart(ttft_ms=200, tpot_ms=50, percentile=50)
    assert kept(table, slo).tolist() == [True, False, False, True]
    verdicts = {v["metric"]: v for v in judge(table, slo)}
    assert verdicts["ttft_ms"]["value"] == 100.0 and verdicts["ttft_ms"]["met"]
    assert verdicts["tpot_ms"]["value"] == 40.0
    assert "e2el_ms" not in verdicts


def test_goodput_is_absent_without_objectives() -> None:
    """Nothing was promised, nothing is judged."""
    found = simulate(scenario(slo={}, workload={**TRAFFIC, "requests": 5})).metrics
    assert found["goodput"] is None and found["slo"] == []
    assert verdict(run("plain")).startswith("Meets")


def test_rejected_requests_have_nulls_and_a_warning() -> None:
    """Prompts beyond the model's context: no first token, no finish, no share of the energy, attainment 0."""
    result = simulate(scenario(workload={**TRAFFIC, "prompt": 200_000, "requests": 4}))
    requests, found = result.request_columns, result.metrics
    assert found["requests"]["rejected"] == 4 and found["goodput"]["attainment"] == 0.0
    assert all(requests[n].mask.all() for n in ("first_token_ns", "ttft_ms", "e2el_ms", "finish_ns", "queue_ms"))
    assert any("rejected" in w for w in found["warnings"])
    assert verdict(result) == "Nothing ran: no request was served."


def test_warm_up_leaves_the_latencies_and_the_window() -> None:
    """Requests that arrived before it do not count; throughput is measured over the rest of the time."""
    result, whole = simulate(scenario(warmup_s=3.0)), run("plain").request_columns
    found, late = result.metrics, whole["arrival_ns"] >= 3e9
    assert 0 < late.sum() < len(late)
    assert found["latency"]["ttft_ms"]["mean"] == pytest.approx(whole["ttft_ms"][late].mean())
    done = int((whole["finish_ns"] >= 3e9).sum())
    assert found["throughput"]["requests_per_s"] == pytest.approx(done / (found["duration_s"] - 3.0))
    assert any("first 3 s" in w for w in found["warnings"])


def grows(result) -> bool:
    return any("backlog grows" in w for w in result.metrics["warnings"])


@pytest.mark.parametrize("seed", range(4))
def test_backlog_is_reported_when_traffic_exceeds_capacity_and_only_then(seed: int) -> None:
    """The same job at a rate it can carry, at one far beyond, and offline, where no rate is offered."""
    job = {**TRAFFIC, "requests": 2500}
    scheduler = {"name": "chunked", "token_budget": 512, "max_sequences": 32}
    stable, over = (
        simulate(scenario(workload={**job, "rate": rate}, scheduler=scheduler, seed=seed)) for rate in (100, 1000)
    )
    assert not grows(stable) and grows(over)
    assert not grows(run("offline"))


def test_backlog_by_hand() -> None:
    """One server of 10 a second: 9 a second pass, 20 a second pile up."""
    for rate, wanted in ((9, False), (20, True)):
        arrival = np.arange(1, 1001) * 1e9 / rate
        start = np.maximum.accumulate(arrival - np.arange(1000) * 1e8) + np.arange(1000) * 1e8
        table = {"arrival_ns": arrival.astype(np.int64), "queue_ms": np.ma.MaskedArray((start - arrival) / 1e6)}
        assert (backlog(table) is not None) == wanted, rate


def test_rounded_gaps_and_damage_are_reported() -> None:
    """Neither is silent."""
    result = simulate(scenario(workload={**TRAFFIC, "requests": 3}))
    result.recorder.gaps.quantum_ns = 1000
    result.notes.append("the trace ended early: line 7")
    result.dropped["negative length"] = 2
    warnings = " ".join(result.metrics["warnings"])
    assert "rounded to 1000 ns" in warnings and "The trace ended early" in warnings
    assert "2 rows of the trace were dropped: 2 negative length" in warnings
    assert result.metrics["requests"]["dropped_rows"] == {"negative length": 2}


def test_the_verdict_names_promise_bound_and_next_bottleneck() -> None:
    """One sentence, from the numbers of the summary."""
    found = run("plain").metrics
    said = sentence(found)
    assert re.fullmatch(
        r"Meets TTFT p99 <= 500 ms \([\d.]+ ms\) and TPOT p99 <= 50 ms \([\d.]+ ms\); "
        r"decode is bound by reading weights \(\d+% of its time\); "
        r"before \d[\d.e+]* times this rate .+ saturates next \(\d+% in use\)\.",
        said,
    ), said
    next_one = max(found["headroom"], key=found["headroom"].get)
    assert next_one in said


def test_the_verdict_follows_the_numbers() -> None:
    """Hand-made summaries: a miss, another bound, another bottleneck, a backlog."""
    found = {
        "slo": [{"metric": "ttft_ms", "limit": 10, "percentile": 99, "value": 20.0, "met": False}],
        "phases": {"mixed": {"seconds": 4.0, "bound_by": "kv", "seconds_by_cause": {"kv": 3.0, "weights": 1.0}}},
        "headroom": {"KV memory": 0.5, "compute": 0.25},
        "warnings": [],
    }
    assert sentence(found) == (
        "Misses TTFT p99 <= 10 ms (20 ms); rounds that mix prefill and decode are bound by reading the KV cache "
        "(75% of its time); before 2 times this rate KV memory saturates next (50% in use)."
    )
    found["headroom"]["compute"] = 0.95
    assert sentence(found).endswith("compute is nearly saturated (95% in use).")
    found["warnings"] = ["The backlog grows: ..."]
    assert "the backlog grows, with compute in use for 95%" in sentence(found)


def test_headroom_grows_with_the_rate() -> None:
    """Twice the requests in the same time use about twice the compute; weights are not among the resources."""
    once, twice = (
        simulate(scenario(workload={**TRAFFIC, "arrivals": "constant", "requests": n, "rate": rate})).metrics
        for n, rate in ((200, 20), (400, 40))
    )
    assert twice["headroom"]["compute"] == pytest.approx(2 * once["headroom"]["compute"], rel=0.05)
    assert not any("weights" in name for name in once["headroom"])


@pytest.mark.parametrize("name", ["plain", "speculative", "two replicas"])
def test_expanded_rounds_keep_every_sum(name: str) -> None:
    """A row per round, contiguous within a leap, whole nanoseconds."""
    rounds = run(name).round_columns
    found = expand_rounds(rounds)
    assert len(found["start_ns"]) == rounds["n_rounds"].sum() and (found["n_rounds"] == 1).all()
    assert found["duration_ns"].sum() == rounds["duration_ns"].sum()
    for column in (*(f"{c}_s" for c in SECONDS), "flops", "hbm_bytes", "joules"):
        assert found[column].sum() == pytest.approx(rounds[column].sum(), rel=1e-9, abs=1e-12)
    first = np.cumsum(rounds["n_rounds"]) - rounds["n_rounds"]
    assert (found["start_ns"][first] == rounds["start_ns"]).all()
    inside = np.setdiff1d(np.arange(len(found["start_ns"])), first)
    assert (found["start_ns"][inside] == (found["start_ns"] + found["duration_ns"])[inside - 1]).all()


def test_expanded_rounds_take_a_data_frame() -> None:
    """Result.rounds as well as plain columns."""
    found = expand_rounds(run("plain").rounds)
    assert found["phase"].tolist() == expand_rounds(run("plain").round_columns)["phase"].tolist()


def test_summary_frame_has_the_four_latencies() -> None:
    """Result.summary(): a row each, milliseconds."""
    frame = run("plain").summary()
    assert list(frame.index) == ["ttft_ms", "tpot_ms", "itl_ms", "e2el_ms"]
    assert {"mean", "p50", "p90", "p99", "max"} <= set(frame.columns)


def test_an_interrupted_run_says_so_and_still_adds_up(tmp_path) -> None:
    """Ctrl-C after 60 arrivals: the rest is partial, without finish or E2EL, and the files are there."""

    def stop(arrived: int) -> None:
        if arrived == 60:
            os.kill(os.getpid(), signal.SIGINT)

    result = simulate(scenario(workload={**TRAFFIC, "rate": 500}), progress=stop)
    found, requests = result.metrics, result.request_columns
    assert not result.complete and not found["complete"]
    assert found["requests"]["partial"] > 0 and found["requests"]["arrived"] == 60
    late = requests["status"] == "partial"
    assert requests["finish_ns"].mask[late].all() and requests["tpot_ms"].mask[late].all()
    assert any(w.startswith("Interrupted") for w in found["warnings"])
    assert float(requests["joules"].sum()) <= result.accounts.joules.sum() * (1 + 1e-9)
    assert Path(result.save(tmp_path / "r")).is_dir()
