"""One self-contained HTML file from a result folder: answer first, pictures to look into, tables that sort.

Nothing is fetched when the file is opened. Every word that comes from the folder is escaped, pictures stand in it as
images, and a content policy lets no script run but the page's own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from analysis.report.folder_page import folder_page
from analysis.report.page import MOST_BYTES, Page
from analysis.report.plan_pages import plan_page, sweep_page
from analysis.report.run_page import run_page
from analysis.report.study_pages import compare_page, speedup_page, tune_page

__all__ = ["KINDS", "report_html", "save_report"]

KINDS: dict[str, Callable[[Path, int], Page]] = {
    "summary.json": run_page,
    "speedup.csv": speedup_page,
    "tune.csv": tune_page,
    "compare.json": compare_page,
    "sweep.json": sweep_page,
    "plan.json": plan_page,
}
"""What a folder is, by the file that it holds; any other folder of tables is shown file by file."""
ROWS = (1000, 300, 100, 30)  # of a table; fewer where the file would grow beyond MOST_BYTES


def report_html(folder: str | Path) -> str:
    """The whole report of a folder, under MOST_BYTES. Raises ValueError, one line, naming what is wrong with it."""
    place = Path(folder)
    if not place.is_dir():
        known = "run, speedup, tune, compare, sweep or plan"
        raise ValueError(f"{folder}: is not a folder; give one that {known} --out has written")
    mark = next((name for name in KINDS if (place / name).is_file()), None)
    for rows in ROWS:
        text = _built(place, mark, rows)
        if len(text.encode()) < MOST_BYTES:
            return text
    raise ValueError(f"{folder}: holds more than fits into a report of {MOST_BYTES:,} bytes")


def _built(place: Path, mark: str | None, rows: int) -> str:
    try:
        return (folder_page if mark is None else KINDS[mark])(place, rows).html()
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        what = f"{type(error).__name__}: {error}"[:200].replace("\n", " ")
        raise ValueError(f"{place}: {mark or 'a table'} is not as decodesim writes it ({what})") from None


def save_report(folder: str | Path, out: str | Path, overwrite: bool = False) -> str:
    """Write the report whole, or nothing; returns its path. Raises ValueError, one line.

    A file that is there already is replaced on purpose only.
    """
    target = Path(out)
    if target.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--out: {out}: a report's name ends in .html")
    if target.exists() and not overwrite:
        raise ValueError(f"--out: {out} exists; add --overwrite, or choose another name")
    text = report_html(folder)
    beside = target.with_name(f".{target.name}.part")
    try:
        beside.write_text(text, "utf-8")
        beside.replace(target)
    except OSError as error:
        raise ValueError(f"--out: {out}: cannot be written: {error.strerror or error}") from None
    finally:
        beside.unlink(missing_ok=True)
    return str(target)
