"""`speedup`: counts through the policy object, held to the engine's own rounds, to closed forms and to limits."""

import json
import math
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from engine_setup import label, policies

import hardware_profiles
from sim import theory
from sim.axes import Axis, parse_axes
from sim.build import build_scenario
from sim.cli import main
from sim.law import Law
from sim.overlay import beside, read_measured
from sim.policies import Future
from sim.run import simulate
from sim.scenario import Scenario
from sim.serving.luck import Luck
from sim.solve import solve, suggested
from sim.speedup import Ratio, curve, law_of, operations_factor, round_seconds

BENCH = Scenario.load("bench_speculative")
GRID = parse_axes(["policy.gamma=1,4,8", "batch=1,64,256,1024", "context=512,4096,32768"])


def speedups(settings: list[str], *over: str, ratio: Ratio | None = None) -> list[float]:
    """Speedups of the benchmark's scenario with settings, over axes."""
    return [float(s) for s in curve(BENCH.with_settings(settings), parse_axes(over), ratio).table["speedup"]]


def channels_of_real_rounds(policy: Any, context: int, windows: Any) -> np.ndarray[Any, Any]:
    """A column for each round of one drawn future, as if every one of them began at ``context``."""
    future = policy.future(Luck(5).of(3), 0, 6000)
    found = []
    for i in range(30, min(1000, len(future.gains) - 1)):
        pair = Future(*(column[i - 1 : i + 1] for column in future[:4]))
        rows = policy.rows(pair._replace(offsets=pair.offsets - pair.offsets[0]), context - int(pair.gains[0]), windows)
        found.append([row[1] for row in rows])
    return np.array(found).T


# --- through the policy ---------------------------------------------------------------------------


@pytest.mark.parametrize("policy", policies(), ids=label)
def test_mean_channels_are_those_of_drawn_rounds(policy: Any) -> None:
    """Every policy, at a fixed context: within 4.5 standard errors of a thousand rounds under the engine's luck."""
    windows = ((None, 7),) * (1 + len(policy.drafts))
    drawn = channels_of_real_rounds(policy, 200, windows)
    error = drawn.std(axis=1) / drawn.shape[1] ** 0.5
    assert (np.abs(Law.of(policy).channels(200, windows) - drawn.mean(axis=1)) <= 4.5 * error + 1e-9).all()


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("gamma", [1, 4])
def test_a_round_without_luck_lasts_what_the_engine_says(alpha: float, gamma: int) -> None:
    """With all drafts kept or none, every round is the same, and equals the engine's to the last bits."""
    said = curve(BENCH.with_settings([f"policy.gamma={gamma}", f"policy.acceptance={alpha}"]), [Axis("batch", (3,))])
    built = build_scenario(BENCH.with_settings([f"policy.gamma={gamma}", f"policy.acceptance={alpha}"]))
    behind = 3 * int(alpha)
    totals = np.array([[3 * 1024], [behind], [behind * 1024]])
    engine = built.setup.rounds.seconds(np.array([3]), totals, None, np.array([3]))
    assert said.table["round_ms"][0] == pytest.approx(engine[0] * 1e3, rel=1e-12)


def test_half_a_token_costs_half_of_one() -> None:
    """16,001 sequences of which half catch up: 8000.5 tokens more, bound by arithmetic, where seconds are a line."""
    scenario = BENCH.with_settings(["policy.gamma=1"])
    axes = parse_axes(["policy.acceptance=0.0,0.5,1.0", "batch=16001", "context=2"])
    none, half, full = curve(scenario, axes).table["round_ms"]
    assert half == pytest.approx((none + full) / 2, rel=1e-7)


@pytest.mark.parametrize("settings", [[], ["policy={name: ngram}"], ["policy={name: ngram, match: 0.8, gamma: 6}"]])
def test_a_simulated_batch_takes_as_long(settings: list[str]) -> None:
    """The engine's decode rounds of 32 sequences, luck and all, against the mean round at their mean context: 0.3 %."""
    traffic = "workload={rate: inf, arrivals: poisson, prompt: 512, output: 512, requests: 32}"
    scenario = BENCH.with_settings([traffic, *settings])
    run = {name: np.asarray(column) for name, column in simulate(scenario).round_columns.items()}
    leaps = np.flatnonzero((run["phase"] == "decode") & (run["batch"] == 32))
    ours = [
        run["n_rounds"][i] * curve(scenario, [Axis("batch", (32,)), Axis("context", (round(run["context"][i]),))])
        .table["round_ms"][0] for i in leaps
    ]  # fmt: skip
    assert run["n_rounds"][leaps].sum() > 50
    assert sum(ours) == pytest.approx(run["duration_ns"][leaps].sum() * 1e-6, rel=0.003)


