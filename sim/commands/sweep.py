"""``decodesim sweep``: run a scenario at many points and write a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from analysis.origin import header
from analysis.sweep_files import check_place, save_sweep
from sim import show
from sim.commands.bar import bar
from sim.executors import Place, crew
from sim.planning.journal import Journal
from sim.scenario import Scenario
from sim.sweep import Range, about, over, points, sweep

__all__ = ["design_of", "run"]

MOST_SHOWN = 40
MOST_COLUMNS = 7
SHOWN = ("status", "ttft_p99_ms", "tpot_p99_ms", "requests_per_s", "attainment", "usd_per_million_output_tokens")


def design_of(listed: bool, random: int | None, latin: int | None, grid: bool = False) -> tuple[str, int]:
    """(design, points to draw). Raises ValueError, one line, for more than one."""
    given = {"grid": grid, "list": listed, "random": random is not None, "latin": latin is not None}
    chosen = [name for name, is_given in given.items() if is_given]
    if len(chosen) > 1:
        raise ValueError(f"--{chosen[1]}: one design at a time; leave out --{chosen[0]}")
    count = random if random is not None else latin
    if count is not None and not 1 <= count <= 1_000_000:
        raise ValueError(f"--{chosen[0]}: {count}: must be a whole number from 1 to 1,000,000")
    return (chosen or ["grid"])[0], count or 0


def run(
    file: str, settings: Sequence[str], axes: Sequence[str], out: str, design: tuple[str, int], *,
    executor: str = "processes", seed: int = 0, overwrite: bool = False, restart: bool = False, as_json: bool = False,
    quiet: bool = False,
) -> None:  # fmt: skip
    """Sweep, write the folder, show the first rows. Raises ValueError; KeyboardInterrupt leaves the journal."""
    scenario, place = Scenario.load(file, settings), Place.parse(executor)
    chosen = over(axes, design[0])
    asked = points(chosen, *design, seed)
    check_place(out, overwrite)
    journal = Journal(Path(out), about(scenario), fresh=restart)
    done = False
    try:
        with bar("sweeping", quiet or as_json) as tick, crew(place) as hands:
            rows = sweep(scenario, asked, hands, journal, tick)
        said = {**about(scenario), "axes": [_axis(axis) for axis in chosen], "design": design[0], "points": len(rows),
                "seed": seed, "settings": list(settings)}  # fmt: skip
        files = save_sweep(rows, out, said, header(scenario.seed) + scenario.to_yaml(), overwrite=overwrite)
        done = True
    except KeyboardInterrupt:
        kept = f"{len(journal.rows)} of {len(asked)} points are kept; the same command goes on from there"
        typer.echo(f"decodesim: interrupted: {kept}", err=True)
        raise typer.Exit(130) from None
    finally:
        journal.close(done)
    _shown(rows, asked, as_json)
    if not as_json:
        typer.echo(f"wrote {', '.join(files)} into {out}")


def _axis(axis: Any) -> dict[str, Any]:
    return {**asdict(axis), **({} if isinstance(axis, Range) else {"values": list(axis.values)})}


def _shown(rows: Sequence[Mapping[str, Any]], asked: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    if as_json:
        show.as_json(list(rows))
        return
    head = [*asked[0], *(name for name in SHOWN if any(row.get(name) is not None for row in rows))][:MOST_COLUMNS]
    table = [[_cell(row.get(name)) for name in head] for row in rows[:MOST_SHOWN]]
    failed = sum(row["status"] != "ok" for row in rows)
    show.grid(f"{len(rows)} points" + (f", {failed} of them cannot run" if failed else ""), head, table)


def _cell(value: Any) -> str:
    return show.number(value) if value is None or isinstance(value, int | float) else str(value)[:40]
