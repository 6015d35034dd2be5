"""A report is one file that opens without a network, says the answer first, and lets nothing of the data run."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from analysis.comparison_files import MARK as COMPARED
from analysis.report import KINDS, report_html, save_report
from analysis.report.intervals import mean_and_percentiles
from analysis.report.page import MOST_BYTES, Html, Page, element, embedded, number, table
from analysis.report.read import read_columns, read_csv
from analysis.speedup_files import csv_text
from sim import Scenario, simulate
from sim.cli import app

CHROMIUM = shutil.which("chromium")
EVIL = "</script><script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">'\"&$\\frac{"


class Opened(HTMLParser):
    """Counts what could run or fetch, and collects text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.risky: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            fetches = name in ("src", "href", "action", "srcset") and not (value or "").startswith("data:image/")
            if name.startswith("on") or fetches:
                self.risky.append(f"{tag} {name}={value}")

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def opened(text: str) -> Opened:
    parser = Opened()
    parser.feed(text)
    return parser


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run, saved."""
    settings_ = ["workload.requests=60", "workload.rate=20", "policy={name: speculative, draft: llama-3.2-1b}"]
    place = tmp_path_factory.mktemp("run") / "result"
    simulate(Scenario.load("chat_h100", settings_)).save(place, trace_events=0)
    return place


STUDY = {
    "policy.gamma": np.array([1, 2, 3, 1, 2, 3]),
    "batch": np.array([1, 1, 1, 64, 64, 64]),
    "context": np.full(6, 1024),
    "expected_tokens": np.array([1.8, 2.4, 2.9] * 2),
    "round_ms": np.array([5.0, 6.0, 7.0, 9.0, 12.0, 15.0]),
    "step_ms": np.full(6, 4.5),
    "tokens_per_s": np.full(6, 300.0),
    "speedup": np.array([1.62, 1.8, 1.86, 0.9, 0.9, 0.87]),
    "fits": np.array([1, 1, 1, 1, 1, 0]),
    "best": np.array([0, 0, 1, 0, 1, 0]),
    "quality_loss_percent": np.array([0.0, 0.0, 0.0, 0.0, np.nan, 0.0]),
}
CHOICES = "choice,settings,batch,tpot_ms,capacity_per_s,prefill_ms,memory_GB,loss_percent,why\n"
COMPARISON: dict[str, Any] = {
    "labels": ["a", "b"],
    "confidence": 0.95,
    "method": "moving blocks of 5 requests",
    "repeats": 1,
    "requests": 30,
    "differences": [
        {"metric": "TTFT mean (ms)", "a": 2.0, "b": 1.0, "difference": -1.0, "low": -1.5, "high": -0.5},
        {"metric": "ITL p99 (ms)", "a": 2.0, "b": 1.0, "difference": -1.0, "low": None, "high": None},
    ],
    "waterfall": [
        {"cause": "weights", "a_ms": 2.0, "b_ms": 1.0, "difference_ms": -1.0},
        {"cause": "mean E2EL", "a_ms": 2.0, "b_ms": 1.0, "difference_ms": -1.0},
    ],
    "sentence": "B's mean E2EL is 50.0% shorter.",
    "notes": ["A note."],
}


def study(place: Path, kind: str, evil: str = "") -> Path:
    """A folder of each kind but a run's; ``evil`` wherever words may stand."""
    place.mkdir(exist_ok=True)
    if kind == "speedup.csv":
        named = {f"gamma{evil}" if name == "policy.gamma" else name: column for name, column in STUDY.items()}
        (place / kind).write_text(csv_text({**named, "variants": np.array([evil or "none"] * 6, dtype=object)}))
    elif kind == "tune.csv":
        quoted = '"' + evil.replace('"', '""') + '"'
        (place / kind).write_text(CHOICES + f"{quoted},{quoted},4,3.1,33,18,19,0,\n")
    elif kind in ("sweep.json", "plan.json"):
        point = {"point": 0, "status": "ok", "why": evil, f"key{evil}": evil}
        kept = {"status": "kept", "candidate": evil, "size": evil, "pareto": True, "usd_per_hour": 2.0,
                "e2el_mean_ms": 9.0}  # fmt: skip
        bars = [{"change": evil, "percent": 0.0}, {"change": "b" + evil, "percent": 3.0}]
        about = {"version": evil, "seed": 0, "axes": [{"path": evil}], "design": evil, "answer": "No plan. " + evil,
                 "kept": [kept], "sensitivity": bars, "slo": {"tpot_ms": 9}, "rate_per_s": 2,
                 "candidates": {evil: 1}}  # fmt: skip
        (place / kind).write_text(json.dumps(about))
        columns = point if kind == "sweep.json" else {**point, **kept}
        table = csv_text({name: np.array([value], dtype=object) for name, value in columns.items()})
        (place / ("sweep.csv" if kind == "sweep.json" else "ranked.csv")).write_text(table)
    elif kind == COMPARED:
        said = {
            **COMPARISON,
            "labels": ["a" + evil, "b"],
            "sentence": COMPARISON["sentence"] + evil,
            "notes": [evil or "-"],
        }
        (place / kind).write_text(json.dumps(said))
    else:
        (place / "sweep.csv").write_text(
            csv_text({"rate": np.array([1, 2]), "name": np.array([evil, "b"], dtype=object)})
        )
    return place


