"""The page's figures as Plotly takes them: plain dictionaries, made from an answer without any plotting library.

Each has a caption that says in words what is to be seen, for those who cannot see it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np

from analysis.plots.style import BLUE, CAUSES, GREY, INK, RED, Look
from sim.app.answer import Answer

__all__ = ["TALL", "WORDS", "Drawn", "figures", "latency_figure"]

TALL = 330  # pixels
FAINT = 0.35

PATTERNS = {"": "", "///": "/", "...": ".", "xxx": "x", "\\\\\\": "\\", "---": "-"}
WORDS: Mapping[str, str] = {
    "weights": "reading weights", "kv": "reading the KV cache", "activations": "moving activations",
    "compute": "arithmetic", "onchip": "on-chip memory", "link": "the link between devices",
    "overhead": "launching kernels", "host": "the host",
}  # fmt: skip
"""A cause in words."""


@dataclass(frozen=True)
class Drawn:
    """A figure (``data`` and ``layout``) and what it shows, in a sentence."""

    figure: dict[str, Any]
    caption: str


def figures(found: Answer) -> dict[str, Drawn]:
    """By name: roofline, step, gamma, batch."""
    return {
        "roofline": _roofline(found),
        "step": _step(found),
        "gamma": _gamma(found),
        "batch": _batch(found),
    }


def _roofline(found: Answer) -> Drawn:
    dots = [p for p in found.points if p.attained_flops > 0 and isfinite(p.intensity) and p.intensity > 0]
    reach = [0.1, *(p.intensity / 2 for p in dots)], [3000.0, *(p.intensity * 2 for p in dots)]
    low, high = min(reach[0]), max(reach[1])
    roofs = [_roof(name, rate, found.memory_Bps, low, high) for name, rate in found.roofs.items()]
    looks = (("prefill", RED, "square"), ("decode", BLUE, "circle"))
    data = roofs + [_dots([p for p in dots if p.phase == phase], phase, *look) for phase, *look in looks]
    ridge = max(found.roofs.values()) / found.memory_Bps
    left = sum(p.seconds for p in dots if p.phase == "decode" and p.intensity < ridge)
    whole = sum(p.seconds for p in dots if p.phase == "decode") or 1.0
    caption = (
        f"Ridge point {ridge:,.0f} FLOP per byte. {left / whole:.0%} of a decode step's time is in kernels to the left"
        " of it, which memory bounds."
    )
    return Drawn(_figure(data, "FLOP per byte of main memory", "FLOP per second", log="xy"), caption)


def _roof(name: str, rate: float, memory_Bps: float, low: float, high: float) -> dict[str, Any]:
    ridge = rate / memory_Bps
    x = [low, ridge, high] if low < ridge < high else [low, high]
    dash = "dot" if name == "vector units" else "solid"
    return {"type": "scatter", "mode": "lines", "x": x, "y": [min(rate, at * memory_Bps) for at in x],
            "name": f"{name} {rate / 1e12:,.4g} TFLOP/s",
            "line": {"color": INK, "width": 1.5, "dash": dash}}  # fmt: skip


def _dots(points: Sequence[Any], phase: str, colour: str, symbol: str) -> dict[str, Any]:
    total = sum(p.seconds for p in points) or 1.0
    return {
        "type": "scatter", "mode": "markers", "name": phase,
        "x": [p.intensity for p in points], "y": [p.attained_flops for p in points],
        "text": [f"{p.op}: {p.seconds * 1e3:.3g} ms, {p.bound}" for p in points], "hoverinfo": "text+name",
        "marker": {"color": colour, "symbol": symbol, "size": [6 + 22 * (p.seconds / total) ** 0.5 for p in points],
                   "line": {"color": "white", "width": 1}},
    }  # fmt: skip


def _step(found: Answer) -> Drawn:
    table = found.by_batch
    near = table["batch"] <= max(64, 4 * found.question.batch)  # the largest would flatten all others
    labels = [str(batch) for batch in table["batch"][near]]
    faint = [1.0 if fits else FAINT for fits in table["fits"][near]]
    data = [
        {"type": "bar", "x": labels, "y": _list(table[cause][near]), "name": cause,
         "marker": {"color": look.colour, "opacity": faint, "pattern": _pattern(look)}}
        for cause, look in CAUSES.items() if cause in table and np.any(table[cause][near] > 0)
    ]  # fmt: skip
    share = found.parts[found.bound] / found.round_ms
    said = f"At batch {found.question.batch} a round takes {found.round_ms:.3g} ms; {share:.0%} of it is "
    layout: dict[str, Any] = {"barmode": "stack", "bargap": 0.15, "xaxis": {"type": "category"}}
    figure = _figure(data, "batch (sequences decoding together)", "one round (ms)", **layout)
    faintly = "" if min(faint) == 1.0 else " Faint: does not fit."
    place = labels.index(str(found.question.batch))  # of a category, its number
    return Drawn(_marked(figure, place), f"{said}{WORDS[found.bound]}.{faintly}")


def _pattern(look: Look) -> dict[str, Any]:
    """The hatch, for readers without colour."""
    return {"shape": PATTERNS[look.hatch], "bgcolor": look.colour, "fgcolor": "white", "size": 7, "solidity": 0.35}


def _gamma(found: Answer) -> Drawn:
    if not found.by_gamma:
        return Drawn(_figure([], "gamma", "speedup"), f"{found.question.policy} has no gamma to choose.")
    gamma, speedup = found.by_gamma["gamma"], found.by_gamma["speedup"]
    best = int(np.argmax(speedup))
    caption = f"Best gamma at batch {found.question.batch}: {gamma[best]}, speedup {speedup[best]:.2f}."
    figure = _figure(_line(gamma, speedup), "gamma (drafted tokens a round)", "speedup over autoregressive")
    return Drawn(_marked(_even(figure), found.question.gamma), caption)


def _batch(found: Answer) -> Drawn:
    batch, speedup = found.by_batch["batch"], found.by_batch["speedup"]
    loses = batch[speedup < 1.0 - 1e-9]
    ends = f"It stops paying at batch {loses[0]}." if len(loses) else "It pays, or costs nothing, at every batch shown."
    same = np.allclose(speedup, 1.0)
    line = _line(batch, speedup)
    line[0]["marker"] = {"symbol": ["circle" if fits else "circle-open" for fits in found.by_batch["fits"]], "size": 8}
    figure = _figure(line, "batch", "speedup over autoregressive", log="x")
    said = "Autoregressive decoding is what it is compared with." if same else ends
    said += "" if np.all(found.by_batch["fits"]) else " Hollow: does not fit."
    return Drawn(_marked(_even(figure), found.question.batch), said)


def _line(x: Any, y: Any) -> list[dict[str, Any]]:
    return [{"type": "scatter", "mode": "lines+markers", "x": _list(x), "y": _list(y), "name": "speedup",
             "line": {"color": BLUE, "width": 2}, "showlegend": False}]  # fmt: skip


def latency_figure(percentiles: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Share of requests below a time: one line each for TTFT and TPOT, their percentiles 0 to 100 in milliseconds."""
    looks = {"ttft_ms": ("TTFT", RED, "solid"), "tpot_ms": ("TPOT", BLUE, "dash")}
    data = [
        {"type": "scatter", "mode": "lines", "x": list(times), "y": _list(np.linspace(0, 1, len(times))),
         "name": looks[name][0], "line": {"color": looks[name][1], "dash": looks[name][2], "width": 2}}
        for name, times in percentiles.items() if len(times)
    ]  # fmt: skip
    return _figure(data, "milliseconds", "share of requests below", log="x")


