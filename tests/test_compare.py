"""Comparisons: intervals that cover, pairs that cancel, parts that add up, and the identity."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.blocks import Blocks, block_length, student, student_quantile
from analysis.compare import Comparison, compare
from analysis.comparison_files import as_table, check_place, save_comparison
from analysis.pairs import Pair, pair_up, sampled
from analysis.waterfall import TOTAL, parts_ms, steps
from sim.run import Result, pairs, simulate
from sim.scenario import Scenario

SMALL = ["workload.requests=400", "workload.rate=20"]
CROWDED = ["workload={rate: inf, prompt: 300, output: 300, requests: 120}", "kv.memory_fraction=0.23"]


def scenario(*settings: str) -> Scenario:
    return Scenario.load("bench_autoregressive", [*SMALL, *settings])


@pytest.fixture(scope="module")
def faster() -> tuple[Result, Result]:
    """The same traffic on an H100 and on an H200."""
    return next(pairs(scenario(), scenario("hardware=h200-sxm")))


@pytest.fixture(scope="module")
def compared(faster: tuple[Result, Result]) -> Comparison:
    return compare([faster], ("h100", "h200"))


def metric(comparison: Comparison, name: str):
    return next(d for d in comparison.differences if d.metric == name)


# --- intervals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "freedom", "value"),
    [
        (0.975, 1, 12.706), (0.975, 2, 4.3027), (0.95, 3, 2.3534), (0.975, 9, 2.2622), (0.995, 10, 3.1693),
        (0.975, 100, 1.984),
    ],
)  # fmt: skip
def test_student_quantiles_are_those_of_the_printed_table(p: float, freedom: int, value: float) -> None:
    """Fisher and Yates, table III."""
    assert student_quantile(p, freedom) == pytest.approx(value, abs=6e-4)


def test_interval_of_pairs_by_hand() -> None:
    """1, 2, 3: mean 2, s = 1, 4.3027 / sqrt(3) either way."""
    low, high = student(np.array([1.0, 2.0, 3.0]), 0.95)
    assert (low, high) == pytest.approx((2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3)), abs=1e-3)


def autoregressive(rng: np.random.Generator, n: int, phi: float) -> np.ndarray:
    """A stationary AR(1) series of variance 1."""
    noise = rng.standard_normal(n) * math.sqrt(1 - phi * phi)
    series = np.empty(n)
    level = rng.standard_normal()
    for i in range(n):
        level = phi * level + noise[i]
        series[i] = level
    return series


def synthetic_pair(a: np.ndarray, b: np.ndarray) -> Pair:
    """Two runs whose only content is E2EL."""
    nothing = (np.zeros(len(a)), np.zeros(len(a)))
    empty = ({}, {})
    return Pair(np.arange(len(a)), ({"E2EL": a}, {"E2EL": b}), (nothing, nothing), empty, empty, empty, 0, True)


def interval(pair: Pair, confidence: float = 0.9) -> tuple[float, float]:
    point = float((pair.latencies[1]["E2EL"] - pair.latencies[0]["E2EL"]).mean())
    draws = replace(Blocks.of(pair), draws=200).differences(pair)["E2EL mean (ms)"]
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return point + low, point + high


@pytest.mark.parametrize("phi", [0.0, 0.8])
def test_block_intervals_cover_a_known_difference(phi: float) -> None:
    """Of 100 intervals of 90 %, about 90 hold the truth (2.0), although neighbours are correlated."""
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(100):
        shared = 10 * autoregressive(rng, 400, 0.9)
        low, high = interval(synthetic_pair(shared, shared + 2.0 + autoregressive(rng, 400, phi)))
        held += low <= 2.0 <= high
    assert 0.8 <= held / 100 <= 0.97


def test_blocks_of_one_would_not_cover() -> None:
    """The check above can fail: with correlated neighbours and blocks of one, far fewer intervals hold the truth."""
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(60):
        a = np.zeros(400)
        pair = synthetic_pair(a, 2.0 + autoregressive(rng, 400, 0.8))
        draws = Blocks(400, 1, 100, False).differences(pair)["E2EL mean (ms)"]
        point = pair.latencies[1]["E2EL"].mean()
        held += point + np.quantile(draws, 0.05) <= 2.0 <= point + np.quantile(draws, 0.95)
    assert held / 60 < 0.7


@pytest.mark.parametrize(("phi", "low", "high"), [(0.0, 1, 8), (0.5, 5, 30), (0.9, 30, 134)])
def test_blocks_are_as_long_as_correlation_lasts(phi: float, low: int, high: int) -> None:
    """The optimum (Politis and White 2004) for AR(1), where G/g = 2 phi/(1 - phi^2), and n = 2000: 1, 17.5, 64.5."""
    lengths = [block_length(autoregressive(np.random.default_rng(seed), 2000, phi))[0] for seed in range(5)]
    assert low <= np.median(lengths) <= high


def test_blocks_of_a_trend_are_cut() -> None:
    """A series that only rises is correlated for as long as it lasts; the flag says that the interval is too narrow."""
    length, cut = block_length(np.arange(900.0))
    assert cut and length == 90  # 3 sqrt(900)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60))
def test_block_length_is_always_usable(values: list[float]) -> None:
    """From 1 to the length of the series, whatever the series."""
    length, _ = block_length(np.array(values))
    assert 1 <= length <= len(values)


def test_a_run_against_itself_differs_by_exactly_nothing(faster: tuple[Result, Result]) -> None:
    """Identity: every difference and every interval is 0."""
    comparison = compare([(faster[0], faster[0])], ("a", "a"))
    assert len(comparison.differences) == 17
    assert all(d.difference == 0 and (d.low, d.high) in ((0, 0), (None, None)) for d in comparison.differences)
    assert all(step.difference_ms == 0 for step in comparison.waterfall)
    assert comparison.sentence.startswith("No difference")


def test_the_same_scenario_run_twice_differs_by_exactly_nothing() -> None:
    """The same luck, and no state left over from the first run."""
    comparison = compare(pairs(scenario(), scenario(), 2), ("a", "a"))
    assert all(d.difference == 0 for d in comparison.differences)


def test_pairing_narrows_the_interval(faster: tuple[Result, Result], compared: Comparison) -> None:
    """What both runs share cancels: at least three times narrower than from unpaired blocks of each run."""
    paired = metric(compared, "E2EL mean (ms)")
    other = next(pairs(scenario("seed=7"), scenario("seed=7")))[0]
    pair = pair_up(faster[0], other)
    alone = Blocks(len(pair.ids), 20, 300, False).differences(pair)["E2EL mean (ms)"]
    assert paired.high - paired.low < (np.quantile(alone, 0.975) - np.quantile(alone, 0.025)) / 3


def test_repeats_pair_seeds() -> None:
    """Five seeds: Student's interval over five paired differences, seeds counted from A's."""
    a, b = scenario("workload.requests=60", "seed=3"), scenario("workload.requests=60", "hardware=h200-sxm")
    five = list(pairs(a, b, 5))
    assert [a.scenario.seed for a, _ in five] == [b.scenario.seed for _, b in five] == [3, 4, 5, 6, 7]
    comparison = compare(five, ("a", "b"))
    means = [np.mean(b.request_columns["e2el_ms"]) - np.mean(a.request_columns["e2el_ms"]) for a, b in five]
    found = metric(comparison, "E2EL mean (ms)")
    assert (found.low, found.high) == pytest.approx(student(np.array(means), 0.95))
    assert comparison.method == "pairs of seeds"


def test_seeds_that_change_nothing_are_not_taken_for_certainty() -> None:
    """Recorded traffic without drafts has no luck: intervals come from blocks, and a note says so."""
    recorded = [Scenario.load("chat_h100", ["workload.requests=60", f"hardware={h}"]) for h in ("h100-sxm", "h200-sxm")]
    comparison = compare(pairs(recorded[0], recorded[1], 3), ("a", "b"))
    assert comparison.method.startswith("moving blocks")
    assert any("seeds changed nothing" in note for note in comparison.notes)
    found = metric(comparison, "E2EL mean (ms)")
    assert found.low < found.difference < found.high


# --- pairs --------------------------------------------------------------------------------------------------------


def test_metrics_are_those_of_the_summary(faster: tuple[Result, Result], compared: Comparison) -> None:
    """Where every request finished, A and B are what summary.json says."""
    for side, run in enumerate(faster):
        latency = run.metrics["latency"]
        for name in ("TTFT", "TPOT", "ITL", "E2EL"):
            for statistic in ("mean", "p50", "p99"):
                found = metric(compared, f"{name} {statistic} (ms)")
                said = latency[f"{name.lower()}_ms"][statistic]
                assert (found.a, found.b)[side] == pytest.approx(said, rel=1e-9)


def test_rates_of_a_sample_of_everything_are_the_runs_own(faster: tuple[Result, Result]) -> None:
    """Completions in order make up the whole run: requests, tokens and dollars by its duration."""
    found, said = sampled(pair_up(*faster), 0), faster[0].metrics
    assert found["requests/s"] == pytest.approx(said["throughput"]["requests_per_s"])
    assert found["output tokens/s"] == pytest.approx(said["throughput"]["output_tokens_per_s"])
    assert found["dollars per million output tokens"] == pytest.approx(said["cost"]["usd_per_million_output_tokens"])
    used = said["energy"]["busy_joules"] / said["throughput"]["output_tokens"]
    assert found["joules per output token"] == pytest.approx(used, rel=1e-6)


def test_requests_without_a_partner_are_left_out_and_said() -> None:
    """B rejects what does not fit its memory; the rest is compared."""
    long = "workload={rate: 5, prompt: {kind: uniform, low: 100, high: 4000}, output: 50, requests: 60}"
    a, b = scenario(long), scenario(long, "kv={mode: reserved, reserve_tokens: 2000}")
    comparison = compare(pairs(a, b), ("a", "b"))
    assert comparison.requests < 60
    assert any(f"{60 - comparison.requests} requests did not finish in both" in note for note in comparison.notes)


def test_other_requests_are_said_to_be_others() -> None:
    """Pairs that ask for other work get a note."""
    comparison = compare(pairs(scenario(), scenario("workload.output=64")), ("a", "b"))
    assert any("requests themselves differ" in note for note in comparison.notes)


def test_nothing_in_common_is_an_error(faster: tuple[Result, Result]) -> None:
    """A run of which nothing finished cannot be compared."""
    none = simulate(scenario("kv={mode: reserved, reserve_tokens: 100}"))
    with pytest.raises(ValueError, match="no request finished in both"):
        pair_up(faster[0], none)


# --- waterfall ----------------------------------------------------------------------------------------------------


def added(run: Result) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    rows = np.flatnonzero(run.request_columns["status"] == "finished")
    parts = parts_ms(run, rows)
    return sum(parts.values()), np.ma.getdata(run.request_columns["e2el_ms"])[rows], parts


@pytest.mark.parametrize(
    "settings",
    [
        (), ("policy=speculative",), ("replicas=3",), ("scheduler=continuous",), ("workload.rate=inf",),
        ("scheduler={name: static, max_sequences: 8}",),
        ("workload={concurrency: 7, prompt: 200, output: 40, requests: 60, samples: 2}",),
    ],
)  # fmt: skip
def test_parts_add_up_to_the_latency(settings: tuple[str, ...]) -> None:
    """Of every single request, to a nanosecond; a replica that serves somebody always runs rounds."""
    total, e2el, parts = added(simulate(scenario("workload.requests=120", *settings)))
    assert total == pytest.approx(e2el, abs=1e-6)
    assert not parts["between rounds"].any()
    assert all((values > -1e-6).all() for values in parts.values())


def test_a_wait_after_preemption_is_queueing() -> None:
    """Parts still add up, and those who lost their place queued for longer than before their first admission."""
    run = simulate(scenario(*CROWDED))
    table = run.request_columns
    hit = table["preemptions"] > 0
    assert hit.sum() > 5
    total, e2el, parts = added(run)
    assert total == pytest.approx(e2el, abs=1e-6)
    waited = parts["queueing"] - np.ma.getdata(table["queue_ms"])
    assert (waited[hit] > 0).all() and waited[~hit] == pytest.approx(0, abs=1e-6)
    assert all((values > -1e-6).all() for values in parts.values())


def test_a_lone_request_is_split_by_hand() -> None:
    """One request, no queue: its causes are those of all rounds of the run."""
    run = simulate(scenario("workload.requests=1"))
    _, _, parts = added(run)
    for cause, seconds in run.accounts.seconds.items():
        assert parts[cause][0] == pytest.approx(1e3 * seconds.sum())
    assert parts["queueing"][0] == 0


def test_waterfall_leads_from_a_to_b(compared: Comparison) -> None:
    """Causes in falling order, the last step is the sum, and it is the mean E2EL of the table."""
    *parts, total = compared.waterfall
    assert total.cause == TOTAL
    assert total.a_ms == pytest.approx(metric(compared, "E2EL mean (ms)").a)
    assert sum(p.difference_ms for p in parts) == pytest.approx(total.difference_ms)
    assert all(abs(p.difference_ms) >= abs(q.difference_ms) for p, q in pairwise(parts))
    assert parts[0].cause == "weights", "an H200 has the same arithmetic and faster memory"
    assert "weights" in compared.sentence


def test_steps_average_over_all_pairs(faster: tuple[Result, Result]) -> None:
    """Two equal pairs have the means of one."""
    pair = pair_up(*faster)
    assert [s.a_ms for s in steps([pair, pair])] == pytest.approx([s.a_ms for s in steps([pair])])


# --- files --------------------------------------------------------------------------------------------------------


def test_comparison_folder(compared: Comparison, tmp_path: Path) -> None:
    """compare.json holds every number; the picture is a PNG; nothing else lies beside it."""
    folder = save_comparison(compared, str(tmp_path / "c"))
    assert sorted(p.name for p in Path(folder).iterdir()) == ["compare.json", "waterfall.png"]
    said = json.loads((tmp_path / "c/compare.json").read_text())
    assert said["waterfall"][-1]["difference_ms"] == compared.waterfall[-1].difference_ms
    assert said == json.loads(json.dumps(as_table(compared)))
    assert (tmp_path / "c/waterfall.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_comparison_folder_is_not_overwritten_by_accident(compared: Comparison, tmp_path: Path) -> None:
    """An older comparison needs a word, anything else is refused even then."""
    folder = str(tmp_path / "c")
    save_comparison(compared, folder)
    with pytest.raises(ValueError, match="overwrite"):
        check_place(folder)
    save_comparison(compared, folder, overwrite=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/precious.txt").write_text("x")
    with pytest.raises(ValueError, match="not a result"):
        save_comparison(compared, str(tmp_path / "other"), overwrite=True)