def test_autoregressive_decoding_is_its_own_baseline() -> None:
    """Speedup 1 at every batch and context."""
    found = curve(Scenario.load("bench_autoregressive"), GRID[1:]).table
    assert found["speedup"].tolist() == [1.0] * 12


@pytest.mark.parametrize("settings", [[], ["policy.gamma=8", "policy.acceptance=0.5"], ["policy.gamma=64"]])
def test_tokens_per_second_are_the_rounds(settings: list[str]) -> None:
    """tokens_per_s * round = E, speedup = tokens_per_s * step, a point at a time or in a grid."""
    whole = curve(BENCH.with_settings(settings), GRID[1:])
    for row in whole.rows():
        assert row["tokens_per_s"] * row["round_ms"] == pytest.approx(1e3 * row["expected_tokens"], rel=1e-12)
        assert row["speedup"] == pytest.approx(row["tokens_per_s"] * row["step_ms"] / 1e3, rel=1e-12)
        place = [Axis(name, (row[name],)) for name in ("batch", "context")]
        alone = curve(BENCH.with_settings(settings), place)
        assert alone.row(0)["speedup"] == row["speedup"]


@pytest.mark.parametrize("gamma", [1, 2, 5, 16])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.8, 1.0])
def test_with_costs_by_decree_it_is_the_textbook(alpha: float, gamma: int) -> None:
    """E, E/(gamma c + r) and (gamma + 1)/E of Leviathan et al., counted through the policy's passes."""
    settings = [f"policy.acceptance={alpha}", f"policy.gamma={gamma}"]
    found = curve(BENCH.with_settings(settings), [], Ratio(0.07, 1.2)).row(0)
    assert found["expected_tokens"] == pytest.approx(sum(alpha**k for k in range(gamma + 1)))
    assert found["speedup"] == pytest.approx(sum(alpha**k for k in range(gamma + 1)) / (0.07 * gamma + 1.2))
    assert found["speedup"] == pytest.approx(theory.wall_time_factor(alpha, gamma, 0.07, 1.2))
    policy = build_scenario(BENCH.with_settings(settings)).policy
    assert operations_factor(policy) == pytest.approx(theory.operations_factor(alpha, gamma, 0.0))
    caught_up = 0.1 * alpha**gamma / found["expected_tokens"]  # the draft's second token after full acceptance
    assert operations_factor(policy, 0.1) - caught_up == pytest.approx(
        theory.operations_factor(alpha, gamma, 0.1), abs=2e-4
    )


# --- the textbook alone ---------------------------------------------------------------------------


def test_best_gamma_is_the_best_of_all() -> None:
    """Against every gamma up to 200; 0 where alpha <= c, as corollary 3.9 says."""
    for alpha in (0.05, 0.3, 0.6, 0.9):
        for c in (0.01, 0.05, 0.2, 0.5):
            factors = {g: theory.wall_time_factor(alpha, g, c) for g in range(1, 200)}
            best = max(factors, key=lambda g: factors[g])
            assert theory.best_gamma(alpha, c) == (best if factors[best] > 1 else 0)
            assert (theory.best_gamma(alpha, c) == 0) == (alpha <= c)
            assert theory.oracle_factor(alpha, c) >= max(1.0, factors[best])


@pytest.mark.parametrize(("alpha", "c", "extra"), [(0.6, 0.01, 0.07), (0.9, 0.05, 0.48)])
def test_the_oracle_is_that_much_better(alpha: float, c: float, extra: float) -> None:
    """Hand-checked: 2.5/1.015 = 2.463 over 2.291 (gamma 4..5), 10/1.45 = 6.897 over 4.660."""
    best = theory.wall_time_factor(alpha, theory.best_gamma(alpha, c), c)
    assert theory.oracle_factor(alpha, c) / best - 1 == pytest.approx(extra, abs=0.01)