# -- what it says


def test_a_run_says_the_answer_first(folder: Path) -> None:
    """The sentence, what was asked, warnings, then numbers, pictures, tables, the scenario and versions."""
    text = report_html(folder)
    seen = opened(text)
    words = " ".join(seen.text)
    order = ["Meets TTFT p99", "Asked:", "Warning:", "In numbers", "Latency", "95 % intervals", "Promises",
             "Where the time went", "Over time", "The slowest requests",
             "The scenario as resolved", "memory_fraction", "seed 0"]  # fmt: skip
    places = [words.index(piece) for piece in order]
    assert places == sorted(places)
    assert seen.tags.count("img") == 3 and seen.tags.count("figure") == 2
    assert len(text.encode()) < MOST_BYTES


def test_numbers_are_those_of_the_summary(folder: Path) -> None:
    """Cards and tables show what summary.json holds, in full behind each cell."""
    text, summary = report_html(folder), json.loads((folder / "summary.json").read_text())
    p99 = summary["latency"]["ttft_ms"]["p99"]
    assert f'data-value="{p99!r}"' in text and f"<b>{number(p99)}</b>" in text
    assert f'data-value="{summary["requests"]["finished"]}"' in text


def test_the_best_point_of_a_study_is_its_answer(tmp_path: Path) -> None:
    """1.86 times at gamma 3; what is slower, does not fit or has unknown quality is warned about."""
    words = " ".join(opened(report_html(study(tmp_path / "s", "speedup.csv"))).text)
    assert "At best 1.86 times autoregressive decoding, at gamma 3, batch 1, context 1,024" in words
    for warning in ("1 of 6 points do not fit", "3 of 6 points are slower", "Of 1 points nobody knows"):
        assert f"Warning: {warning}" in words


def test_the_first_choice_kept_is_recommended(tmp_path: Path) -> None:
    (tmp_path / "tune.csv").write_text(
        CHOICES + "int4,,4,2,40,18,19,,loses\ngamma 3,,4,3.1,33,18,19,0,\nplain,,4,4,30,18,19,0,\n"
    )
    words = " ".join(opened(report_html(tmp_path)).text)
    assert "Recommended: gamma 3, 3.1 ms a token" in words and "next: plain, 4 ms" in words
    assert "1 of 3 choices are refused" in words


def test_a_comparison_keeps_its_intervals(tmp_path: Path) -> None:
    """Bounds in the table, a dash where there is none, the notes as warnings."""
    text = report_html(study(tmp_path / "c", COMPARED))
    assert 'data-value="-1.5"' in text and "<td>yes</td>" in text and "<td>-</td>" in text
    assert "B&#x27;s mean E2EL is 50.0% shorter." in text and "moving blocks of 5 requests" in text


