"""What figures draw is what closed forms say: read off the tables, and off the drawn lines and bars themselves."""

import numpy as np
import pytest
from analytic_models import device, model

import analysis.plots as plots
import hardware_profiles
from analysis.plots.service import SERIES
from analysis.plots.speculation import _places
from analysis.plots.speedup import best_line, grid_of
from analysis.plots.steps import knee_of
from sim import theory
from sim.analytic.cost import PassCost
from sim.analytic.hardware import Engine
from sim.analytic.work import Work
from sim.ask import roofline_points
from sim.policies.tree_data import RANKS, TREES
from sim.policies.tree_shapes import Tree
from sim.published.table import load
from sim.variants.topk import recall

H100, LLAMA = device("h100-sxm"), model("llama-3.1-8b")
COST = PassCost(LLAMA, H100)


# -- where time goes


@pytest.mark.parametrize("number_format", ["bf16", "fp8"])
def test_the_ridge_point_is_where_the_lines_cross(number_format: str) -> None:
    """The memory roof, drawn, meets each ceiling, drawn, at the intensity that is labelled as its ridge point."""
    axes = plots.roofline(roofline_points(COST, {"decode": Work.decode(8, 512)}), H100, formats=[number_format])
    memory, labels = axes.lines[0].get_xydata(), [text.get_text() for text in axes.texts]
    ridge, peak = H100.ridge_point(number_format), H100.peak_flops(number_format).flops
    [ceiling] = [line for line in axes.lines if np.allclose(line.get_ydata(), peak) and line.get_linestyle() == "-"]
    slope = memory[1, 1] / memory[1, 0]
    assert slope == pytest.approx(H100.memory_Bps) and ceiling.get_xdata()[0] * slope == pytest.approx(peak)
    assert ceiling.get_xdata()[0] == pytest.approx(ridge) and f"ridge point {ridge:.0f} FLOP/B" in labels


def test_critical_batch_is_the_ridge_point_for_16_bit_weights() -> None:
    """2 FLOP a row for two bytes: 989e12 / 3350e9 = 295 rows on an H100; bytes and rate halve together for 8 bits."""
    table = plots.critical_batch_table([H100, device("v100-sxm2-32gb")], ["bf16", "fp8"])
    found = dict(zip(zip(table["device"], table["format"], strict=True), table["batch"], strict=True))
    assert found["h100-sxm", "bf16"] == pytest.approx(989e12 / 3350e9)
    assert found["h100-sxm", "fp8"] == pytest.approx(found["h100-sxm", "bf16"])
    assert ("v100-sxm2-32gb", "fp8") not in found and ("v100-sxm2-32gb", "fp16") in found


def test_the_parts_of_a_step_sum_to_its_time_and_so_do_the_drawn_ones() -> None:
    """Host time included; the top of the stack is the black line."""
    table = plots.step_time_table(COST, [1, 8, 64, 512], 1024, Engine("host", step_s=1e-3, sequence_s=1e-5))
    parts = [values for name, values in table.items() if name not in ("batch", "seconds", "compute_bound")]
    assert np.allclose(np.sum(parts, axis=0), table["seconds"], rtol=1e-9)
    assert np.allclose(table["host"], 1e-3 + 1e-5 * table["batch"])
    axes = plots.step_time(table)
    tops = np.max([area.get_paths()[0].vertices[:, 1].max() for area in axes.collections])
    assert tops == pytest.approx(table["seconds"].max() * 1e3)
    assert np.allclose(axes.lines[0].get_ydata(), table["seconds"] * 1e3)


def test_the_knee_is_the_ridge_point_of_the_products() -> None:
    """Norms and gathered rows add a little to 295; below the knee a step is bound by memory."""
    table = plots.step_time_table(COST, np.arange(280, 310), 128)
    assert knee_of(table) in range(296, 300)
    assert knee_of(plots.step_time_table(COST, [1, 2], 128)) is None


