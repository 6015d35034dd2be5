"""The house style: told apart without colour, units on every axis, nothing of the caller's changed, text is text."""

from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from analytic_models import device, model
from matplotlib.axes import Axes
from matplotlib.image import imread

import analysis.plots as plots
from analysis.plots.style import CAUSES, COLOURS, house_style, log_scale, new_axes, tick
from sim.analytic.cost import PassCost
from sim.analytic.work import Work
from sim.ask import roofline_points

GOLDEN = Path(__file__).with_name("golden_plots_house.png")
H100, LLAMA = device("h100-sxm"), model("llama-3.1-8b")
COST = PassCost(LLAMA, H100)

# Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB.
EYES = {
    "all three cones": np.eye(3),
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colour: str, eye: Any) -> np.ndarray:
    """CIE L*a*b* of a colour as seen."""
    c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.clip(np.asarray(eye) @ np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4), 0, 1)
    xyz = TO_XYZ @ linear / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("eye", EYES)
def test_colours_differ_for_every_kind_of_eye(eye: str) -> None:
    """Any two colours of the house are 15 units of CIE76 apart, several times what is just noticed."""
    seen = [lab(colour, EYES[eye]) for colour in COLOURS]
    assert min(float(np.linalg.norm(a - b)) for a, b in combinations(seen, 2)) > 15


def test_lines_differ_without_colour() -> None:
    """No two of the eight share a dash or a marker."""
    with house_style():
        cycle = list(mpl.rcParams["axes.prop_cycle"])
    assert ["#" + c["color"].lstrip("#") for c in cycle] == list(COLOURS)
    for key in ("color", "linestyle", "marker"):
        assert len({str(c[key]) for c in cycle}) == len(cycle) == 8


def test_parts_of_a_stack_differ_without_colour() -> None:
    """Any two causes differ in hatch, or by 7 units of lightness at least."""
    for (_, a), (_, b) in combinations(CAUSES.items(), 2):
        lightness = [lab(look.colour, EYES["all three cones"])[0] for look in (a, b)]
        assert a.hatch != b.hatch or abs(lightness[0] - lightness[1]) >= 7


def figures() -> dict[str, Axes]:
    """One of each figure with axes of its own."""
    theory = plots.alpha_gamma_table([0.2, 0.5, 0.8], [1, 2, 4], 0.1)
    tree = {"path": ["0", "1", "0.0"], "parent": [-1, -1, 0], "depth": [1, 1, 2], "chance": [0.6, 0.2, 0.3]}
    table = {k: np.array(v) for k, v in tree.items()}
    price = plots.token_price_table(COST, [1, 8])
    study = {"batch": np.array([1, 4]), "speedup": np.array([2.0, 1.5]), "fits": np.array([1, 0])}
    judged = {"measured": [1.0, 2.0], "predicted": [1.1, 1.9]}
    sensitive = plots.sensitivity_table(lambda x: 2 * x, {"x": (0.0, 2.0)}, {"x": 1.0})
    rounds = {"replica": [0, 0], "start_ns": [0, 10**9], "batch": [1, 2], "waiting": [0, 1], "kv_bytes": [1, 2]}
    return {
        "roofline": plots.roofline(roofline_points(COST, {"decode": Work.decode(8, 512)}), H100),
        "critical_batch": plots.critical_batch(plots.critical_batch_table([H100])),
        "step_time": plots.step_time(plots.step_time_table(COST, [1, 512])),
        "pareto": plots.pareto(plots.pareto_table(COST, [1, 8], [512])),
        "shares": plots.shares(plots.shares_table(COST, [128, 4096])),
        "intensity": plots.intensity({"a": plots.intensity_table(COST, [0, 4])}),
        "quadrants": plots.quadrants(plots.quadrants_table(COST, {"one": Work.decode(1, 512)})),
        "vector_matrix": plots.vector_matrix(plots.vector_matrix_table(H100, [1, 64])),
        "kv_memory": plots.kv_memory(plots.kv_memory_table({"own": COST}, [128, 4096])),
        "hire_recall": plots.hire_recall(plots.hire_recall_table({"a": 0.3}, [10, 20], 10, 100, 8)),
        "matformer_line": plots.matformer_line(plots.matformer_table(model("matlm-78m"), H100, 3)),
        "bit_width": plots.bit_width(plots.bit_width_table(LLAMA, H100, {"4": {"format": "int4"}}, [1, 8])),
        "expected_tokens": plots.expected_tokens(plots.expected_tokens_table([0.1, 0.9], [2])),
        "speedup_heat": plots.speedup_heat(theory),
        "speedup_lines": plots.speedup_lines(study, "batch"),
        "token_tree": plots.token_tree(table),
        "medusa_sizes": plots.medusa_sizes({"method": np.array(["m"]), "model": np.array(["A"]), "speedup": [2.0]}),
        "latencies": plots.latencies(plots.latencies_table({"TTFT": [1.0, 2.0]})),
        "timeline": plots.timeline(plots.timeline_table(rounds), "batch"),
        "phase_bars": plots.phase_bars(
            plots.phase_bars_table({"decode": {"seconds": 1, "seconds_by_cause": {"kv": 1}}})
        ),
        "cost_per_token": plots.cost_per_token({"a": price}),
        "energy_per_token": plots.energy_per_token(price),
        "sensitivity": plots.sensitivity(sensitive, "ms"),
        "predicted_measured": plots.predicted_measured(judged, "ms"),
        "devices_by_year": plots.devices_by_year(
            {"kind": np.array(["gpu"]), "memory": ["HBM"], "year": [2022.0], "flops": [1e15]}
        ),
        "energy_ladder": plots.energy_ladder(plots.energy_ladder_table()),
    }


@pytest.fixture(scope="module")
def drawn() -> dict[str, Axes]:
    return figures()


