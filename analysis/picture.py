"""Figures for notebooks: an object that Jupyter shows, with no plug-in and no plotting state."""

from __future__ import annotations

from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING

from analysis.plots.style import house_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["LARGEST_BYTES", "Picture", "show"]

LARGEST_BYTES = 100_000  # of one picture in a notebook that is kept under version control


@dataclass(frozen=True)
class Picture:
    """One drawing, as SVG text or, where that would be large, as the bytes of a PNG; the other is None."""

    svg: str | None = field(default=None, repr=False)
    png: bytes | None = field(default=None, repr=False)

    def _repr_svg_(self) -> str | None:
        """Jupyter's question; None: ask for another format."""
        return self.svg

    def _repr_png_(self) -> bytes | None:
        """Likewise."""
        return self.png


def show(drawn: Axes | Figure) -> Picture:
    """The whole figure of ``drawn``, as the last line of a cell; the same figure is the same picture."""
    figure = drawn.figure if hasattr(drawn, "plot") else drawn
    vector = _written(figure, "svg")  # type: ignore[arg-type]
    if len(vector) <= LARGEST_BYTES:
        return Picture(svg=vector.decode("utf-8"))
    return Picture(png=_written(figure, "png"))  # type: ignore[arg-type]


def _written(figure: Figure, kind: str) -> bytes:
    buffer = BytesIO()
    with house_style():
        figure.savefig(buffer, format=kind, dpi=110, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()