def test_latency_times_throughput_is_the_batch() -> None:
    """Little's law; and nothing fits beside 16 GB of weights once the cache takes what is left of 72."""
    table = plots.pareto_table(COST, [1, 64, 512], [1024, 8192])
    assert np.allclose(table["tokens_per_s"] * table["tpot_ms"], 1e3 * table["batch"])
    held = COST.bytes_weights + table["batch"] * table["context"] * 131_072.0
    assert (table["fits"] == (held <= 72e9)).all() and table["fits"].any() and not table["fits"].all()


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_shares_add_up(phase: str) -> None:
    """To one at every context; attention with its softmax gains with the context, FFN loses."""
    table = plots.shares_table(PassCost(LLAMA, H100, attention="standard"), [256, 4096, 65536], 2, phase)
    kinds = [table[name] for name in ("attention", "softmax", "FFN", "rest")]
    assert np.allclose(np.sum(kinds, axis=0), 1.0)
    assert (np.diff(table["attention"] + table["softmax"]) > 0).all() and (np.diff(table["FFN"]) < 0).all()
    with pytest.raises(ValueError, match="phase: 'both' is not one of decode, prefill"):
        plots.shares_table(COST, [256], phase="both")


def test_intensity_of_verification_grows_with_its_tokens() -> None:
    """Against the counts of the pass itself; without a cache to speak of it is gamma + 1 at batch 1."""
    table = plots.intensity_table(COST, [0, 1, 3, 7], batch=1, context=1)
    assert table["intensity"] == pytest.approx([1, 2, 4, 8], rel=0.02)
    counts = COST.counts(Work.decode(16, 1024 + 3, 4))
    [found] = plots.intensity_table(COST, [3], 16)["intensity"]
    assert found == pytest.approx(counts["flops"] / counts["hbm_bytes"]) and table["ridge"][0] == H100.ridge_point(
        "bf16"
    )


def test_quadrants_are_shares_of_the_peaks() -> None:
    """A long prefill is compute-bound, decode of one sequence memory-bound; neither share exceeds one."""
    table = plots.quadrants_table(COST, {"prefill": Work.prefill(1, 4096), "decode": Work.decode(1, 1024)})
    assert ((table["mbu"] <= 1) & (table["mfu"] <= 1)).all()
    assert table["mfu"][0] > 0.5 > table["mbu"][0] and table["mbu"][1] > 0.5 > table["mfu"][1]


def test_vectors_read_the_weights_each_time() -> None:
    """One by one is n times one; together is as long as one until the critical batch, then n m k 2 / P."""
    table = plots.vector_matrix_table(H100, [1, 2, 64, 4096], 4096, 4096)
    one = (4096 * 4096 + 2 * 4096) * 2 / 3350e9
    assert table["one_by_one_s"] == pytest.approx(np.array([1, 2, 64, 4096]) * one)
    assert table["together_s"][0] == pytest.approx(one) and table["together_s"][2] < 1.05 * one
    assert table["together_s"][3] == pytest.approx(2 * 4096**3 / 989e12)


# -- memory


def test_caches_by_kind_of_attention() -> None:
    """2 * layers * key heads * 128 * 2 bytes a token, 32 times fewer with one head for 32; a window stops it."""
    costs = {kind: PassCost(shape, H100) for kind, shape in plots.attention_kinds(LLAMA, window=1000).items()}
    table = plots.kv_memory_table(costs, [512, 100_000])
    found = dict(zip(zip(table["kind"], table["context"], strict=True), table["kv_bytes"], strict=True))
    assert found["multi-head", 512] == 512 * 2 * 32 * 32 * 128 * 2 == 32 * found["multi-query", 512]
    assert found["grouped, 8 key heads", 100_000] == 100_000 * 131_072
    assert found["grouped, window 1,000", 512] == found["grouped, 8 key heads", 512]
    assert found["grouped, window 1,000", 100_000] == pytest.approx(1000 * 131_072, rel=0.002)


def test_hire_recall_is_the_closed_form_and_reaches_one() -> None:
    table = plots.hire_recall_table({"a": 0.2, "b": 0.5}, [100, 200, 1000], 100, 1000, 10.0)
    assert table["recall"][1] == recall(0.2, 200, 100, 1000)
    assert table["recall"][2] == table["recall"][5] == 1.0 and (table["recall"][:3] >= table["recall"][3:]).all()
    assert (table["fetched_bytes"] == 10 * table["candidates"]).all()
    axes = plots.hire_recall(table)
    axes.figure.canvas.draw()
    [above] = axes.child_axes
    assert above.get_xlim() == pytest.approx(np.array(axes.get_xlim()) * 10 / 1e6)