def test_other_folders_of_tables_are_shown(tmp_path: Path) -> None:
    """Of anything: every CSV a table, the sentence of a JSON its answer; an empty folder is refused."""
    place = study(tmp_path / "sweep", "other")
    (place / "other.json").write_text('{"sentence": "Three devices.", "devices": 3}')
    words = " ".join(opened(report_html(place)).text)
    assert "Three devices." in words and "sweep.csv" in words and "devices" in words
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: holds no result: nothing named summary.json"):
        report_html(tmp_path / "empty")


# -- what it does not do


@pytest.mark.parametrize("kind", [*KINDS, "other"])
def test_nothing_is_fetched_and_hostile_words_stay_words(kind: str, folder: Path, tmp_path: Path) -> None:
    """Markup in labels, notes, choices, warnings and scenarios is shown as text; no attribute runs or fetches."""
    place = tmp_path / "hostile"
    if kind == "summary.json":
        shutil.copytree(folder, place)
        summary = json.loads((place / kind).read_text())
        summary["warnings"], summary[EVIL] = [EVIL], EVIL
        (place / kind).write_text(json.dumps(summary))
        (place / "scenario.yaml").write_text(f"# {EVIL}\nmodel: {json.dumps(EVIL)}\nhardware: x\n")
    else:
        study(place, kind, EVIL)
    text = report_html(place)
    seen = opened(text)
    assert not seen.risky and "<img src=x" not in text
    assert text.count("<script") == seen.tags.count("figure") + 1  # the data of each chart, and the page's own
    assert "pwned" in " ".join(seen.text)
    assert "http://" not in re.sub(r'src="data:[^"]*"|http://www.w3.org/2000/svg', "", text)


def test_data_cannot_end_its_element() -> None:
    text = embedded({"name": "</script><!--&"})
    assert "<" not in text and ">" not in text and json.loads(text) == {"name": "</script><!--&"}


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60), st.text(max_size=60))
def test_any_words_come_back_as_they_went_in(cell: str, title: str) -> None:
    """Parsed again, the page holds one cell with these words, whatever they are."""
    page = Page(title, "answer", sections=[("t", table([title or "-"], [[cell or "-"]], 10))]).html()
    seen = opened(page)
    assert seen.tags.count("td") == 1 and seen.tags.count("script") == 1 and not seen.risky
    assert Html("<b>") == "<b>" and element("p", "<b>") == "<p>&lt;b&gt;</p>"


HOSTILE = {
    "not JSON": ("summary.json", "{", "is not JSON: line 1"),
    "too deep": ("summary.json", "[" * 100_000, "nested too deeply"),
    "a list": ("summary.json", "[1]", "holds list, not a mapping"),
    "another mapping": ("compare.json", '{"a": 1}', "compare.json is not as decodesim writes it (KeyError: 'labels')"),
    "bad bytes": ("compare.json", b"\xff\xfe", "is not UTF-8 text"),
    "no rows": ("speedup.csv", "a,b\n", "has no rows"),
    "empty": ("speedup.csv", "", "is not CSV"),
    "ragged": ("tune.csv", "a,b\n1\n", "row 2 has 1 cells, the head has 2"),
    "twice": ("tune.csv", "a,a\n1,2\n", "a column's name stands twice"),
    "no column": ("tune.csv", "a,b\n1,2\n", "tune.csv: has no column choice"),
    "words": (
        "speedup.csv",
        ",".join(STUDY) + "\n" + ",".join(["x"] * len(STUDY)) + "\n",
        "holds words where numbers belong",
    ),
}


@pytest.mark.parametrize(("name", "content", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_a_damaged_folder_is_one_line(name: str, content: str | bytes, reason: str, tmp_path: Path) -> None:
    """ValueError that names the file and what is wrong; no report is written."""
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError) as caught:
        save_report(tmp_path, tmp_path / "x.html")
    assert reason in str(caught.value) and "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=300))
def test_any_csv_is_read_or_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text, "utf-8")
    try:
        columns = read_csv(path)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert len({len(cells) for cells in columns.values()}) == 1


