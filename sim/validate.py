"""Validation: everything the simulator claims, held against models that really ran; one table of rows.

``validate()`` gives the rows of ``decodesim validate``. Each comparison lives in a file of sim/validation/.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sim.plugin import suggest
from sim.validation.row import Row

COMPARISONS = ("counts", "tokens", "distribution", "seconds")


def chosen(said: str) -> list[str]:
    """The comparisons in a comma-separated list. Raises ValueError naming what is allowed."""
    names = [word.strip() for word in said.split(",")]
    for name in names:
        if name not in COMPARISONS:
            raise ValueError(f"--only: {name[:80]!r}; allowed: {', '.join(COMPARISONS)}{suggest(name, COMPARISONS)}")
    return names


def validate(only: Sequence[str] = COMPARISONS) -> list[Row]:
    """Run the comparisons named, in order; every row says by itself whether it holds."""
    return [row for name in only for row in _comparison(name)()]


def _comparison(name: str) -> Callable[[], list[Row]]:
    """The function that compares; its file is imported when it is asked for."""
    if name == "counts":
        from sim.validation.pairs import compare as counts

        return counts
    if name == "tokens":
        from sim.validation import forecasts, tokens

        return lambda: [*tokens.compare(), *forecasts.compare()]
    if name == "distribution":
        from sim.validation.distribution import compare as distribution

        return distribution
    from sim.validation.seconds import compare as seconds

    return seconds