def test_matformer_line_has_every_uniform_size_and_costs_by_size() -> None:
    table = plots.matformer_table(model("matlm-78m"), H100, count=6)
    assert {"S", "M", "L", "XL"} == set(table["size"]) - {""}
    assert (np.diff(table["parameters"]) > 0).all() and (np.diff(table["step_s"]) > 0).all()
    assert (np.diff(table["nats"]) <= 0).all()


def test_bit_width_without_options_is_one_and_four_bits_gain_most_alone() -> None:
    table = plots.bit_width_table(
        LLAMA, H100, {"16": {}, "8": {"format": "int8"}, "4": {"format": "int4"}}, [1, 512], 128
    )
    speedup = table["speedup"].reshape(3, 2)
    assert (speedup[0] == 1).all() and 1 < speedup[1, 0] < speedup[2, 0] < 4 and speedup[2, 1] < 1.2
    assert table["tokens_per_s"][0] == pytest.approx(1 / float(COST.seconds(Work.decode(1, 128))))


# -- drafting


def test_expected_tokens_are_the_formula_on_the_drawn_curve() -> None:
    """(1 - a^(g + 1)) / (1 - a), gamma + 1 at alpha 1, one at alpha 0; never above the dotted bound."""
    alphas = np.linspace(0, 1, 11)
    axes = plots.expected_tokens(plots.expected_tokens_table(alphas, [1, 5]))
    for line, gamma in zip(axes.lines[:2], (1, 5), strict=True):
        x, y = line.get_xdata(), line.get_ydata()
        assert line.get_label() == f"gamma {gamma}" and (x == alphas).all()
        assert y[:-1] == pytest.approx((1 - x[:-1] ** (gamma + 1)) / (1 - x[:-1])) and y[-1] == gamma + 1
    x, y = axes.lines[2].get_data()
    assert y == pytest.approx(1 / (1 - x))


def test_speedup_over_alpha_and_gamma_is_theorem_3_8() -> None:
    """And the best line is the best gamma of the theory, with gaps where nothing pays."""
    alphas, gammas = [0.02, 0.3, 0.5, 0.8, 0.9], range(1, 31)
    table = plots.alpha_gamma_table(alphas, gammas, c=0.05)
    row = (table["alpha"] == 0.8) & (table["gamma"] == 5)
    assert table["speedup"][row][0] == pytest.approx((1 - 0.8**6) / 0.2 / (1 + 5 * 0.05))
    _, ys, z = grid_of(table, "alpha", "gamma", "speedup")
    wanted = [theory.best_gamma(alpha, 0.05) for alpha in alphas]
    assert wanted[0] == 0 and ys[best_line(z)].tolist()[1:] == wanted[1:]
    drawn = plots.speedup_heat(table).lines[0].get_ydata()
    assert np.isnan(drawn[0]) and drawn[1:].tolist() == wanted[1:]


def test_a_heat_map_wants_two_values_of_each() -> None:
    with pytest.raises(ValueError, match="alpha, gamma: a heat map needs two values of each at least"):
        plots.speedup_heat(plots.alpha_gamma_table([0.5], [1, 2], 0.1))


def test_break_even_is_where_the_speedup_is_one() -> None:
    """On the drawn contour theory gives 1, within what straight lines between the points can do."""
    table = plots.alpha_gamma_table(np.linspace(0.05, 0.95, 181), range(1, 9), c=0.2)
    axes = plots.speedup_heat(table)
    [contour] = [c for c in axes.collections if hasattr(c, "levels")]
    vertices = np.concatenate([path.vertices for path in contour.get_paths()])
    on_rows = vertices[np.isclose(vertices[:, 1], np.rint(vertices[:, 1]))]
    assert len(on_rows) > 3
    for alpha, gamma in on_rows:
        assert theory.wall_time_factor(float(alpha), round(gamma), 0.2) == pytest.approx(1.0, abs=2e-3)


