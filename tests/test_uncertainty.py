"""Uncertainty: draws against closed forms, what cancels cancels, nothing changes unasked, no data is said."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import hardware_profiles
from sim import uncertainty
from sim.analytic.cost import PassCost
from sim.analytic.hardware import Device, Terms
from sim.analytic.work import Work
from sim.axes import parse_axes
from sim.build import Built, build_scenario, load_engine, load_shape, with_kernels
from sim.cli import main
from sim.run import simulate
from sim.scenario import Scenario
from sim.speedup import Known, curve_of, law_of, round_seconds
from sim.uncertain.draws import FURTHEST, Draw, between, factor
from sim.uncertain.hardware import drawn_device, drawn_engine, slower
from sim.uncertain.ranges import beyond, widening
from sim.uncertain.samples import drawn
from sim.uncertain.summary import flat, intervals

SMALL: dict[str, Any] = {
    "model": "llama-3.1-8b", "hardware": "h100-sxm", "engine": "vllm-v1", "policy": "autoregressive",
    "workload": {"requests": 40, "rate": 8, "prompt": 300, "output": 40},
}  # fmt: skip
AT_90, AT_95 = NormalDist().inv_cdf(0.9), NormalDist().inv_cdf(0.95)


def scenario(**changes: Any) -> Scenario:
    """The small scenario with other keys."""
    return Scenario.parse({**SMALL, **changes}, "test")


def built(**changes: Any) -> Built:
    """The same, put together."""
    return build_scenario(scenario(**changes))


def width(factors: np.ndarray[Any, Any]) -> float:
    """Of an 80 % interval, in logarithms."""
    low, high = np.quantile(factors, [0.1, 0.9])
    return float(np.log(high / low))


# -- draws


def test_a_ratio_is_met_at_its_percentiles() -> None:
    """The median and the outer percentiles of a normal draw give the three numbers of a ratio."""
    ratio = (0.8, 1.1, 2.0)
    assert [factor(z, ratio) for z in (-AT_90, 0.0, AT_90)] == pytest.approx(ratio)
    assert factor(AT_90, ratio, widen=2.0) == pytest.approx(1.1 * (2.0 / 1.1) ** 2)


def test_an_interval_is_met_at_its_ends() -> None:
    """An interval is the 5th to 95th percentile about its value, lognormal above 0 and cut at 0."""
    assert [between(z, 2.0, 1.0, 8.0) for z in (-AT_95, 0.0, AT_95)] == pytest.approx([1.0, 2.0, 8.0])
    assert [between(z, 2.0, 0.0, 6.0) for z in (-3 * AT_95, -AT_95 / 2, AT_95)] == pytest.approx([0.0, 1.0, 6.0])


@pytest.mark.parametrize(("value", "low", "high"), [(5.0, 1.0, 2.0), (float("inf"), 1.0, float("inf"))])
def test_a_value_outside_its_interval_stays(value: float, low: float, high: float) -> None:
    """What a scenario set itself, or an infinite overlap, is not drawn."""
    assert between(1.0, value, low, high) == value


def test_draws_are_normal_and_addressed() -> None:
    """Mean 0, deviation 1 over samples; another seed, sample or address is another number, the same is the same."""
    z = np.array([Draw(3, i).normal("h100/matmul") for i in range(4000)])
    assert abs(z.mean()) < 4 / np.sqrt(4000)
    assert z.std() == pytest.approx(1.0, abs=0.05)
    assert np.abs(z).max() <= FURTHEST
    others = {Draw(3, 0).normal("a"), Draw(4, 0).normal("a"), Draw(3, 1).normal("a"), Draw(3, 0).normal("b")}
    assert len(others) == 4
    assert Draw(3, 0).normal("a") == Draw(3, 0).normal("a")


# -- one sample of a device


@pytest.mark.parametrize("engine", ["vllm-v1", "ideal"])
def test_slower_terms_are_slower_at_every_size(engine: str) -> None:
    """A kernel whose terms are slowed by 1.7 takes 1.7 times as long, one token or 4,000, prefill or decode."""
    device = with_kernels(Device.from_profile(hardware_profiles.load("h100-sxm")), load_engine(engine))
    groups = ("matmul", "decode_attention", "prefill_attention", "elementwise")
    own: Any = {g: {k: slower(t, 1.7) for k, t in getattr(device, g).items()} for g in groups}
    slow = replace(device, **own)
    if device.kernels is not None:
        book: Any = device.kernels
        tables = {
            g: {n: {k: slower(t, 1.7) for k, t in e.items()} for n, e in f.items()} for g, f in book.tables.items()
        }
        slow = replace(slow, kernels=replace(book, tables=tables, elementwise=slower(book.elementwise, 1.7)))
    shape = load_shape("llama-3.1-8b", "model")
    costs = [PassCost(shape, replace(d, onchip=replace(d.onchip, bandwidth_Bps=None))) for d in (device, slow)]
    for work in (Work.decode(1, 10), Work.decode(64, 4096), Work.prefill(1, 4000)):
        assert costs[1].seconds(work) == pytest.approx(1.7 * costs[0].seconds(work))


def test_the_median_draw_is_the_point_times_the_median_misfit(monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing drawn, a product of a measured device takes what the profile says times its own bias."""
    monkeypatch.setattr(Draw, "normal", lambda self, address: 0.0)
    one = built()
    book: Any = one.device.kernels
    entry: Terms = book.tables["matmul"]["bf16"]["any"]
    assert entry.ratio is not None
    found: Any = drawn_device(one.device, one.engine, Draw(0, 0), {}).kernels
    assert found.tables["matmul"]["bf16"]["any"] == slower(entry, entry.ratio[1])
    assert drawn_engine(one.engine, Draw(0, 0)) == one.engine


