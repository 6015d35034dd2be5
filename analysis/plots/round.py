"""One decoding round drawn to scale: passes over time, bytes from each memory, and who attends to whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.plots.style import CAUSES, COLOURS, Look, housed, new_axes, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from analysis.round_picture import Attends, Round, Step

__all__ = ["attention_mask", "bytes_moved", "round_figure", "round_timeline"]

MOVED = {
    "weights": CAUSES["weights"],
    "kv": CAUSES["kv"],
    "activations": CAUSES["activations"],
    "on chip": CAUSES["onchip"],
    "links": CAUSES["link"],
}
MEMORIES = (("main memory", ("weights", "kv", "activations")), ("on chip", ("on chip",)), ("links", ("links",)))
CELLS = ((0, "white", ""), (1, COLOURS[5], "cached"), (2, COLOURS[0], "token of this round"),
         (3, COLOURS[4], "projected from the primary"))  # fmt: skip
NARROW = 0.07  # of the round: a pass shorter than that has no room for its name
MOST_NAMES = 40


@housed
def round_figure(one: Round) -> Figure:
    """All of a round: its passes to scale, under them the bytes they move, beside them the mask."""
    figure = new_figure(12, 5.2)
    grid = figure.add_gridspec(2, 2, width_ratios=(1.9, 1), height_ratios=(1, 1))
    round_timeline(one, axes=figure.add_subplot(grid[0, 0]))
    bytes_moved(one, axes=figure.add_subplot(grid[1, 0]))
    attention_mask(one.attends, axes=figure.add_subplot(grid[:, 1]))
    each = f"{one.tokens:.3g} tokens a sequence" if one.tokens != 1 else "one token a sequence"
    head = f"one {one.policy} round on {one.device}: {one.seconds * 1e3:.4g} ms, {each}"
    figure.suptitle(f"{head}; batch {one.batch:,}, context {one.context:,}", fontsize=11)
    return figure


@housed
def round_timeline(one: Round, axes: Axes | None = None) -> Axes:
    """A lane for each model and the host, a bar for each pass, its seconds by what bound it."""
    lanes = _lanes(one.steps)
    axes = new_axes(axes, 8, 1.2 + 0.5 * len(lanes))
    seen: set[str] = set()
    if one.host_s:
        lanes = ["host", *lanes]
        _bar(axes, lanes.index("host"), 0.0, one.host_s, CAUSES["host"], "host", seen)
    for step in one.steps:
        at, lane = step.start_s, lanes.index(step.lane)
        for cause, look in CAUSES.items():
            if part := step.causes.get(cause, 0.0):
                _bar(axes, lane, at, part, look, cause, seen)
                at += part
        if step.seconds > NARROW * one.seconds:
            axes.text(
                (step.start_s + step.seconds / 2) * 1e3, lane - 0.36, step.label, ha="center", va="bottom", fontsize=7
            )
    axes.set_yticks(range(len(lanes)), lanes)
    axes.set(xlabel="time within the round (ms)", xlim=(0, one.seconds * 1e3), ylim=(len(lanes) - 0.5, -0.75))
    axes.legend(ncols=len(seen), loc="upper left", bbox_to_anchor=(0, -0.28), title="bound by", alignment="left")
    return axes


def _bar(axes: Axes, lane: int, start_s: float, seconds: float, look: Look, name: str, seen: set[str]) -> None:
    axes.barh(lane, seconds * 1e3, left=start_s * 1e3, height=0.6, color=look.colour, hatch=look.hatch,
              edgecolor="white", lw=0.6, label="_" if name in seen else name)  # fmt: skip
    seen.add(name)


def _lanes(steps: Sequence[Step]) -> list[str]:
    return list(dict.fromkeys(step.lane for step in steps))


@housed
def bytes_moved(one: Round, axes: Axes | None = None) -> Axes:
    """GB that the passes of each lane move through each memory of one device, all to one scale."""
    lanes = _lanes(one.steps)
    places = [(lane, memory, kinds) for lane in lanes for memory, kinds in MEMORIES if _bytes(one, lane, kinds)]
    axes = new_axes(axes, 8, 1.2 + 0.4 * len(places))
    for row, (lane, _, kinds) in enumerate(places):
        left = 0.0
        for kind in kinds:
            part = _bytes(one, lane, (kind,)) / 1e9
            axes.barh(row, part, left=left, height=0.6, color=MOVED[kind].colour, hatch=MOVED[kind].hatch,
                      edgecolor="white", lw=0.6)  # fmt: skip
            left += part
        axes.annotate(f"{left:.3g}", (left, row), (3, 0), textcoords="offset points", va="center", fontsize=7)
    axes.set_yticks(range(len(places)), [f"{lane.split(':')[0]}, {memory}" for lane, memory, _ in places])
    axes.set(xlabel="bytes moved in the round, of one device (GB)", ylim=(len(places) - 0.5, -0.5))
    axes.margins(x=0.08)
    return axes


def _bytes(one: Round, lane: str, kinds: Sequence[str]) -> float:
    return float(sum(step.moved[kind] for step in one.steps if step.lane == lane for kind in kinds))


@housed
def attention_mask(attends: Attends, axes: Axes | None = None) -> Axes:
    """A row for each token that a pass runs, a column for each that it may attend to."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    axes = new_axes(axes, 5, 4.6)
    cells = np.asarray(attends.cells)
    colours = ListedColormap([colour for _, colour, _ in CELLS])
    axes.pcolormesh(cells, cmap=colours, vmin=-0.5, vmax=len(CELLS) - 0.5, edgecolors="#dddddd", lw=0.2)
    axes.axvline(attends.cached, color="black", lw=1.2, ls="-", marker="")
    axes.set(xlim=(0, cells.shape[1]), ylim=(cells.shape[0], 0), title=attends.title)
    _names(axes.set_yticks, attends.rows)
    _names(axes.set_xticks, attends.columns, rotation=90)
    axes.grid(False)
    present = [
        Patch(facecolor=c, edgecolor="#999999", label=label)
        for code, c, label in CELLS
        if code and (cells == code).any()
    ]
    axes.legend(handles=present, loc="upper left", bbox_to_anchor=(0, -0.2), ncols=2)
    axes.set_xlabel("attends to (left of the line: cached, not to scale)")
    return axes


def _names(put: Any, names: Sequence[str], **style: Any) -> None:
    """Names in the middle of their cells; a run of equal ones once; every so many where there are too many."""
    runs = [i for i, name in enumerate(names) if not i or name != names[i - 1]]
    ends = [*runs[1:], len(names)]
    every = -(-len(runs) // MOST_NAMES)
    shown = list(zip(runs, ends, strict=True))[::every]
    put([float(np.mean(pair)) for pair in shown], [names[first] for first, _ in shown], fontsize=6, **style)
