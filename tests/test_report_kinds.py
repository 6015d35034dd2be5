"""Reports of what commands wrote: each kind of folder has the resolved scenario, and the report shows it."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from typer.testing import CliRunner

from analysis.plots.planning import plan_devices, sweep_lines
from analysis.report import KINDS, report_html
from analysis.report.page import MOST_BYTES
from sim import Scenario
from sim.cli import app

SMALL = ["--set", "workload.requests=40", "--set", "workload.rate=4"]
PLANNED = "plan={requests: 100, seeds: 2, search: {hardware: [h100-sxm, h200-sxm]}}"
COMMANDS = {
    "speedup.csv": ["speedup", "chat_h100", "--set", "policy={name: speculative, draft: llama-3.2-1b}",
                    "--over", "policy.gamma=1:3", "--over", "batch=1,16"],
    "tune.csv": ["tune", "chat_h100", *SMALL, "--set", "policy={name: speculative, draft: llama-3.2-1b}",
                 "--over", "policy.gamma=2,4"],
    "sweep.json": ["sweep", "chat_h100", *SMALL, "--over", "layout.tensor=1,2,3", "--over", "workload.rate=2,4",
                   "--executor", "serial"],
    "plan.json": ["plan", "chat_h100", "--set", "workload={rate: 2, prompt: 128, output: 16, requests: 100}",
                  "--set", PLANNED, "--executor", "serial"],
}  # fmt: skip
SHOWN = {
    "speedup.csv": ["At best", "policy.gamma", "Curves"],
    "tune.csv": ["Recommended: ", "Every choice"],
    "sweep.json": ["6 points (grid) over layout.tensor, workload.rate", "2 of 6 points cannot run",
                   "Over what was swept", "ttft_p99_ms over layout.tensor"],
    "plan.json": ["keep every promise at 2 requests/s", "What a tenth more would change", "slo: ttft_ms 500"],
}  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each command's folder, by the file that marks it."""
    place, found = tmp_path_factory.mktemp("kinds"), {}
    for mark, words in COMMANDS.items():
        found[mark] = place / mark.partition(".")[0]
        done = CliRunner().invoke(app, [*words, "--out", str(found[mark])])
        assert done.exit_code == 0, done.output
    return found


@pytest.mark.parametrize("mark", COMMANDS)
def test_a_folder_has_its_scenario_and_the_report_shows_it(mark: str, written: dict[str, Path]) -> None:
    """It loads; answer, what was asked, versions and the resolved scenario stand in one file that fetches nothing."""
    folder = written[mark]
    assert mark in KINDS and (folder / mark).is_file()
    resolved = (folder / "scenario.yaml").read_text()
    assert resolved.startswith("# As resolved") and "\n# decodesim " in resolved
    assert Scenario.load(folder / "scenario.yaml").model == "llama-3.1-8b"
    text = report_html(folder)
    for words in [*SHOWN[mark], "The scenario as resolved", "memory_fraction", "seed 0", "numpy"]:
        assert words in text, words
    assert len(text.encode()) < MOST_BYTES and "http://" not in text.replace("http://www.w3.org", "")


def test_a_plans_scenario_still_has_its_question(written: dict[str, Path]) -> None:
    """scenario.yaml asks, best.yaml answers: the one has the plan block, the other none."""
    folder = written["plan.json"]
    asked, best = (Scenario.load(folder / name) for name in ("scenario.yaml", "best.yaml"))
    assert asked.plan is not None and asked.plan.requests == 100 and best.plan is None
    assert json.loads((folder / "plan.json").read_text())["seed"] == asked.seed


def test_a_folder_without_a_scenario_is_still_shown(written: dict[str, Path], tmp_path: Path) -> None:
    """As older versions wrote them."""
    for name in ("plan.json", "ranked.csv"):
        (tmp_path / name).write_text((written["plan.json"] / name).read_text())
    text = report_html(tmp_path)
    assert "keep every promise" in text and "The scenario as resolved" not in text and "seed 0" in text


def test_bars_of_devices_are_those_of_the_plans() -> None:
    """A bar for each confirmed plan, the fewest on top and the best in a colour of its own; none for who failed."""
    rows = [
        {"candidate": "2P1D", "status": "kept", "devices": 3, "size": "2P1D", "usd_per_hour": 6.0, "rank": 1},
        {"candidate": "1P1D", "status": "kept", "devices": 4, "size": "2P2D", "usd_per_hour": 8.0, "rank": 2},
        {"candidate": "none", "status": "missed", "devices": None, "size": None, "usd_per_hour": None, "rank": None},
    ]
    axes = plan_devices(rows)
    assert [bar.get_width() for bar in axes.patches] == [4, 3]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1P1D", "2P1D"]
    assert axes.patches[0].get_facecolor() != axes.patches[1].get_facecolor()
    plt.close("all")


def test_sweep_lines_are_the_points() -> None:
    """A line for each entry through its points, and the promise."""
    axes = sweep_lines({"a": ([1, 2], [3.0, 4.0]), "b": ([1, 2], [5.0, 6.0])}, "load", "TPOT (ms)", limit=5.5)
    assert [line.get_ydata().tolist() for line in axes.lines[:2]] == [[3.0, 4.0], [5.0, 6.0]]
    assert list(axes.lines[2].get_ydata()) == [5.5, 5.5] and axes.get_ylabel() == "TPOT (ms)"
    plt.close("all")