def _figure(data: list[dict[str, Any]], x: str, y: str, log: str = "", **layout: Any) -> dict[str, Any]:
    grid = {"gridcolor": "#dddddd", "zeroline": False, "linecolor": GREY, "ticks": "outside", "automargin": True}
    scale = {"type": "log", "exponentformat": "SI extended"}
    axes = {
        name: {**grid, "title": {"text": text}, **(scale if name[0] in log else {}), **layout.pop(name, {})}
        for name, text in (("xaxis", x), ("yaxis", y))
    }
    fixed = {"font": {"family": "DejaVu Sans, sans-serif", "size": 12, "color": INK}, "plot_bgcolor": "white",
             "margin": {"l": 60, "r": 12, "t": 12, "b": 48}, "height": TALL, "hovermode": "closest",
             "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"}}  # fmt: skip
    return {"data": data, "layout": {**fixed, **axes, **layout}}


def _marked(figure: dict[str, Any], x: Any) -> dict[str, Any]:
    """A dotted line where the slider stands."""
    here = {"type": "line", "xref": "x", "yref": "paper", "x0": x, "x1": x, "y0": 0, "y1": 1,
            "line": {"color": INK, "dash": "dot", "width": 1.5}}  # fmt: skip
    figure["layout"]["shapes"] = [*figure["layout"].get("shapes", []), here]
    return figure


def _even(figure: dict[str, Any]) -> dict[str, Any]:
    """A line at 1: neither won nor lost."""
    even = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 1, "y1": 1, "line": {"color": GREY, "width": 1}}
    figure["layout"]["shapes"] = [even]
    figure["layout"]["yaxis"]["rangemode"] = "tozero"
    return figure


def _list(values: Any) -> list[Any]:
    found: list[Any] = np.asarray(values).tolist()
    return found
