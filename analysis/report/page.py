"""A page of HTML that stands alone: everything in one file, every word escaped, no script but our own."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.plots.style import house_style, settled, whole_figure
from sim._version import __version__

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Html", "Page", "bullets", "cards", "chart", "element", "joined", "picture", "preformatted", "table"]

HERE = Path(__file__).parent
MOST_BYTES = 5_000_000
MOST_CHARACTERS = 300  # of a cell; longer ones are cut, and say so
MOST_SVG_BYTES = 400_000  # beyond that a picture goes in as pixels
PIXELS_PER_INCH = 110


class Html(str):
    """Text that is markup already; any other string is escaped where it is put into a page."""


@dataclass(frozen=True)
class Page:
    """``answer`` stands first. ``asked``, ``warnings``: plain lines; ``sections``: (title, content) in order;
    ``origin``: lines about versions.
    """

    title: str
    answer: str
    asked: Sequence[str] = ()
    warnings: Sequence[str] = ()
    sections: Sequence[tuple[str, Html]] = field(default_factory=tuple)
    origin: Sequence[str] = ()

    def html(self) -> str:
        """The whole file."""
        css, script = (_asset(name) for name in ("report.css", "report.js"))
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
        head = joined(
            Html('<meta charset="utf-8">'),
            Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
            Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            element("title", self.title),
            Html(f"<style>{css}</style>"),
        )
        body = joined(self._top(), *map(_section, self.sections), self._foot(), Html(f"<script>{script}</script>"))
        return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'

    def _top(self) -> Html:
        told = [element("h1", self.title), element("p", self.answer, kind="answer")]
        if self.asked:
            told.append(element("p", "Asked: " + "; ".join(map(clipped, self.asked)) + ".", kind="asked"))
        for warning in self.warnings:
            told.append(element("p", "Warning: " + clipped(warning, 2000), kind="warning"))
        return element("header", *told)

    def _foot(self) -> Html:
        lines = [*self.origin, f"Report written by decodesim {__version__}."]
        return element("footer", *(element("p", clipped(line)) for line in lines))


def _section(section: tuple[str, Html]) -> Html:
    title, content = section
    return element("section", element("h2", title), content)


def _asset(name: str) -> str:
    return (HERE / name).read_text("utf-8")


# -- small pieces


def element(name: str, *content: object, kind: str = "", **attributes: object) -> Html:
    """``<name class=kind ...>content</name>``; content that is not :class:`Html` is escaped."""
    said = {"class": kind or None, **{key.replace("_", "-"): value for key, value in attributes.items()}}
    text = "".join(f' {key}="{html.escape(str(v), quote=True)}"' for key, v in said.items() if v is not None)
    return Html(f"<{name}{text}>{joined(*content)}</{name}>")


def joined(*content: object) -> Html:
    """Pieces one after another, plain ones escaped."""
    return Html("".join(one if isinstance(one, Html) else html.escape(str(one)) for one in content))


def clipped(text: object, most: int = MOST_CHARACTERS) -> str:
    """At most so many characters, and a word about the rest."""
    said = str(text)
    return said if len(said) <= most else f"{said[:most]} ... ({len(said):,} characters)"


def bullets(lines: Iterable[object]) -> Html:
    """A list."""
    return element("ul", *(element("li", clipped(line, 2000)) for line in lines))


def preformatted(text: str, most: int = 200_000) -> Html:
    """Text as it stands."""
    return element("pre", clipped(text, most))


def cards(values: Mapping[str, object]) -> Html:
    """Numbers in large print, each with its name under it; what does not exist is left out."""
    shown = [(name, number(value)) for name, value in values.items() if value is not None]
    each = (element("div", element("b", value), element("span", name), kind="card") for name, value in shown)
    return element("div", *each, kind="cards")


def number(value: object) -> str:
    """A number for people: digits that matter; a dash where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, float) and math.isinf(value):
        return str(value)
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    size = abs(value)
    return f"{value:,.0f}" if 1000 <= size < 1e15 else f"{value:.4g}"


def table(head: Sequence[str], rows: Sequence[Sequence[object]], most: int, mark: int | None = None) -> Html:
    """A table that sorts when a column's name is pressed. ``most`` rows are shown; ``mark``: a column whose true cells
    make their row stand out.
    """
    note = f"The first {most:,} of {len(rows):,} rows." if len(rows) > most else ""
    numeric = [bool(rows) and _is_number(rows[0][i]) for i in range(len(head))]
    names = element("tr", *(_head(name, right) for name, right in zip(head, numeric, strict=True)))
    body = []
    for row in rows[:most]:
        marked = mark is not None and row[mark] in (1, True, "1")
        body.append(element("tr", *(_cell(value) for value in row), kind="marked" if marked else ""))
    whole = element("table", element("thead", names), element("tbody", *body), kind="sorts")
    return joined(element("div", whole, kind="wide"), element("p", note, kind="note") if note else Html(""))


def _head(name: str, right: bool) -> Html:
    return element("th", element("button", clipped(name), type="button"), kind="number" if right else "", scope="col")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _cell(value: object) -> Html:
    value = value.item() if isinstance(value, np.generic) else value
    if _is_number(value):
        return element("td", number(value), kind="number", data_value=repr(value))
    return element("td", "-" if value is None else clipped(value))


# -- pictures


def picture(figure: Figure | Axes, what: str) -> Html:
    """A figure inside the page, as an image that can run nothing: vectors, or pixels where those would be large."""
    whole = whole_figure(figure)
    kind, data = "svg+xml", _saved(whole, "svg")
    if len(data) > MOST_SVG_BYTES:
        kind, data = "png", _saved(whole, "png")
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return Html(f'<img class="picture" alt="{html.escape(what, quote=True)}" src="{source}">')


def _saved(figure: Figure, suffix: str) -> bytes:
    import matplotlib as mpl

    out = BytesIO()
    with house_style(), mpl.rc_context({"svg.fonttype": "path"}), settled(figure):
        metadata = {"Date": None} if suffix == "svg" else None
        figure.savefig(out, format=suffix, dpi=PIXELS_PER_INCH, metadata=metadata)
    return out.getvalue()


def chart(
    series: Mapping[str, tuple[Any, Any]], x: str, y: str, still: Html, *, steps: bool = False, log_x: bool = False
) -> Html:
    """Lines to look into: values under the pointer, lines switched off by their names, a stretch drawn large.

    ``series``: (x, y) of each line; ``still``: the picture for readers without scripts and for print; ``steps``: a
    value holds until the next one.
    """
    lines = [{"name": str(name), "x": _numbers(xs), "y": _numbers(ys)} for name, (xs, ys) in series.items()]
    data = embedded({"x": x, "y": y, "steps": steps, "logX": log_x, "series": lines})
    plain = element("div", still, kind="still")
    return element("figure", Html(f'<script type="application/json">{data}</script>'), plain, kind="chart")


def _numbers(values: Any) -> list[float | None]:
    """Six digits are more than a screen shows; what is no number is a gap."""
    return [float(f"{v:.6g}") if math.isfinite(v) else None for v in np.asarray(values, dtype=np.float64).tolist()]


def embedded(value: object) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
