"""The silicon part of docs/validation.md, made again: ``python -m sim.silicon.pages docs`` (three minutes on one core).

Writes the tables between the page's markers, and the pictures that it shows, into that folder.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from sim.calibration.ablation import LADDERS, ladder
from sim.calibration.kernel_predict import predicted
from sim.calibration.kernel_rows import is_held
from sim.calibration.ship import devices_of, of_device
from sim.silicon.at_once_judged import series
from sim.silicon.kernels import TITLES, shipped
from sim.silicon.plots import pictures
from sim.silicon.sections import Section, run

__all__ = ["main", "text"]

SERVED = ("throughput", "prefill, 2023", "decode step, 2023")
BEGIN, END = "<!-- silicon: made by python -m sim.silicon.pages docs -->", "<!-- silicon ends -->"


def main(docs: Path) -> None:
    """Rewrite ``docs/validation.md`` between the markers, and its pictures. Raises ValueError without markers."""
    page = docs / "validation.md"
    before, found, rest = page.read_text("utf-8").partition(BEGIN)
    _, ends, after = rest.partition(END)
    if not found or not ends:
        raise ValueError(f"{page}: has no markers {BEGIN!r} and {END!r}")
    made = "\n".join(text(run()))
    beside = page.with_name(page.name + ".tmp")
    beside.write_text(f"{before}{BEGIN}\n\n{made}\n{END}{after}", "utf-8")
    beside.replace(page)
    for kind, title in TITLES.items():
        pictures(_series(kind), title, docs / f"silicon-{kind.replace('_', '-')}.png")
    for title, points in series().items():
        pictures(points, title, docs / f"silicon-{_file(title)}.png")


def text(sections: Iterable[Section]) -> Iterator[str]:
    """Verdicts, tables and what each term pays, as Markdown."""
    sections = list(sections)
    for section in sections:
        of = "" if section.covered else " (medians over the tables)"
        yield f"**{section.title[0].upper()}{section.title[1:]}**{of}:\n"
        if section.covered:
            yield from _coverage(section)
            continue
        head = ("quantity", "tables", "median", "90th percentile", "datasheet's median", "target", "")
        yield from _grid(head, (
            (v.quantity, v.tables, _share(v.median), _share(v.p90), _share(v.textbook),
             f"{_share(v.median_target)} / {_share(v.p90_target)}", "met" if v.met else "missed")
            for v in section.verdicts
        ))  # fmt: skip
    yield "Which terms pay, on held-out shapes, medians over the tables (median / 90th percentile):\n"
    for kind in LADDERS:
        table = shipped(kind)
        steps = ladder(table, devices_of([table]))
        cells = ((name, f"{_share(e.median)} / {_share(e.p90)}") for name, e in steps)
        yield from _grid((f"{TITLES[kind]}: with", "error"), cells)
    for section in (one for one in sections if one.rows):
        yield f"Every table of *{section.title}*:\n"
        columns = ("", "device", "library", "what", "n", "median", "90th percentile", "bias", "datasheet's median")
        yield from _grid(columns, (
            (r.section, r.device, r.library, r.what, r.n, _share(r.median), _share(r.p90), f"{r.bias:+.1%}",
             _share(r.textbook))
            for r in section.rows
        ))  # fmt: skip
        yield from (f"- {note}" for note in section.left_out)
        yield ""
    for kind, title in TITLES.items():
        yield f"![{title}: predicted against measured, residual against size](silicon-{kind.replace('_', '-')}.png)"
    for title in SERVED:
        yield f"![{title}: predicted against measured, residual against size](silicon-{_file(title)}.png)"
    yield ""


def _file(title: str) -> str:
    return title.replace(",", "").replace(" ", "-")


def _coverage(section: Section) -> Iterator[str]:
    """How many measurements lie within their intervals."""
    yield from _grid(("", "device", "n", "inside", "allowed"), (
        (c.what, c.device, c.n, _share(c.share), c.allowed) for c in section.covered
    ))  # fmt: skip


def _series(kind: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    table, found = shipped(kind), {}
    for gpu, device in devices_of([table]).items():
        own = of_device(table, gpu)
        held = is_held(kind, own.frame)
        found[device.name] = own.frame["seconds"].to_numpy(float)[held], predicted(own, device)[held]
    return found


def _grid(head: Iterable[str], rows: Iterable[Iterable[object]]) -> Iterator[str]:
    names = list(head)
    yield f"| {' | '.join(names)} |"
    yield f"|{'---|' * len(names)}"
    for row in rows:
        yield f"| {' | '.join(map(str, row))} |"
    yield ""


def _share(value: float) -> str:
    return "-" if not np.isfinite(value) else f"{value:.1%}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