def test_numbers_and_words_of_a_csv(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("i,f,w,n\n1,1.5,a,nan\n-2,2,b,1\n")
    found = read_columns(tmp_path / "t.csv")
    assert [column.dtype.kind for column in found.values()] == ["i", "f", "O", "f"]


def test_a_large_study_stays_small(tmp_path: Path) -> None:
    """2,000 rows of long words are cut to what fits under five megabytes, and the page says so."""
    wide = {f"c{i}": np.array(["x" * 400] * 2000, dtype=object) for i in range(20)}
    (tmp_path / "sweep.csv").write_text(csv_text(wide))
    page = report_html(tmp_path)
    assert len(page.encode()) < MOST_BYTES
    assert "The first 300 of 2,000 rows." in page and "(400 characters)" in page


def test_files_are_written_whole_and_replaced_on_purpose(tmp_path: Path) -> None:
    place, out = study(tmp_path / "c", COMPARED), tmp_path / "r.html"
    assert save_report(place, out) == str(out) and out.read_text().startswith("<!DOCTYPE html>")
    with pytest.raises(ValueError, match="exists; add --overwrite"):
        save_report(place, out)
    assert save_report(place, out, overwrite=True)
    with pytest.raises(ValueError, match="a report's name ends in .html"):
        save_report(place, tmp_path / "r.pdf")
    with pytest.raises(ValueError, match="is not a folder; give one that"):
        save_report(tmp_path / "none", tmp_path / "n.html")
    with pytest.raises(ValueError, match="cannot be written"):
        save_report(place, tmp_path / "no" / "r.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "r.html"]


def test_the_same_folder_gives_the_same_bytes(folder: Path) -> None:
    assert report_html(folder) == report_html(folder)


def test_the_command(folder: Path, tmp_path: Path) -> None:
    said = CliRunner().invoke(app, ["report", str(folder), "--out", str(tmp_path / "r.html")])
    assert said.exit_code == 0 and "wrote" in said.output and (tmp_path / "r.html").stat().st_size < MOST_BYTES


# -- intervals


def test_intervals_cover_the_truth_of_independent_draws() -> None:
    """95 % intervals of the mean of 200 exponentials hold the true mean in 85 to 100 % of 60 samples."""
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(60):
        [(_, value, low, high), *_] = mean_and_percentiles(rng.exponential(10.0, 200))
        assert low <= value <= high
        held += low <= 10.0 <= high
    assert 51 <= held <= 60


def test_few_values_have_no_interval() -> None:
    assert mean_and_percentiles(np.ones(29)) == [] and mean_and_percentiles(np.full(99, np.nan)) == []


# -- in a real browser


def browse(page: Path, script: str) -> str:
    """The document after ``script`` ran in it, its content policy put aside for that."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text("utf-8"))
    page.write_text(text.replace("</body>", f"<script>{script}</script></body>"), "utf-8")
    return dump(page)


def dump(page: Path) -> str:
    assert CHROMIUM is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", "--dump-dom"]
    done = subprocess.run([CHROMIUM, *options, page.as_uri()], capture_output=True, text=True, timeout=90)
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")
def test_a_browser_draws_sorts_and_keeps_to_the_policy(folder: Path, tmp_path: Path) -> None:
    """Charts are drawn under the policy; a press on a head sorts by number, a second one the other way round."""
    page = Path(save_report(folder, tmp_path / "r.html"))
    assert dump(page).count("<path d=") >= 6  # six lines in two charts
    script = (
        "const t=[...document.querySelectorAll('table')].find(t=>t.textContent.includes('arrival_s'));"
        "const b=t.querySelectorAll('th button')[3];b.click();b.click();"
        "document.title=[...t.tBodies[0].rows].slice(0,60).map(r=>r.cells[3].dataset.value).join(' ');"
    )
    [title] = re.findall(r"<title>(.*?)</title>", browse(page, script))
    sizes = [int(word) for word in title.split()]
    assert len(sizes) > 50 and sizes == sorted(sizes, reverse=True)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")
def test_a_browser_runs_nothing_but_the_pages_own_script(tmp_path: Path) -> None:
    """Even markup that somehow got in is stopped by the content policy."""
    page = tmp_path / "r.html"
    evil = Html("<script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">")
    page.write_text(Page("calm", "answer", sections=[("t", evil)]).html(), "utf-8")
    assert "<title>calm</title>" in dump(page)
