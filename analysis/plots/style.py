"""The house style, and how a figure is opened and written. No window opens; no global state outlives a call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = [
    "CAUSES", "COLOURS", "PHASES", "SUFFIXES", "Look", "Table", "house_style", "housed", "log_scale", "new_axes",
    "new_figure", "plain_ticks", "save_figure",
]  # fmt: skip

Table = Mapping[str, Any]  # columns of equal length by name: a dictionary of arrays, or a pandas frame
P = ParamSpec("P")
T = TypeVar("T")

HOUSE = Path(__file__).with_name("house.mplstyle")
SUFFIXES = (".png", ".svg", ".pdf")
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#882255", "#e69f00", "#56b4e9", "#222222", "#cc79a7")
BLUE, RED, GREEN, WINE, ORANGE, SKY, INK, PINK = COLOURS
GREY = "#777777"
TICKS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


class Look(NamedTuple):
    """How one part of a stack is filled: its colour, and a hatch for readers without colour."""

    colour: str
    hatch: str


CAUSES: Mapping[str, Look] = {
    "weights": Look(BLUE, ""),
    "kv": Look(SKY, "///"),
    "activations": Look(GREEN, "..."),
    "compute": Look(RED, ""),
    "onchip": Look(ORANGE, "xxx"),
    "link": Look(PINK, "\\\\\\"),
    "overhead": Look(WINE, "---"),
    "host": Look(INK, ""),
}
"""What a second is spent on (``sim.analytic.roofline.CAUSES`` and the engine's host time), the same in every figure."""
PHASES = {"prefill": (RED, "s"), "decode": (BLUE, "o"), "mixed": (GREEN, "^")}


@contextmanager
def house_style() -> Iterator[None]:
    """Matplotlib's defaults and the house style on them, whatever the caller has set; put back afterwards."""
    from matplotlib.style import context

    with context(["default", _house()]):
        yield


@lru_cache(maxsize=1)
def _house() -> dict[str, Any]:
    """The style file, read once; defaults that it does not name are left out."""
    from matplotlib import rc_params_from_file

    found: Any = rc_params_from_file(str(HOUSE), use_default_template=False)
    return dict(found)


def housed(draw: Callable[P, T]) -> Callable[P, T]:
    """Run a drawing function in the house style."""

    @wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> T:
        with house_style():
            return draw(*args, **kwargs)

    return inside


def new_figure(width: float = 6.4, height: float = 4.0) -> Figure:
    """An empty figure in inches that no window manager knows of."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new_axes(axes: Axes | None = None, width: float = 6.4, height: float = 4.0) -> Axes:
    """The axes given, or those of a new figure."""
    if axes is not None:
        return axes
    made: Axes = new_figure(width, height).subplots()
    return made


@housed
def save_figure(figure: Figure | Axes, path: str | Path) -> None:
    """Write a picture, the figure or that of the axes; the suffix says the format (``SUFFIXES``), PNG at 150 dpi.

    Raises ValueError, one line, for another suffix or no place.
    """
    target, whole = Path(path), whole_figure(figure)
    if target.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: a picture ends in {', '.join(SUFFIXES)}, not {target.suffix or 'nothing'!r}")
    try:
        with settled(whole):
            whole.savefig(target, dpi=150, metadata=_undated(target.suffix.lower()))
    except OSError as error:
        raise ValueError(f"{path}: cannot be written: {error.strerror or error}") from None


def whole_figure(figure: Figure | Axes) -> Figure:
    """The figure itself, or the one that the axes stand in."""
    found: Any = figure.figure if hasattr(figure, "plot") else figure
    return found  # type: ignore[no-any-return]


@contextmanager
def settled(figure: Figure) -> Iterator[None]:
    """Lay the figure out, then keep it so: the engine's answer depends on what it is asked at and how often."""
    engine = figure.get_layout_engine()
    for _ in range(2):
        figure.draw_without_rendering()
    figure.set_layout_engine("none")
    yield
    figure.set_layout_engine(engine)


def _undated(suffix: str) -> dict[str, Any]:
    """No date in the file: the same picture is the same bytes."""
    return {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(suffix, {})


def log_scale(axes: Axes, *, x: int = 0, y: int = 0) -> None:
    """Logarithmic scales to these bases (0: leave that axis), ticks as people write numbers: 0.1, 100, 10k."""
    for base, axis, scale in ((x, axes.xaxis, axes.set_xscale), (y, axes.yaxis, axes.set_yscale)):
        if base:
            scale("log", base=base)
            plain_ticks(axis, base)


def plain_ticks(axis: Axis, base: int = 10) -> None:
    """Write the ticks of a logarithmic axis as people do; more where few powers of ten are in sight."""
    from matplotlib.ticker import FuncFormatter

    def between(value: float, _: object = None) -> str:
        low, high = axis.get_view_interval()
        if base != 10 or low <= 0 or high / low > 30:
            return ""
        return tick(value) if f"{value:e}"[0] in ("25" if high / low > 8 else "23457") else ""

    axis.set_major_formatter(FuncFormatter(tick))
    axis.set_minor_formatter(FuncFormatter(between))


def tick(value: float, _: object = None) -> str:
    """A number as a label: 0.1, 100, 1,024, 10k."""
    if 1000 <= value < 1e6 and value % 1000:
        return f"{value:,.0f}"
    for size, letter in TICKS:
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