def test_a_tree_carries_its_chances() -> None:
    """1 plus the chances are the tokens of a round; parents stand over their children, no two leaves in one place."""
    tree, ranks = Tree(TREES["medusa-63"]), RANKS["medusa-vicuna-7b"]
    table = plots.tree_table(tree, ranks)
    assert 1 + table["chance"].sum() == pytest.approx(tree.expected_tokens(ranks))
    x = _places(table["parent"])
    for node in range(tree.nodes):
        below = x[table["parent"] == node]
        assert not len(below) or x[node] == pytest.approx(below.mean())
    leaves = [node for node in range(tree.nodes) if node not in table["parent"]]
    assert len(set(x[leaves])) == len(leaves)
    axes = plots.token_tree(table)
    dots = axes.collections[-1]
    assert np.allclose(dots.get_sizes(), 12 + 290 * table["chance"]) and np.allclose(dots.get_array(), table["chance"])


def test_medusa_by_model_size_is_what_was_published() -> None:
    """Table 1 and figure 3 of arXiv 2401.10774: 2.18 and 2.83 for 7B, 2.33 and 2.83 for 13B, 2.35 for 33B."""
    table = plots.medusa_sizes_table(load().rows)
    found = {(m, s): v for m, s, v in zip(table["method"], table["model"], table["speedup"], strict=True)}
    assert found["medusa-1", "Vicuna-7B"] == 2.18 and found["medusa-2", "Vicuna-7B"] == 2.83
    assert found["medusa-1", "Vicuna-13B"] == 2.33 and found["medusa-2", "Vicuna-33B"] == 2.35
    heights = sorted(patch.get_height() for patch in plots.medusa_sizes(table).patches)
    assert heights == sorted(table["speedup"])


# -- under traffic


def test_latency_curves_are_the_order_statistics() -> None:
    """Unknown values left out; of many values the extremes stay and each share is the true one."""
    values = np.ma.MaskedArray([3.0, 1.0, 99.0, 2.0], mask=[0, 0, 1, 0])
    table = plots.latencies_table({"TTFT": values, "none": []})
    assert table["ms"].tolist() == [1, 2, 3] and table["share"] == pytest.approx([1 / 3, 2 / 3, 1])
    many = np.random.default_rng(1).exponential(size=5000)
    table = plots.latencies_table({"E2EL": many}, points=50)
    assert len(table["ms"]) == 50 and table["ms"][0] == many.min() and table["ms"][-1] == many.max()
    for share, ms in zip(table["share"], table["ms"], strict=True):
        assert (many <= ms).mean() == pytest.approx(share)


