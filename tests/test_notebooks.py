"""The notebooks as they are kept: whole, small, and showing what their cells print now."""

import ast
import json
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from docs_pages import blocks, run

from analysis.picture import LARGEST_BYTES, Picture, show
from analysis.plots import expected_tokens, expected_tokens_table, new_figure

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST_NOTEBOOK_BYTES = 300_000
SAMPLED = ("03", "04")
IMAGES = ("image/svg+xml", "image/png")


def cells(path: Path, kind: str = "code") -> list[dict[str, Any]]:
    """Cells of a kind."""
    found: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


def kept(cell: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(kind, text) of what a cell is kept with: stdout, or a MIME type."""
    for output in cell["outputs"]:
        if output["output_type"] == "stream":
            yield output["name"], "".join(output["text"])
        else:
            yield from ((kind, "".join(data)) for kind, data in output["data"].items())


def ids(path: Path) -> str:
    return path.stem


def test_numbered() -> None:
    """01 to 08; the README has a row for each."""
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05", "06", "07", "08"]
    readme = (FOLDER / "README.md").read_text("utf-8")
    assert all(f"]({path.name})" in readme for path in NOTEBOOKS)


def test_the_readme_runs(tmp_path: Path) -> None:
    """What it shows of exercises is true; what it does not run says why."""
    found = blocks(FOLDER / "README.md", "notebooks/README.md")
    run(found, tmp_path, FOLDER.parent)
    assert sum(block.skipped is None for block in found) == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_kept_whole_and_small(path: Path) -> None:
    """Every cell ran, in order and without an error; pictures and files are small; nothing says when or where."""
    text = path.read_text("utf-8")
    assert [cell["execution_count"] for cell in cells(path)] == list(range(1, len(cells(path)) + 1))
    shown = [found for cell in cells(path) for found in kept(cell)]
    assert {kind for kind, _ in shown} <= {"stdout", "text/plain", "text/html", *IMAGES}
    assert sum(kind in IMAGES for kind, _ in shown) >= 2
    assert all(len(data) <= LARGEST_BYTES for _, data in shown) and len(text) <= LARGEST_NOTEBOOK_BYTES
    assert "iopub" not in text and re.search(r"/(home|tmp|root|work)/", text) is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_no_logic_of_their_own(path: Path) -> None:
    """No function, class or while loop in a cell; only the project and NumPy are imported."""
    trees = [ast.parse("".join(cell["source"])) for cell in cells(path)]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    assert not [n for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef | ast.While | ast.Try)]
    roots = {a.name.split(".")[0] for n in nodes if isinstance(n, ast.Import) for a in n.names}
    roots |= {(n.module or "").split(".")[0] for n in nodes if isinstance(n, ast.ImportFrom)}
    assert roots <= {"analysis", "collections", "hardware_profiles", "numpy", "sim", "workloads"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_links_lead_somewhere(path: Path) -> None:
    """Files that the text links or names exist."""
    text = "\n".join("".join(cell["source"]) for cell in cells(path, "markdown"))
    linked = [FOLDER / target for target in re.findall(r"\]\(([\w./-]+)\)", text)]
    named = [FOLDER.parent / name for name in re.findall(r"`((?:docs|tests|analysis|sim)/[\w./-]+)`", text)]
    assert linked and all(one.exists() for one in [*linked, *named])


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_what_is_kept_is_what_is_printed(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run again, every cell prints the text that the notebook is kept with; where texts are sampled from a model, whose
    products another processor may round otherwise, it prints where it printed.
    """
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "notebook"}
    for number, cell in enumerate(cells(path), 1):
        printed = StringIO()
        with redirect_stdout(printed):
            exec(compile("".join(cell["source"]), f"{path.name}[{number}]", "exec"), names)
        now, then = printed.getvalue(), "".join(text for kind, text in kept(cell) if kind == "stdout")
        assert (bool(now) == bool(then) if path.name[:2] in SAMPLED else now == then), number


def test_a_small_figure_is_a_vector_drawing() -> None:
    """The same figure twice is the same text; Jupyter is offered no PNG."""
    first, second = (show(expected_tokens(expected_tokens_table([0.1, 0.5, 0.9], [2]))) for _ in range(2))
    assert first == second and first.svg is not None and first.svg.startswith("<?xml")
    assert first._repr_svg_() == first.svg and first._repr_png_() is None and repr(first) == "Picture()"


def test_a_large_figure_is_a_bitmap() -> None:
    """Ten thousand marks as paths would weigh megabytes."""
    figure = new_figure()
    figure.subplots().scatter(range(10_000), range(10_000))
    found = show(figure)
    assert found.svg is None and found._repr_svg_() is None
    assert found.png is not None and found.png.startswith(b"\x89PNG") and len(found.png) < LARGEST_BYTES
    assert isinstance(found, Picture) and found._repr_png_() == found.png