def test_what_is_the_hardware_s_own_stays() -> None:
    """Peaks, capacities, prices, formats and the memory budget are those of the point; the policy object too."""
    one = built(policy={"name": "speculative", "draft": "llama-3.2-1b", "acceptance": 0.7})
    other = drawn(one, Draw(0, 1), {})
    for name in ("peaks", "memory_Bps", "memory_bytes", "usd_per_hour", "onchip", "name"):
        assert getattr(other.device, name) == getattr(one.device, name)
    assert (other.budget, other.policy, other.scheduler) == (one.budget, one.policy, one.scheduler)
    assert other.setup.rounds.costs[0].device.kernels != one.setup.rounds.costs[0].device.kernels
    assert len(other.costs) == 2


@given(st.sampled_from(["h100-sxm", "h200-sxm", "mi300x", "tpu-v5e", "a100-pcie-40gb", "xeon-8480+"]),
       st.sampled_from(["vllm-v1", "ideal", "tgi", "llama-cpp"]), st.integers(0, 2**40))  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_every_sample_of_every_device_is_a_device(device: str, engine: str, seed: int) -> None:
    """Whatever is drawn, terms are finite, positive and bounded: a pass takes a positive, finite time."""
    one = load_engine(engine)
    point = with_kernels(Device.from_profile(hardware_profiles.load(device)), one)
    found = drawn_device(point, one, Draw(seed, 0), {"matmul": 3.0})
    seconds = PassCost(load_shape("llama-3.2-1b", "model"), found).seconds(Work.decode(4, 512))
    host = drawn_engine(one, Draw(seed, 0))
    assert 0 < seconds < 1e3
    assert all(0 <= getattr(host, name) < 10 for name in ("step_s", "layer_s", "sequence_s", "request_s"))


# -- samples of scenarios


def test_samples_are_the_same_every_time() -> None:
    """Sample 3 does not depend on how many were asked for, nor on who asked before."""
    few, many = list(uncertainty.sampled(built(), 4)), list(uncertainty.sampled(scenario(), 6))
    assert few[3].device.kernels == many[3].device.kernels
    assert few[3].engine == many[3].engine
    assert few[3].device.kernels != few[2].device.kernels


def test_less_known_devices_are_less_sure() -> None:
    """Measured, a sibling of measured ones, a class default: intervals of a decode round grow in that order."""
    widths = [width(uncertainty.pass_factors(built(hardware=name), 40, 64, 2048))
              for name in ("h100-sxm", "h200-sxm", "mi300x")]  # fmt: skip
    assert widths == sorted(widths)
    assert widths[2] > 1.5 * widths[0]


def test_a_datasheet_is_never_beaten() -> None:
    """Every sample of the textbook roofline is slower than it; at the median by what bf16 products are."""
    factors = uncertainty.pass_factors(built(engine="ideal"), 80)
    assert factors.min() >= 1.0
    assert 1.2 < np.median(factors) < 1.7
    assert "datasheet alone" in uncertainty.about(built(engine="ideal"))[0]


