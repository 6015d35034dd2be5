"""What analysis asks of a run: plain columns by name, and the objects that a scenario named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sim.account import Accounts

__all__ = ["Columns", "Run", "known", "masked"]

Columns = dict[str, Any]  # name -> array of shape [rows]; where a value may be unknown, a masked array


class Run(Protocol):
    """A finished simulation (``sim.run.Result``), as far as analysis looks into it."""

    complete: bool
    notes: list[str]
    dropped: Counter[str]
    events: int
    cpu_s: float
    wall_s: float
    peak_memory_bytes: int

    @property
    def built(self) -> Any:
        """The scenario and the objects that it names."""
        ...

    @property
    def recorder(self) -> Any:
        """The tables: requests, leaps, chunks, stays; and the weighted token gaps."""
        ...

    @property
    def scenario(self) -> Any:
        """The scenario as resolved."""
        ...

    @property
    def accounts(self) -> Accounts:
        """Where time and energy went, by leap."""
        ...

    @property
    def request_columns(self) -> Columns:
        """See analysis/requests.py."""
        ...

    @property
    def round_columns(self) -> Columns:
        """See analysis/rounds.py."""
        ...

    @property
    def metrics(self) -> dict[str, Any]:
        """See analysis/metrics.py."""
        ...

    def process_cpu_s(self) -> float:
        """CPU seconds of this process up to now, its start included."""
        ...

    def bare_events_per_s(self) -> float:
        """Bare SimPy events per CPU second of this machine, measured now."""
        ...


def masked(values: Any, unknown: Any) -> np.ma.MaskedArray[Any, Any]:
    """Values of which some are unknown (null in files, NaN in frames)."""
    return np.ma.MaskedArray(values, mask=unknown)


def known(columns: Mapping[str, Any], name: str, rows: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """The known values of a column as floats, of all rows or of those chosen."""
    column = columns[name] if rows is None else columns[name][rows]
    values = column.compressed() if isinstance(column, np.ma.MaskedArray) else column
    return np.asarray(values, dtype=np.float64)