def test_a_promise_is_a_dashed_line_at_its_limit() -> None:
    axes = plots.latencies(plots.latencies_table({"TTFT": [1.0, 2.0]}), {"TTFT": 500.0, "TPOT": 5.0})
    assert [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"] == [500.0]


def test_timelines_add_up_replicas() -> None:
    """Each replica holds its last value until its next row; one replica alone is its own rows."""
    rounds = {
        "replica": np.array([0, 1, 0, 1]),
        "start_ns": np.array([0, 5, 10, 20]) * 10**9,
        "batch": np.array([1, 2, 4, 0]),
        "waiting": np.array([0, 0, 3, 3]),
        "kv_bytes": np.array([1, 1, 2, 0]) * 10**9,
    }
    table = plots.timeline_table(rounds)
    assert table["second"].tolist() == [0, 5, 10, 20] and table["batch"].tolist() == [1, 3, 6, 4]
    assert table["kv_GB"].tolist() == [1, 2, 3, 2]
    alone = plots.timeline_table(rounds, replica=1)
    assert alone["second"].tolist() == [5, 20] and alone["batch"].tolist() == [2, 0]
    assert [a.get_ylabel() for a in plots.timelines(table).axes] == [unit for unit, _ in SERIES.values()]


def test_bars_of_phases_sum_to_their_seconds() -> None:
    phases = {name: {"seconds": s, "seconds_by_cause": {"weights": 0.7 * s, "compute": 0.3 * s}}
              for name, s in (("prefill", 1.0), ("decode", 4.0))}  # fmt: skip
    table = plots.phase_bars_table(phases)
    axes = plots.phase_bars(table)
    ends = {}
    for bar in axes.patches:
        ends[bar.get_y()] = max(ends.get(bar.get_y(), 0.0), bar.get_x() + bar.get_width())
    assert sorted(ends.values()) == pytest.approx([1.0, 4.0])


def test_a_token_costs_its_share_of_rent_and_power() -> None:
    """6.88 dollars an hour for the seconds of a step over the batch; idle watts likewise; unknown power is unknown."""
    table = plots.token_price_table(COST, [1, 64], 1024)
    seconds = np.array([float(COST.seconds(Work.decode(b, 1024))) for b in (1, 64)])
    assert table["usd_per_million"] == pytest.approx(H100.usd_per_hour * seconds / 3600 / [1, 64] * 1e6)
    assert table["idle_J"] == pytest.approx(140 * seconds / [1, 64])
    assert table["dynamic_J"][0] == pytest.approx(float(COST.joules(Work.decode(1, 1024))))
    assert np.isnan(plots.token_price_table(PassCost(LLAMA, device("tpu-v5e")), [1])["idle_J"]).all()


# -- judging


def test_sensitivity_bars_end_at_the_answers() -> None:
    """Of 2x + y + 0z: x moves it by 4, y by 1, z not at all; a range of something unknown is refused."""
    base, ranges = {"x": 1.0, "y": 1.0, "z": 1.0}, {"z": (0.0, 9.0), "y": (0.5, 1.5), "x": (0.0, 2.0)}
    table = plots.sensitivity_table(lambda x, y, z: 2 * x + y, ranges, base)
    assert table["name"].tolist() == ["x", "y", "z"] and table["base"].tolist() == [3, 3, 3]
    assert table["at_low"].tolist() == [1, 2.5, 3] and table["at_high"].tolist() == [5, 3.5, 3]
    bars = plots.sensitivity(table, "answer").patches
    assert sorted(bar.get_x() + bar.get_width() for bar in bars[:3]) == [1, 2.5, 3]
    with pytest.raises(ValueError, match="ranges: 'w' is not one of x, y, z"):
        plots.sensitivity_table(lambda **_: 0.0, {"w": (0, 1)}, base)


def test_the_mean_error_is_in_the_title() -> None:
    """10 % too much and 20 % too little are 15 % on average."""
    table = {"measured": [1.0, 10.0], "predicted": [1.1, 8.0]}
    assert plots.mean_error_percent(table) == pytest.approx(15.0)
    axes = plots.predicted_measured(table, "ms")
    assert axes.get_title(loc="left") == "mean error 15.0 % over 2 cases" and axes.get_xlim() == axes.get_ylim()


# -- devices


def test_growth_is_exact_on_an_exact_line() -> None:
    years = np.array([2018, 2020, 2024])
    assert plots.growth_per_year(years, 5e12 * 1.5 ** (years - 2018))[0] == pytest.approx(1.5)


def test_devices_by_year_are_the_profiles() -> None:
    table = plots.devices_by_year_table([hardware_profiles.load(n) for n in ("h100-sxm", "groq-lpu-v1", "xeon-8480+")])
    rows = dict(zip(table["device"], zip(table["year"], table["flops"], table["memory_Bps"], strict=True), strict=True))
    assert rows["h100-sxm"] == (2022, 989e12, 3350e9)
    plots.devices_by_year(table, "memory_Bps")  # one accelerator with a memory that is not SRAM: no line to fit


def test_the_energy_ladder_climbs() -> None:
    """A byte of DRAM costs hundreds of times an int8 multiply (Horowitz, ISSCC 2014); every row has a source."""
    table = plots.energy_ladder_table()
    assert (np.diff(table["high_pJ"]) >= 0).all() and all(table["source"])
    pJ = dict(zip(table["item"], table["low_pJ"], strict=True))
    assert pJ["int8 multiply"] == 0.2 and pJ["fp32 multiply"] == 3.7 and pJ["DDR DRAM"] / pJ["int8 multiply"] > 500
    widths = [bar.get_width() for bar in plots.energy_ladder(table).patches]
    assert sorted(widths) == table["high_pJ"].tolist()