def test_pools_and_layouts_are_sampled_too() -> None:
    """Both pools, the link between them, and the stages of a pipeline run on drawn hardware."""
    pools = {"prefill": {"replicas": 1}, "decode": {"replicas": 1}, "link_GBps": 50}
    one = built(pools=pools)
    other = drawn(one, Draw(0, 0), {})
    assert other.prefill is not None and other.mover is not None and one.mover is not None
    assert other.mover.link_Bps != one.mover.link_Bps
    assert other.prefill.device.kernels == other.device.kernels
    staged = built(layout={"pipeline": 2, "tensor": 2})
    assert drawn(staged, Draw(0, 0), {}).costs[0].device.link != staged.device.link


# -- what is reported


def test_a_run_reports_p10_p50_p90_of_its_metrics() -> None:
    """Percentiles are those of so many runs under the same luck, made by hand here."""
    result = simulate(scenario())
    found = uncertainty.of_run(result, 6)
    by_hand = [flat(simulate(one).metrics) for one in uncertainty.sampled(result.built, 6)]
    assert found["metrics"] == intervals(by_hand)
    tpot = found["metrics"]["latency.tpot_ms.mean"]
    assert tpot["p10"] < result.metrics["latency"]["tpot_ms"]["mean"] < tpot["p90"]
    assert found["samples"] == 6


def test_an_interrupted_run_keeps_whole_samples() -> None:
    """Ctrl-C after the second sample leaves two."""
    done: list[int] = []

    def tick() -> None:
        done.append(1)
        if len(done) == 2:
            raise KeyboardInterrupt

    assert uncertainty.of_run(simulate(scenario()), 9, tick)["samples"] == 2


def test_a_scenario_against_itself_differs_by_nothing() -> None:
    """The same draw in both: every interval of the difference is 0 to 0; a smaller model is faster in all."""
    found = uncertainty.of_difference(scenario(), scenario(), 3)
    assert found
    assert all(value == 0.0 for one in found.values() for value in one.values())
    other = uncertainty.of_difference(scenario(), scenario(model="llama-3.2-1b"), 3)
    assert other["TPOT mean (ms)"]["p90"] < 0.0


def test_a_curve_s_intervals_are_those_of_its_samples() -> None:
    """Speedup percentiles at every point, against rounds and baseline costed by hand on each sample."""
    policy = {"name": "speculative", "draft": "llama-3.2-1b", "acceptance": 0.7}
    known = Known(scenario(policy=policy))
    found = curve_of(known, parse_axes(["policy.gamma=1,4", "batch=1,32"]))
    table = uncertainty.with_intervals(known, found, 7).table
    one, ours = known.of(["policy.gamma=4"])
    plain = known.baseline(["policy.gamma=4"])[1]
    sizes, context = np.array([1, 32]), np.array([1024, 1024])
    laws = [law_of(p, one.setup.rounds, sizes, context) for p in (ours, plain)]
    hand = []
    for sample in uncertainty.sampled(one, 7):
        per_token = [round_seconds(sample.setup.rounds, p, sizes, totals) / expected
                     for p, (expected, totals) in zip((ours, plain), laws, strict=True)]  # fmt: skip
        hand.append(per_token[1] / per_token[0])
    for level, share in (("p10", 0.1), ("p50", 0.5), ("p90", 0.9)):
        assert table[f"speedup_{level}"][2:] == pytest.approx(np.quantile(hand, share, axis=0))
    assert {name: table[name].tolist() for name in found.table} == {n: c.tolist() for n, c in found.table.items()}


# -- beyond what was measured


def test_a_question_beyond_the_data_says_so() -> None:
    """Batch 4,096 from data up to 2,048 is named with both numbers; batch 64 is not, nor anything of a datasheet."""
    cost = built().costs[0]
    (line,) = uncertainty.outside(cost, [Work.decode(4096, 512)])
    assert line.startswith(uncertainty.BEYOND)
    assert "batch 4,096 (measured up to 2,048)" in line
    assert uncertainty.outside(cost, [Work.decode(64, 2048), Work.prefill(1, 4096)]) == []
    assert uncertainty.outside(built(engine="ideal").costs[0], [Work.decode(4096, 512)]) == []


