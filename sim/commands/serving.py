"""``decodesim validate --serving FILE``: every row of a measured service predicted, and how far off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sim import show
from sim.commands.bar import bar
from sim.silicon.served import Served, served, write_rows
from sim.silicon.user_points import service_of

__all__ = ["plain", "validate"]

HEAD = ["", "model", "engine", "layout", "", "n", "median", "mean", "p90", "bias"]


def validate(
    file: str, scenario: str | None, device: str | None, engine: str | None, out: str | None, as_json: bool
) -> None:
    """Print the error tables of ``file``; ``out``: every row with its prediction. Raises ValueError."""
    if out is not None and Path(out).suffix not in (".csv", ".parquet"):
        raise ValueError(f"--out: {out}: a table's name ends in .csv or .parquet")
    with bar("predicting rows", hidden=as_json) as tick:
        found = served(file, service_of(scenario, device, engine), tick)
    if out is not None:
        write_rows(found, Path(out))
    show.as_json(plain(found)) if as_json else _tables(found, out)


def plain(found: Served) -> dict[str, Any]:
    """The same as plain values."""
    return {"file": found.file, "layout": found.layout, "rows": len(found.frame), "notes": found.notes,
            "tables": [vars(row) for row in found.tables], "unpredicted": found.unpredicted}  # fmt: skip


def _tables(found: Served, out: str | None) -> None:
    show.grid(f"{found.file}: {found.layout}", HEAD, [
        [r.quantity, r.model, r.engine, r.layout, r.kind, r.n, *(f"{v:.1%}" for v in (r.median, r.mean, r.p90)),
         f"{r.bias:+.1%}"]
        for r in found.tables
    ])  # fmt: skip
    missing = sum(found.unpredicted.values())
    said = [f"{len(found.frame)} rows, {missing} without a prediction"]
    said += [f"{count} rows: {reason}" for reason, count in list(found.unpredicted.items())[:12]]
    for line in (*said, *found.notes, *([f"rows: {out}"] if out else [])):
        show.console().print(line, soft_wrap=True, markup=False, highlight=False)