def test_the_ends_of_the_textbook() -> None:
    """Certain and free drafts have no bound; nonsense is refused in one line."""
    assert theory.expected_tokens(1.0, 7) == 8 and theory.oracle_tokens(1.0) == inf
    assert theory.oracle_factor(1.0, 0.0) == inf and theory.oracle_factor(1.0, 0.1) == pytest.approx(10)
    for call in (
        lambda: theory.expected_tokens(1.1, 3), lambda: theory.expected_tokens(0.5, 0),
        lambda: theory.wall_time_factor(0.5, 3, -1), lambda: theory.operations_factor(0.5, 3, inf),
        lambda: Ratio(-0.1), lambda: Ratio(float("nan")),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            call()


# --- batch and context ----------------------------------------------------------------------------


def additive(folder: Path) -> str:
    """The H100 with memory and arithmetic that add up: p = 1."""
    profile = json.loads(json.dumps(hardware_profiles.load("h100-sxm")))
    profile |= {"name": "h100-additive", "aliases": []}
    for group in ("matmul", "decode_attention", "prefill_attention", "elementwise"):
        profile["efficiency"][group]["any"]["overlap_p"] = 1.0
    (folder / "h100-additive.yaml").write_text(yaml.safe_dump(profile))
    return f"hardware={folder / 'h100-additive.yaml'}"


@pytest.mark.parametrize("gamma", [2, 4, 8])
def test_it_falls_with_batch(tmp_path: Path, gamma: int) -> None:
    """Additive roofline, short context: the more sequences, the less speculation gains, down to below 1."""
    found = speedups([additive(tmp_path), f"policy.gamma={gamma}"], "batch=1,4,16,64,256,1024,4096", "context=64")
    assert all(a > b for a, b in pairwise(found)) and found[0] > 1.4 and found[-1] < 1


@pytest.mark.parametrize("gamma", [1, 4, 8])
def test_compute_bound_it_tends_to_e_over_gamma_plus_one_plus_gamma_c(gamma: int) -> None:
    """Batch 16,384 at almost no context on the textbook device; c by the matrix FLOPs of a token, catch-up counted."""
    built = build_scenario(BENCH)
    flops = [cost.counts(next(iter(built.policy.passes(1, [2, 0, 0], None, ((None,), (None,))))).work)["flops"]
             for cost in built.costs]  # fmt: skip
    c = float(flops[1] / flops[0])
    assert 0.15 < c < 0.18
    e = theory.expected_tokens(0.8, gamma)
    limit = e / (gamma + 1 + (gamma + 0.8**gamma) * c)
    (found,) = speedups([f"policy.gamma={gamma}"], "batch=16384", "context=2")
    assert limit < 1 and found == pytest.approx(limit, rel=0.03)


def test_it_comes_back_with_context() -> None:
    """At batch 256 the KV cache is what is read: the longer, the freer verification is."""
    found = speedups([], "batch=256", "context=64,1024,8192,65536")
    assert found == sorted(found) and found[0] < 0.75 and found[-1] > 1.6


def test_verification_by_a_mixture_of_experts_is_not_free() -> None:
    """Five tokens visit 6.1 of 8 experts where one visits 2; at batch 64 all are read anyway. A dense model: free."""
    copies = ["policy={name: ngram, gamma: 4, match: 1.0, acceptance: 1.0}", "hardware=b200-sxm"]
    ratio = {}
    for model in ("mixtral-8x7b", "mistral-7b-v0.1"):
        found = curve(BENCH.with_settings([*copies, f"model={model}"]), parse_axes(["batch=1,32"])).table
        ratio[model] = (found["round_ms"] / found["step_ms"]).tolist()
    assert ratio["mixtral-8x7b"][0] > 2.5 and ratio["mixtral-8x7b"][1] < 1.3
    assert ratio["mistral-7b-v0.1"][0] < 1.05


# --- the optimum, solving, measurements -----------------------------------------------------------


def test_the_best_choice_is_marked_at_each_batch_and_context() -> None:
    """One mark a place, at the largest speedup there; `fits` says where the cache does not."""
    found = curve(BENCH, GRID)
    rows = list(found.rows())
    for batch in GRID[1].values:
        for context in GRID[2].values:
            here = [r for r in rows if (r["batch"], r["context"]) == (batch, context)]
            assert [r["speedup"] for r in here if r["best"]] == [max(r["speedup"] for r in here)]
    assert {(r["batch"], r["context"]) for r in rows if not r["fits"]} == {
        (64, 32768), (256, 4096), (256, 32768), (1024, 512), (1024, 4096), (1024, 32768),
    }  # fmt: skip
    assert found.row(found.best)["speedup"] == max(r["speedup"] for r in rows if r["fits"])


def test_a_choice_that_fits_is_better() -> None:
    """With 40 % of the memory the cache of 16 sequences does not fit; the speedup is the same, the mark is not."""
    found = curve(BENCH, parse_axes(["kv.memory_fraction=0.4,0.9", "batch=16", "context=8192"])).table
    assert found["speedup"][0] == found["speedup"][1]
    assert found["fits"].tolist() == found["best"].tolist() == [0, 1]


@pytest.mark.parametrize("wanted", [1.2, 1.5, 2.0, 3.0])
def test_solved_for_acceptance_it_is_the_textbooks_inverse(wanted: float) -> None:
    """gamma 1, c .1: (1 + alpha)/1.1 = wanted exactly; out of reach it says how far it gets."""
    answer = solve(BENCH.with_settings(["policy.gamma=1"]), wanted, "policy.acceptance=0:1", ratio=Ratio(0.1))
    alpha = 1.1 * wanted - 1
    assert answer.values == (() if alpha > 1 else pytest.approx((alpha,), abs=2e-6))
    assert (answer.lowest, answer.highest) == pytest.approx((1 / 1.1, 2 / 1.1))


def test_solved_for_batch_it_finds_every_crossing() -> None:
    """The first whole batch on the reaching side, compared with all batches; a hump is crossed twice."""
    every = speedups(["policy.gamma=3"], "batch=1:300")
    answer = solve(BENCH.with_settings(["policy.gamma=3"]), 1.5, "batch=1:300")
    reach = [s >= 1.5 for s in every]
    changes = [i + 1 if not reach[i + 1] else i + 2 for i in range(299) if reach[i] != reach[i + 1]]
    assert list(answer.values) == changes and len(changes) >= 1


def test_solved_for_a_draft_it_names_those_that_reach() -> None:
    """llama-3.2-3b is too large a draft for twice the speed on this device; what is suggested has the vocabulary."""
    answer = solve(BENCH, 2.0, "policy.draft=llama-3.2-1b,llama-3.2-3b")
    assert answer.values == ("llama-3.2-1b",)
    assert suggested(BENCH)[:2] == ("policy.acceptance=0:1", "policy.draft=llama-3.2-1b,llama-3.2-3b")


def test_measurements_stand_beside_ours(tmp_path: Path) -> None:
    """Each row at exactly its point; an axis without a column takes the one value there is."""
    (tmp_path / "m.csv").write_text("# ours\npolicy.gamma,batch,speedup\n2,1,2.0\n4,16,1.9\n")
    rows = beside(BENCH, read_measured(str(tmp_path / "m.csv")), [Axis("context", (512,))])
    ours = [speedups([f"policy.gamma={g}"], f"batch={b}", "context=512")[0] for g, b in ((2, 1), (4, 16))]
    assert [r.ours for r in rows] == ours and rows[0].error == ours[0] / 2.0 - 1


BAD = {
    "no number": ("batch,speedup\n1,fast\n", "row 2 speedup: 'fast' is not a positive number"),
    "no speedup": ("batch,speed\n1,2\n", "must name every column once, one of them speedup"),
    "ragged": ("batch,speedup\n1\n", "row 2: 1 values under 2 columns"),
    "empty": ("", "must name every column once"),
    "no rows": ("batch,speedup\n", "0 rows of data; allowed: 1 to 1000"),
    "infinite": ("batch,speedup\n1,.inf\n", "is not a positive number"),
}


@pytest.mark.parametrize(("text", "wanted"), BAD.values(), ids=BAD)
def test_a_bad_measurement_is_named(tmp_path: Path, text: str, wanted: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(ValueError) as caught:
        read_measured(str(tmp_path / "m.csv"))
    assert wanted in str(caught.value) and "\n" not in str(caught.value) and "m.csv" in str(caught.value)


# --- axes and command -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("batch=1,4,16", (1, 4, 16)),
        ("policy.gamma=1:4", (1, 2, 3, 4)),
        ("context=512:2048:512", (512, 1024, 1536, 2048)),
        ("policy.acceptance=0.5:0.7:0.1", (0.5, 0.6, 0.7)),
        ("policy.draft=a,b", ("a", "b")),
        ("policy.acceptance={kind: iid, alpha: 0.5}, 0.7", ({"kind": "iid", "alpha": 0.5}, 0.7)),
    ],
)
def test_an_axis_reads(text: str, values: tuple[Any, ...]) -> None:
    assert Axis.parse(text).values == values


