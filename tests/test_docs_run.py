"""What the README, the docs and the notebooks show is run, page by page, each in a folder of its own."""

import json
from pathlib import Path

import pytest
from docs_pages import Block, PageError, blocks, run

ROOT = Path(__file__).parents[1]
PAGES = [p for p in (ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))) if p.is_file()]
NOTEBOOKS = sorted(ROOT.glob("notebooks/**/*.ipynb"))


def name(path: Path) -> str:
    """The page's path from the root."""
    return path.relative_to(ROOT).as_posix()


def execute(path: Path, page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a page in `folder`; its error becomes the whole report of the failure."""
    monkeypatch.chdir(folder)
    report = None
    try:
        run(blocks(path, page), folder, ROOT)
    except PageError as error:
        report = str(error)
    if report:
        pytest.fail(report, pytrace=False)


def left_out() -> list[Block]:
    """The blocks that say why they are not run."""
    return [b for path in PAGES for b in blocks(path, name(path)) if b.skipped is not None]


@pytest.mark.slow
@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=name)
def test_page_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block does what the page says."""
    execute(path, name(path), tmp_path, monkeypatch)


@pytest.mark.parametrize("block", left_out(), ids=lambda b: b.place)
def test_block_left_out(block: Block) -> None:
    """Listed among the skipped, with the page's reason."""
    pytest.skip(f"{block.place}: {block.skipped}")


PLANTED = {
    "python": ("Text.\n\n```python\nx = 1\nx / 0\n```\n", "page.md:5: ZeroDivisionError"),
    "in a function": ("```python\ndef f():\n    return 1 / 0\nf()\n```\n", "page.md:3: ZeroDivisionError"),
    "syntax": ("```python\nx = = 1\n```\n", "page.md:2: SyntaxError"),
    "leaves": ("```python\nraise SystemExit(0)\n```\n", "page.md:2: SystemExit"),
    "bash": ("```bash\nfalse\ntrue\n```\n", "page.md:2: exit status 1"),
    "console status": ("```console\n$ true\n$ exit 3\n```\n", "page.md:3: exit status 3"),
    "console output": ("```console\n$ echo two\none\n```\n", "page.md:2: $ echo two\nthe page shows:\none\n"),
    "console without $": ("```console\ndecodesim run\n```\n", "page.md:2: a console block begins with"),
    "never called": ("```python\nx = 1\ndef f():\n    return 1\n```\n", "page.md:3: f is shown but never called"),
    "alias": ("```py\nx = 1\n```\n", "page.md:2: ```py is not run; write ```python"),
    "no reason": ("<!-- not executed -->\n```python\nx / 0\n```\n", "page.md:3: `not executed` without a reason"),
    "indented": ("- item\n\n  ```python\n  x / 0\n  ```\n", "page.md:4: NameError"),
}


@pytest.mark.parametrize(("text", "wanted"), PLANTED.values(), ids=PLANTED)
def test_a_block_that_fails_is_named(
    text: str, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report begins with page and line of the fault."""
    (tmp_path / "page.md").write_text(text, "utf-8")
    with pytest.raises(pytest.fail.Exception) as caught:
        execute(tmp_path / "page.md", "page.md", tmp_path, monkeypatch)
    assert str(caught.value).startswith(wanted)


GOOD = """
```python
from dataclasses import dataclass

@dataclass
class Point:
    x: "int"

def double(n):
    return 2 * n

open("made.txt", "w").write("by Python\\n")
```

```console
$ cat made.txt
by Python
$ echo 1 2 3
1 ... 3
```

```python
assert double(Point(2).x) == 4   # the page shares one namespace
```

<!-- not executed: it would fail -->
```python
1 / 0
```

```yaml
not: code
```
"""


def test_a_page_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks share a namespace and a folder, `...` stands for any output, a skip gives its reason."""
    page = tmp_path / "page.md"
    page.write_text(GOOD, "utf-8")
    execute(page, "page.md", tmp_path, monkeypatch)
    found = blocks(page, "page.md")
    assert [b.language for b in found] == ["python", "console", "python", "python"]
    assert [b.skipped for b in found] == [None, None, None, "it would fail"]


def test_a_notebook_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells share a namespace; the report names the cell and its line."""
    cells = [("markdown", "# Title"), ("code", "x = 0"), ("code", "y = 1\ny / x")]
    book = {"cells": [{"cell_type": kind, "source": source.splitlines(True)} for kind, source in cells]}
    (tmp_path / "book.ipynb").write_text(json.dumps(book), "utf-8")
    with pytest.raises(pytest.fail.Exception) as caught:
        execute(tmp_path / "book.ipynb", "book.ipynb", tmp_path, monkeypatch)
    assert str(caught.value).startswith("book.ipynb[cell 3]:2: ZeroDivisionError")
