"""``decodesim plan``: the cheapest fleet that keeps every promise, ranked, explained and written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from analysis.origin import header
from analysis.plan_files import check_place, save_plan
from sim import show
from sim.commands.bar import bar
from sim.executors import Place, crew
from sim.plan import Plan, about, make_plan
from sim.planning.journal import Journal
from sim.scenario import Scenario

__all__ = ["run"]

MOST_SHOWN = 10
HEAD = ("plan", "units", "$/h", "E2EL (ms)", "J/token", "why not")


def run(
    file: str, settings: Sequence[str], out: str, *, executor: str = "processes", overwrite: bool = False,
    restart: bool = False, as_json: bool = False, quiet: bool = False, uncertainty: int = 0,
) -> None:  # fmt: skip
    """Plan, write the folder, show the first rows; exit status 1 where no candidate keeps the promises.

    Raises ValueError; KeyboardInterrupt leaves the journal.
    """
    scenario, place = Scenario.load(file, settings), Place.parse(executor)
    check_place(out, overwrite)
    journal = Journal(Path(out), about(scenario), fresh=restart)
    done = False
    try:
        with bar("planning", quiet or as_json) as tick, crew(place) as hands:
            found = make_plan(scenario, hands, journal, lambda _, now, total: tick(now, total), uncertainty)
        files = save_plan(found.rows, found.sensitivity, out, _said(scenario, found), _best(scenario, found),
                          scenario_yaml=header(scenario.seed) + scenario.to_yaml(), overwrite=overwrite)  # fmt: skip
        done = True
    except KeyboardInterrupt:
        typer.echo("decodesim: interrupted: what is known is kept; the same command goes on from there", err=True)
        raise typer.Exit(130) from None
    finally:
        journal.close(done)
    _shown(found, as_json)
    if not as_json:
        typer.echo(f"wrote {', '.join(files)} into {out}")
    if found.best is None:
        raise typer.Exit(1)


def _said(scenario: Scenario, found: Plan) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for row in found.rows:
        counts[row["status"]] = counts.get(row["status"], 0) + 1
    kept = [row for row in found.rows if row["status"] == "kept"]
    plan = None if scenario.plan is None else scenario.plan.model_dump()
    return {**about(scenario), "answer": found.answer, "best": found.best,
            "candidates": counts, "kept": kept, "uncertainty": found.unsure,
            "rate_per_s": found.traffic.rate_per_s, "traffic": asdict(found.traffic.load),
            "slo": scenario.slo.model_dump(), "plan": plan, "seed": scenario.seed}  # fmt: skip


def _best(scenario: Scenario, found: Plan) -> str | None:
    """The winner as a scenario that runs, under its whole traffic."""
    if found.best is None:
        return None
    settings: list[str] = found.best["settings"]
    rate = found.traffic.settings(scenario, found.traffic.rate_per_s, found.best["requests"], warm=False)
    chosen = scenario.with_settings([*settings, *rate[:2]]).model_copy(update={"plan": None})
    return header(scenario.seed) + chosen.to_yaml()


def _shown(found: Plan, as_json: bool) -> None:
    if as_json:
        show.as_json({"answer": found.answer, "rows": list(found.rows), "sensitivity": list(found.sensitivity)})
        return
    rows = [_row(one) for one in found.rows[:MOST_SHOWN]]
    more = len(found.rows) - len(rows)
    show.grid(f"{len(found.rows)} candidates at {found.traffic.rate_per_s:.4g} requests/s", list(HEAD), rows)
    if more > 0:
        typer.echo(f"... and {more} more in ranked.csv")
    for bar_ in found.sensitivity[1:]:
        changed = "nothing is sustained" if bar_["percent"] is None else f"{bar_['percent']:+.1f} % dollars"
        typer.echo(f"{bar_['change']}: {changed}")
    typer.echo(found.answer)
    if found.unsure is not None:
        share, samples = found.unsure["kept"], found.unsure["samples"]
        typer.echo(f"It keeps every promise on {share:.0%} of {samples} samples of the hardware.")


def _row(one: dict[str, Any]) -> list[Any]:
    figures = [show.number(one.get(name)) for name in ("usd_per_hour", "e2el_mean_ms", "joules_per_output_token")]
    return [one["candidate"], one["size"] or "-", *figures, str(one["why"])[:60]]
