"""``decodesim run --executor``: one run, its replicas divided among the workers of an executor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from sim.build import Built
    from sim.run import Result

__all__ = ["run"]


def run(built: Built, executor: str) -> Result:
    """Simulate on all workers. Raises ValueError; Ctrl-C ends them and writes nothing, exit status 130."""
    from sim.executors import Place, crew
    from sim.split import simulate_split

    try:
        with crew(Place.parse(executor)) as found:
            return simulate_split(built, found)
    except KeyboardInterrupt:
        typer.echo("decodesim: interrupted: a run divided among workers leaves nothing behind", err=True)
        raise typer.Exit(130) from None