def test_intervals_grow_with_how_far_beyond() -> None:
    """1 + log2(r)/2 times as wide at r times what was measured, three times at most; a real question shows it."""
    asked = {("matmul", "m"): (4096.0, 1024.0), ("decode_attention", "batch"): (1e9, 1.0)}
    assert widening(asked) == {"matmul": 2.0, "decode_attention": 3.0}
    cost = built().costs[0]
    assert widening(beyond(cost, [Work.decode(4096, 512)])) == {"decode_attention": pytest.approx(1.5)}
    known = Known(scenario())
    found = curve_of(known, parse_axes(["context=131072,1048576"]))
    table = uncertainty.with_intervals(known, found, 40).table
    near, far = np.log(table["tokens_per_s_p90"] / table["tokens_per_s_p10"])
    assert far > 1.3 * near


def test_collectives_have_a_range_too() -> None:
    """A message larger than any that was timed is named."""
    cost = built(layout={"tensor": 8}).costs[0]
    assert any("collectives" in line for line in uncertainty.outside(cost, [Work.prefill(1, 1_000_000)]))


# -- the command line


def write(folder: Path, **changes: Any) -> str:
    """The small scenario as a file."""
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}), "utf-8")
    return str(path)


def test_run_prints_and_saves_intervals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table, summary.json, and nothing of either without the option."""
    file, out = write(tmp_path), tmp_path / "out"
    main_(["run", file, "--out", str(out), "-q", "--uncertainty", "5"])
    assert "80 % intervals, 5 samples" in capsys.readouterr().out
    saved = json.loads((out / "summary.json").read_text())
    assert saved["uncertainty"]["samples"] == 5
    assert set(saved["uncertainty"]["metrics"]["latency.ttft_ms.mean"]) == {"p10", "p50", "p90"}
    main_(["run", file, "--out", str(out), "-q", "--overwrite"])
    assert "intervals" not in capsys.readouterr().out
    assert {**saved, "uncertainty": 0} == {**json.loads((out / "summary.json").read_text()), "uncertainty": 0}


def test_compare_and_speedup_print_intervals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Differences of the same draw; p10 and p90 beside the best point, and in the table on disk."""
    file = write(tmp_path)
    main_(["compare", file, "--set", "engine=ideal", "-q", "--uncertainty", "5"])
    said = capsys.readouterr().out
    assert "intervals of B - A, 5 samples" in said and "datasheet alone" in said
    speculative = "policy={name: speculative, draft: llama-3.2-1b, acceptance: 0.7}"
    main_(["speedup", file, "--set", speculative, "--over", "policy.gamma=1:3", "--uncertainty", "5",
           "--out", str(tmp_path / "s")])  # fmt: skip
    assert "p90" in capsys.readouterr().out
    assert "speedup_p10" in (tmp_path / "s" / "speedup.csv").read_text().splitlines()[0]


def test_explain_warns_beyond_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line under explain; and a run whose batch is within has no such warning."""
    file = write(tmp_path)
    main_(["explain", file, "--batch", "4096"])
    assert "measured up to 2,048" in " ".join(capsys.readouterr().out.split())
    assert not [w for w in simulate(scenario()).metrics["warnings"] if "outside" in w.lower()]


@pytest.mark.parametrize("command", [["run"], ["speedup"], ["compare", "--set", "seed=1"]])
@pytest.mark.parametrize("samples", ["1", "-3", "100000000"])
def test_a_senseless_number_of_samples_is_refused(
    command: list[str], samples: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, exit status 2, nothing written."""
    file = write(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main_([command[0], file, *command[1:], "--uncertainty", samples])
    assert stop.value.code == 2
    assert "--uncertainty" in capsys.readouterr().err


def test_costs_by_decree_have_no_uncertainty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--cost-ratio and --uncertainty contradict each other."""
    with pytest.raises(SystemExit):
        main_(["speedup", write(tmp_path), "--cost-ratio", "0.1", "--uncertainty", "5"])
    assert "costs by decree" in capsys.readouterr().err


def main_(words: list[str]) -> None:
    """The command line in this process; a clean end is no exception."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["decodesim", *words])
        try:
            main()
        except SystemExit as stop:
            if stop.code:
                raise
