"""The page of any other folder of tables (sweeps, plans): CSV and JSON files as tables, pictures as they are."""

from __future__ import annotations

import base64
from pathlib import Path

from analysis.report.page import Html, Page, element, joined, table
from analysis.report.read import read_csv, read_json
from analysis.report.run_page import flattened, scenario_section

__all__ = ["folder_page"]

MOST_FILES, MOST_PICTURE_BYTES = 12, 400_000
PICTURES = {".png": "png", ".svg": "svg+xml"}


def folder_page(folder: Path, most_rows: int) -> Page:
    """What lies in the folder, file by file. Raises ValueError where there is nothing to show."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.is_symlink())
    asked, origin, resolved = scenario_section(folder)
    sections = [(path.name, _shown(path, most_rows)) for path in files if path.suffix in (".csv", ".json", *PICTURES)]
    if not sections:
        raise ValueError(f"{folder}: holds no result: nothing named summary.json, speedup.csv, tune.csv, compare.json, "
                         "nor any table or picture")  # fmt: skip
    shown = sections[:MOST_FILES]
    warnings = [f"{len(sections) - len(shown)} more files are not shown."] * (len(sections) > len(shown))
    return Page(f"Tables of {folder.name}", _answer(folder), asked, warnings, [*shown, *resolved], origin)


def _answer(folder: Path) -> str:
    """The sentence of a plan or sweep where its JSON has one."""
    for path in sorted(folder.glob("*.json")):
        said = read_json(path).get("sentence")
        if isinstance(said, str):
            return said
    return "A folder of tables; this kind of result says no answer of its own."


def _shown(path: Path, most_rows: int) -> Html:
    if path.suffix == ".csv":
        columns = read_csv(path)
        rows = [[_number(cell) for cell in row] for row in zip(*columns.values(), strict=True)]
        return table(list(columns), rows, most_rows)
    if path.suffix == ".json":
        return table(["what", "value"], list(flattened(read_json(path))), most_rows)
    if path.stat().st_size > MOST_PICTURE_BYTES:
        return element("p", f"A picture of {path.stat().st_size:,} bytes, too large to stand here.", kind="note")
    source = f"data:image/{PICTURES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
    return joined(element("img", kind="picture", alt=path.name, src=source))


def _number(cell: str) -> object:
    try:
        return float(cell)
    except ValueError:
        return cell