@pytest.mark.parametrize(
    "options",
    [
        "--over nope", "--over policy.gama=1:4", "--over policy.gamma=1:200", "--over batch=0", "--over batch=1.5",
        "--over batch=1 --over batch=2", "--over context=9999999", "--over policy.gamma=4:1", "--over batch=1:4:0",
        "--over batch=a:b", "--over =1", "--over policy.gamma=", "--over batch=[",
        "--over batch=1:16384 --over context=1:999", "--solve speed=2", "--solve speedup=-1", "--solve speedup=x",
        "--for batch=1:4", "--solve speedup=2 --for batch=4:1",
        "--solve speedup=2 --for policy.gamma=0:3", "--cost-ratio -1", "--cost-ratio nan", "--overlay none.csv",
        "--over policy.draft=gpt2", "--over hardware=nope", "--over policy.name=nope", "--out no/such/folder",
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_status_2(
    options: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And nothing is written."""
    monkeypatch.chdir(tmp_path)
    said = say(monkeypatch, capsys, options.split())
    assert said[0] == 2 and said[1] == "" and said[2].count("\n") == 1 and said[2].startswith("decodesim: error: ")
    assert list(tmp_path.iterdir()) == []


def say(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str]
) -> tuple[int, str, str]:
    """(status, out, err) of the command."""
    monkeypatch.setattr("sys.argv", ["decodesim", "speedup", "bench_speculative", *options])
    try:
        main()
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    return status, *capsys.readouterr()


def test_the_command_writes_table_and_pictures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The CSV holds the curve, every digit; the folder is replaced only on purpose."""
    monkeypatch.chdir(tmp_path)
    Path("m.csv").write_text("policy.gamma,batch,context,speedup\n2,1,512,1.8\n")
    over = ["--over", "policy.gamma=1:5", "--over", "batch=1,4,16", "--over", "context=512,4096", "--out", "study"]
    status, out, err = say(monkeypatch, capsys, [*over, "--overlay", "m.csv", "--solve", "speedup=2"])
    assert (status, err) == (0, "") and "measured" in out and "batch = " in out
    wanted = ["contours.png", "scenario.yaml", "speedup.csv", "speedup.png"]
    assert sorted(p.name for p in Path("study").iterdir()) == wanted
    lines = Path("study/speedup.csv").read_text().splitlines()
    found = curve(BENCH, parse_axes(over[1:6:2]))
    assert lines[0].split(",") == list(found.table) and len(lines) == 31
    assert [float(line.split(",")[-4]) for line in lines[1:]] == found.table["speedup"].tolist()
    assert say(monkeypatch, capsys, over)[0] == 2
    assert say(monkeypatch, capsys, [*over, "--overwrite"])[0] == 0
    status, out, _ = say(monkeypatch, capsys, [*over[:6], "--json"])
    assert status == 0 and json.loads(out)["best"]["speedup"] == found.row(found.best)["speedup"]


def test_twenty_thousand_points_a_second(benchmark: Any) -> None:
    """Gamma over batch and context, in CPU seconds' stead the benchmark's fastest round."""
    axes = parse_axes(["policy.gamma=1:16", "batch=1:64", "context=512:32768:512"])
    found = benchmark(curve, BENCH, axes)
    assert len(found.table["speedup"]) == 65_536
    assert 65_536 / benchmark.stats.stats.min > 20_000


# --- the baseline, and quality


def hired(**more: Any) -> Scenario:
    workload = {"requests": 1, "rate": 1, "prompt": 9, "output": 9}
    base = {"model": "llama-3.1-8b", "hardware": "h100-sxm", "workload": workload}
    return Scenario.model_validate({**base, **more})


def test_a_variant_as_a_policy_is_held_against_the_plain_target() -> None:
    """A variant of the scenario is in the baseline too, one that ``policy`` names is not, and ``against`` decides."""
    packed = {"quantization": {"format": "awq"}}
    by_policy = curve(hired(policy={"name": "quantization", "format": "awq"})).table["speedup"]
    in_both = curve(hired(variants=[packed])).table["speedup"]
    taken_out = curve(hired(variants=[packed]), against=["variants=[]"]).table["speedup"]
    assert in_both.tolist() == [1.0]
    assert by_policy.tolist() == taken_out.tolist() and 2.5 < by_policy[0] < 4.0


def test_the_fewest_bits_win_only_where_quality_lets_them() -> None:
    """Lossless: what nobody measured is never marked best against others; a limit in percent admits sourced losses."""
    formats = "policy.format=awq,smoothquant,llm_int8"

    def best(quality: Any) -> list[str]:
        found = curve(hired(policy={"name": "quantization", "format": "fp8"}, quality=quality), parse_axes([formats]))
        marked = found.table["best"].astype(bool)
        return list(found.table["policy.format"][marked])

    assert best("lossless") == [] and best("any") == ["awq"]
    assert best(1.0) == ["llm_int8"] and best(5.0) == ["smoothquant"]


def test_the_policy_as_written_is_always_allowed() -> None:
    """Who asks for a lossy policy alone gets its curve with the best point marked."""
    found = curve(hired(policy={"name": "quantization", "format": "awq"}), parse_axes(["batch=1,64"]))
    assert found.table["best"].tolist() == [1, 0] and math.isnan(found.table["quality_loss_percent"][0])


def test_a_plain_choice_loses_nothing() -> None:
    found = curve(BENCH, parse_axes(["policy.gamma=1:3"]))
    assert found.table["quality_loss_percent"].tolist() == [0.0] * 3


@pytest.mark.parametrize("engine", ["hf-eager", "vllm-v1"])
def test_host_time_beside_the_device_or_before_it(engine: str) -> None:
    """A step at each batch takes what a round of the clock takes, whether the host works beside the device or not."""
    built = build_scenario(BENCH.with_settings([f"engine={engine}", "policy=autoregressive"]))
    rounds, batch = built.setup.rounds, np.array([1, 8, 512])
    _, totals = law_of(built.policy, rounds, batch, np.full(3, 4096))
    whole = np.rint(totals).astype(np.int64)
    assert np.array_equal(totals, whole) and rounds.beside == (engine == "hf-eager")
    seconds = round_seconds(rounds, built.policy, batch, totals)
    assert seconds.tolist() == rounds.seconds(batch, list(whole), None, batch).tolist()
    device_s = sum(built.costs[0].seconds(one.work) for one in rounds.passes(batch, list(whole), None))
    host_s = rounds.host_s(batch, batch, rounds.layers_run(rounds.passes(batch, list(whole), None)))
    expected = np.maximum(host_s, device_s) if rounds.beside else host_s + device_s
    assert seconds == pytest.approx(expected) and (host_s > 0).any()


@pytest.mark.parametrize("engine", ["hf-eager", "vllm-v1"])
@pytest.mark.parametrize("batch", [1, 4, 64])
def test_draft_passes_that_not_everybody_runs(engine: str, batch: int) -> None:
    """Adaptive drafts end early: a pass costs in the rounds in which anybody still drafts, within 5 % of drawn ones."""
    built = build_scenario(BENCH.with_settings([f"engine={engine}", "policy=adaptive"]))
    rounds, rows = built.setup.rounds, []
    for sequence in range(batch):
        future = built.policy.future(Luck(5).of(sequence), 0, 2000)
        alike = future._replace(offsets=np.zeros_like(future.offsets))  # every round at the same context
        rows.append(np.stack([row[1:300] for row in built.policy.rows(alike, 1024, rounds.windows)]))
    drawn = rounds.seconds(batch, list(np.sum(rows, axis=0)), None, batch).mean()
    _, totals = law_of(built.policy, rounds, np.array([batch]), np.array([1024]))
    found = round_seconds(rounds, built.policy, np.array([batch]), totals)
    assert found[0] == pytest.approx(drawn, rel=0.05)