NAMED_BY_TICKS = {"critical_batch": "y", "phase_bars": "y", "sensitivity": "y", "energy_ladder": "y", "token_tree": "x"}


def test_every_figure_of_the_library_is_looked_at(drawn: dict[str, Axes]) -> None:
    """A new figure has to join the tests below."""
    others = {"Point", "growth_per_year", "mean_error_percent", "attention_kinds", "tuning", "timelines"}
    draws = {n for n in plots.__all__ if n.islower() and not n.endswith("_table") and n not in others}
    helpers = {"house_style", "new_axes", "new_figure", "save_figure", "speedup_curves", "speedup_contours"}
    assert set(drawn) == draws - helpers


def test_every_axis_says_what_it_is(drawn: dict[str, Axes]) -> None:
    """A label on both axes, but for those whose ticks are names."""
    for name, axes in drawn.items():
        for side, label in (("x", axes.get_xlabel()), ("y", axes.get_ylabel())):
            assert label or NAMED_BY_TICKS.get(name) == side, f"{name}: no label on {side}"


@pytest.mark.slow
def test_every_figure_saves_as_vectors_and_pixels(drawn: dict[str, Axes], tmp_path: Path) -> None:
    """No tick is raw markup: what a reader sees has no dollar and no backslash."""
    for name, axes in drawn.items():
        for suffix in ("svg", "png"):
            plots.save_figure(axes, tmp_path / f"{name}.{suffix}")
        text = (tmp_path / f"{name}.svg").read_text("utf-8")
        assert "mathdefault" not in text and text.startswith("<?xml"), name


def test_nothing_of_the_callers_is_changed() -> None:
    """Neither matplotlib's settings nor pyplot's list of figures."""
    before = dict(mpl.rcParams)
    mpl.rcParams["lines.linewidth"] = 7.0
    try:
        axes = plots.expected_tokens(plots.expected_tokens_table([0.1, 0.9], [2]))
        assert mpl.rcParams["lines.linewidth"] == 7.0 and axes.lines[0].get_linewidth() == 1.4
    finally:
        mpl.rcParams["lines.linewidth"] = before["lines.linewidth"]
    assert dict(mpl.rcParams) == before


def test_axes_given_are_drawn_on() -> None:
    figure = plots.new_figure()
    left, right = figure.subplots(1, 2)
    assert plots.expected_tokens(plots.expected_tokens_table([0.1, 0.9], [2]), axes=right) is right
    assert right.lines and not left.lines


def test_a_title_is_text_and_not_mathematics(tmp_path: Path) -> None:
    """A stray dollar or an unknown command in a name neither fails nor is eaten."""
    axes = plots.expected_tokens(plots.expected_tokens_table([0.1, 0.9], [2]), title=r"$\nonsense{$ and <b>")
    plots.save_figure(axes, tmp_path / "x.svg")
    assert r"$\nonsense{$ and &lt;b&gt;" in (tmp_path / "x.svg").read_text("utf-8")


def test_frames_are_tables_too() -> None:
    """A pandas frame draws what the mapping draws."""
    import pandas as pd

    table = plots.expected_tokens_table([0.1, 0.5, 0.9], [1, 3])
    lines = [plots.expected_tokens(t).lines for t in (table, pd.DataFrame(table))]
    assert all((a.get_xydata() == b.get_xydata()).all() for a, b in zip(*lines, strict=True))
    study = pd.DataFrame({"batch": [4, 1], "speedup": [1.5, 2.0], "fits": [1, 1]}, index=[7, 9])
    assert plots.speedup_lines(study, "batch").lines[0].get_xydata().tolist() == [[1, 2.0], [4, 1.5]]


@pytest.mark.parametrize(
    ("value", "label"), [(0.1, "0.1"), (512, "512"), (1024, "1,024"), (65536, "65,536"), (1e4, "10k"), (1e15, "1P")]
)
def test_ticks_read_as_people_write(value: float, label: str) -> None:
    assert tick(value) == label


def test_a_short_logarithmic_axis_still_has_labels() -> None:
    """Between 150 and 600 there is no power of ten, but 200 and 500 are named."""
    with house_style():
        axes = new_axes()
        log_scale(axes, x=10)
        axes.set_xlim(150, 600)
        axes.figure.canvas.draw()
        labels = [t.get_text() for t in axes.get_xticklabels(which="minor") + axes.get_xticklabels()]
    assert {"200", "500"} <= set(labels)


def picture() -> np.ndarray:
    """Lines, bars and hatches in the house style without any text, so that no font is in it; [height, width, 3]."""
    with house_style():
        figure = plots.new_figure(3.2, 2.0)
        figure.set_layout_engine("none")
        left, right = figure.subplots(1, 2)
        x = np.arange(6)
        for i in range(8):
            left.plot(x, x * (i + 1) / 8 + i)
        for i, look in enumerate(CAUSES.values()):
            right.bar(0, 1, bottom=i, color=look.colour, hatch=look.hatch, edgecolor="white")
        for axes in (left, right):
            axes.tick_params(labelbottom=False, labelleft=False)
        figure.set_dpi(100)
        figure.canvas.draw()
        return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(np.float64) / 255


def test_the_house_looks_as_it_did() -> None:
    """Golden: a small picture kept beside this file, redrawn by `python tests/test_plots_style.py`.

    Antialiasing may differ between versions of matplotlib, shapes and colours may not.
    """
    kept, now = imread(GOLDEN)[..., :3], picture()
    assert kept.shape == now.shape
    difference = np.abs(kept - now).max(axis=2)
    assert difference.mean() < 0.01 and (difference > 0.25).mean() < 0.01


if __name__ == "__main__":
    from matplotlib.image import imsave

    imsave(GOLDEN, picture())
