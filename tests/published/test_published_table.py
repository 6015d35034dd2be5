"""The table of published numbers as a file, and `decodesim validate --published`."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sim import published
from sim.cli import app, main
from sim.published import Held, chosen, held
from sim.published import table as entry
from sim.published.table import FOLDER, load


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the shipped files, read instead of them."""
    for name in ("rows.csv", "sources.csv"):
        shutil.copy(FOLDER / name, tmp_path)
    monkeypatch.setattr(entry, "FOLDER", tmp_path)
    load.cache_clear()
    yield tmp_path
    load.cache_clear()


FAULTS = [
    ("fit: r and c", "r and c", "note: must name the fit"),
    (",identity,", ",idenity,", "label: 'idenity'; allowed: identity, prediction"),
    ("leviathan2023-table1-002,", "leviathan2023-table1-001,", "leviathan2023-table1-001: twice"),
    (",leviathan2023,Table1,", ",leviathan2024,Table1,", "source: 'leviathan2024' is not in sources.csv"),
    (",leviathan.operations,", ",,", "ours: a row of label data has none"),
    (",identity,0.005,", ",identity,0.005x,", "tolerance: '0.005x': identity takes a number or a percentage"),
    ("%..", "%-", "known failure takes LOW%..HIGH%"),
    ("id,deck,slide", "id,slide,deck", "rows.csv: the columns must be id, deck, slide"),
    ("01 Case study: EdiT5 vs T5", "01 Case study|EdiT5 vs T5", "slide: one for each deck"),
    ("leviathan2023-table1-001,", "leviathan2023-table1-001,,", "rows.csv:2: 23 cells; 22 columns"),
]


@pytest.mark.parametrize(("said", "instead", "message"), FAULTS, ids=[m for _, _, m in FAULTS])
def test_a_faulty_table_is_refused(folder: Path, said: str, instead: str, message: str) -> None:
    """One line with file, row and what is allowed."""
    text = (folder / "rows.csv").read_text("utf-8")
    assert said in text
    (folder / "rows.csv").write_text(text.replace(said, instead, 1), "utf-8")
    with pytest.raises(ValueError) as caught:
        load()
    assert message in str(caught.value) and "rows.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_a_row_of_no_function_is_refused() -> None:
    """A misspelt function of ours names the row."""
    row = replace(load().rows[0], ours="leviathan.speeed", label="identity")
    with pytest.raises(ValueError, match=r"leviathan2023-table1-001: ours: 'leviathan\.speeed' is no function"):
        published.ours(row, load())


VERDICTS = [
    ("prediction", "2%", 2.039, True),
    ("prediction", "2%", 2.05, False),
    ("prediction", "2%", float("nan"), False),
    ("identity", "0.005", 2.004, True),
    ("identity", "0.005", 1.99, False),
    ("known failure", "10%..20%", 1.7, True),
    ("known failure", "10%..20%", 2.0, False),
    ("known failure", "10%..20%", 3.0, False),
    ("fit", "1%", None, False),
    ("data", "", None, True),
]


@pytest.mark.parametrize(("label", "tolerance", "ours", "passed"), VERDICTS)
def test_verdicts(label: str, tolerance: str, ours: float | None, passed: bool) -> None:
    """Two published; tolerances are relative, absolute, or a band that a known failure must stay in."""
    row = replace(load().rows[0], published="2", label=label, tolerance=tolerance)
    assert Held(row, ours).passed is passed


def test_directions() -> None:
    """Above or below another number, and no tie."""
    row = replace(load().rows[0], label="direction only", tolerance="above 1")
    assert Held(row, 1.1, 1.0).passed and not Held(row, 1.0, 1.0).passed
    assert Held(replace(row, tolerance="below 1"), 0.9, 1.0).passed


def test_command_prints_a_deck_in_slide_order() -> None:
    """Slides as titles, and one sentence at the end; exit status 0."""
    done = CliRunner().invoke(app, ["validate", "--published", "--deck", "001", "--only-label", "identity,fit"])
    assert done.exit_code == 0, done.output
    assert done.output.index("01 Case study") < done.output.index("03 Tradeoffs: Figure 2")
    assert "are as labelled; 0 rows of data" in done.output


def test_command_fails_when_a_row_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit status 1, and the row says FAILED."""
    row = replace(load().rows[0], label="prediction", tolerance="1%", published="2")
    monkeypatch.setattr(published, "held", lambda deck, only: [Held(row, 3.0)])
    done = CliRunner().invoke(app, ["validate", "--published"])
    assert done.exit_code == 1 and "FAILED" in done.output and "1 of 1 failed" in done.output


def test_json_has_citation_and_verdict() -> None:
    """Machines get every field, the citation in full, and what ours is."""
    done = CliRunner().invoke(app, ["validate", "--published", "--deck", "001", "--only-label", "identity", "--json"])
    rows = json.loads(done.output)
    first = rows[0]
    assert {"id", "published", "ours", "error", "label", "tolerance", "citation", "verdict"} <= set(first)
    assert all(row["passed"] for row in rows)
    assert first["citation"] == load().citations[first["source"]]


@pytest.mark.parametrize(("arguments", "message"), [
    (["--published", "--deck", "007"], "--deck: '007'; allowed: 000, 001, 002, 003, 004"),
    (["--published", "--only-label", "predicton"], "did you mean 'prediction'?"),
    (["--published", "--only", "counts"], "--only: names comparisons with run models"),
    (["--deck", "001"], "add --published"),
    (["--only-label", "fit"], "add --published"),
])  # fmt: skip
def test_command_refuses(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str],
                         monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """One line with option, value and what is allowed."""
    monkeypatch.setattr("sys.argv", ["decodesim", "validate", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    said = capsys.readouterr().err
    assert caught.value.code != 0 and message in said and len(said.strip().splitlines()) == 1


def test_labels_are_chosen_by_name() -> None:
    """A list of labels, blanks and all."""
    assert chosen("fit, data") == ["fit", "data"]
    assert {h.row.label for h in held("003", "data, fit")} == {"data", "fit"}
