"""Pictures of errors: predicted against measured, and residual against size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["pictures"]

Floats = NDArray[np.float64]
FEW = 500
MOST = 6000  # points of one series: more only makes the file heavy


def pictures(series: dict[str, tuple[Floats, Floats]], title: str, path: Path) -> None:
    """Two panels of (measured, predicted) seconds by name, written to ``path`` (PNG or SVG), whole or not at all."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, (measured, predicted) in series.items():
        some = slice(None, None, max(1, len(measured) // MOST))
        x, y = measured[some] * 1e3, predicted[some] * 1e3
        look: dict[str, Any] = {"markersize": 2 if len(x) > FEW else 7, "alpha": 0.4 if len(x) > FEW else 0.8}
        left.loglog(x, y, ".", label=name, rasterized=True, **look)
        right.semilogx(x, np.clip(100 * (y / x - 1), -100, 100), ".", rasterized=True, **look)
    ends = np.array(left.get_xlim())
    left.plot(ends, ends, color="black", linewidth=0.8)
    right.axhline(0, color="black", linewidth=0.8)
    left.set(xlabel="measured (ms)", ylabel="predicted (ms)", title=title)
    right.set(xlabel="measured (ms)", ylabel="error (%), cut at 100", title="residual against size")
    left.legend(markerscale=6 if max(len(m) for m, _ in series.values()) > FEW else 1, fontsize=8)
    beside = path.with_name(f"{path.stem}.tmp{path.suffix}")
    figure.savefig(beside, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
    beside.replace(path)
