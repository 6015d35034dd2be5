"""``decodesim run --stream``: tables go to disk while the clock runs, so that memory does not grow with the trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.stream import Streamed
    from sim.build import Built
    from sim.run import Result

__all__ = ["check", "run"]


def check(asked: dict[str, Any]) -> None:
    """Raise ValueError where something is asked for (a value that is true) that needs all rows at once."""
    for option, value in asked.items():
        if value:
            raise ValueError(f"{option}: needs all rows in memory; leave it out, or leave out --stream")


def run(
    built: Built, folder: str, overwrite: bool, date: str, progress: Callable[[int], None] | None
) -> tuple[Result, Streamed]:
    """Simulate into a result folder: the run, whose tables are empty, and its summary. Raises ValueError."""
    from analysis.stream import streaming
    from sim.run import simulate

    with streaming(folder, overwrite) as stream:
        result = simulate(built, progress=progress, flush=stream.facts.flush)
        return result, stream.save(result, date=date)
