"""Draft and verify: tokens a round, trees, and what heads gave on models of several sizes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from analysis.plots.style import COLOURS, GREY, Table, housed, new_axes
from sim import theory
from sim.policies.tree_shapes import Ranks, Tree

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "expected_tokens", "expected_tokens_table", "medusa_sizes", "medusa_sizes_table", "token_tree", "tree_table",
]  # fmt: skip

Columns = dict[str, NDArray[Any]]
HATCHES = ("", "///", "...", "xxx")


# -- the classic figure


def expected_tokens_table(alphas: Sequence[float], gammas: Sequence[int]) -> Columns:
    """Columns alpha, gamma and tokens = (1 - alpha^(gamma + 1)) / (1 - alpha) (Leviathan et al. 2023, equation 1)."""
    pairs = [(float(alpha), int(gamma)) for gamma in gammas for alpha in alphas]
    tokens = [theory.expected_tokens(alpha, gamma) for alpha, gamma in pairs]
    alpha, gamma = zip(*pairs, strict=True)
    return {"alpha": np.array(alpha), "gamma": np.array(gamma), "tokens": np.array(tokens)}


@housed
def expected_tokens(table: Table, title: str = "", axes: Axes | None = None) -> Axes:
    """Tokens a round over alpha, a line for each gamma; dotted: the bound 1 / (1 - alpha) of any gamma."""
    axes = new_axes(axes)
    gamma = np.asarray(table["gamma"])
    for value in dict.fromkeys(gamma.tolist()):
        here = gamma == value
        axes.plot(np.asarray(table["alpha"])[here], np.asarray(table["tokens"])[here], label=f"gamma {value}",
                  markevery=max(1, int(here.sum()) // 8))  # fmt: skip
    top = float(np.max(table["tokens"])) * 1.05
    bound = np.linspace(0.0, 1.0 - 1.0 / top, 200)
    axes.plot(bound, 1.0 / (1.0 - bound), color=GREY, ls=":", marker="", label="any gamma, 1 / (1 - alpha)")
    axes.set(xlabel="acceptance rate alpha", ylabel="expected tokens a round", title=title)
    axes.set(xlim=(0, 1), ylim=(0.9, top))
    axes.legend()
    return axes


# -- a tree of drafts


def tree_table(tree: Tree, ranks: Ranks) -> Columns:
    """Columns path (ranks, best 0), parent (row, -1: the last token), depth and chance that its path is accepted.

    1 plus the chances add up to the tokens of a round (Cai et al. 2024, arXiv 2401.10774, section 2.3).
    """
    return {
        "path": np.array([".".join(map(str, path)) for path in tree.paths], dtype=object),
        "parent": np.array(tree.parents),
        "depth": np.array([len(path) for path in tree.paths]),
        "chance": np.array([ranks.of(path) for path in tree.paths]),
    }


@housed
def token_tree(table: Table, title: str = "", axes: Axes | None = None) -> Axes:
    """The tree from the root down: a node's area is the chance of its path, written beside the likelier ones."""
    parent, depth, chance = (np.asarray(table[name]) for name in ("parent", "depth", "chance"))
    x = _places(parent)
    axes = new_axes(axes, min(12.0, 5.0 + 0.08 * len(x)), 1.6 + 0.9 * int(depth.max()))
    root = float(np.mean(x[parent == -1]))
    for i, above in enumerate(parent):
        start = (root, 0.0) if above < 0 else (x[above], -float(depth[above]))
        axes.plot([start[0], x[i]], [start[1], -float(depth[i])], color=GREY, lw=0.4 + 3 * float(chance[i]), ls="-",
                  marker="", zorder=1)  # fmt: skip
    axes.scatter([root], [0.0], s=300, color=COLOURS[6], marker="s", zorder=3)
    dots = axes.scatter(x, -depth, s=12 + 290 * chance, c=chance, cmap="viridis_r", vmin=0, vmax=1, edgecolor="black",
                        lw=0.5, zorder=3)  # fmt: skip
    for i in np.argsort(-chance, kind="stable")[:10]:
        axes.annotate(
            f"{chance[i]:.2f}", (x[i], -depth[i]), (0, 9), textcoords="offset points", ha="center", fontsize=7
        )
    axes.figure.colorbar(dots, ax=axes, label="chance that the path is accepted", shrink=0.8)
    axes.set_yticks(range(-int(depth.max()), 1), [str(d) for d in range(int(depth.max()), -1, -1)])
    axes.set(xticks=[], ylabel="depth (tokens after the last one)", ylim=(-float(depth.max()) - 0.5, 0.5))
    total = 1.0 + float(chance.sum())
    axes.set_title(title or f"{len(chance)} nodes, {total:.2f} tokens a round")
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    return axes


def _places(parent: NDArray[np.int64]) -> NDArray[np.float64]:
    """Where nodes stand from left to right: leaves in order, every other node over the middle of its children."""
    children: dict[int, list[int]] = {}
    for node, above in enumerate(parent.tolist()):
        children.setdefault(above, []).append(node)
    x, leaf, order = np.zeros(len(parent)), 0, []
    stack = list(reversed(children[-1]))
    while stack:
        node = stack.pop()
        order.append(node)
        if node in children:
            stack += reversed(children[node])
        else:
            x[node], leaf = leaf, leaf + 1
    for node in reversed(order):
        if node in children:
            x[node] = float(np.mean([x[child] for child in children[node]]))
    return x


# -- what was published by model size


class Row(Protocol):
    """A published number (``sim.published.table.Published``)."""

    method: str
    model: str
    quantity: str
    task: str
    value: float | None


def medusa_sizes_table(rows: Iterable[Row]) -> Columns:
    """Columns method, model, billions (read off the model's name) and speedup, of Medusa's published speedups on
    MT-Bench.
    """
    found = []
    for row in rows:
        size = row.model.rpartition("-")[2].removesuffix("B")
        wanted = row.method.startswith("medusa-") and row.quantity == "speedup" and row.task == "MT-Bench"
        if wanted and row.value is not None and size.isdecimal():
            found.append((row.method, row.model, float(size), row.value))
    found.sort(key=lambda r: (r[2], r[1], r[0]))
    return {
        "method": np.array([r[0] for r in found], dtype=object),
        "model": np.array([r[1] for r in found], dtype=object),
        "billions": np.array([r[2] for r in found]),
        "speedup": np.array([r[3] for r in found]),
    }


@housed
def medusa_sizes(table: Table, title: str = "", axes: Axes | None = None) -> Axes:
    """A group of bars for each model, from the smallest, a bar for each method."""
    axes = new_axes(axes)
    models = list(dict.fromkeys(table["model"]))
    methods = sorted(set(table["method"]))
    width = 0.8 / len(methods)
    for number, method in enumerate(methods):
        here = np.asarray(table["method"]) == method
        place = np.array([models.index(m) for m in np.asarray(table["model"])[here]]) + (number + 0.5) * width - 0.4
        bars = axes.bar(place, np.asarray(table["speedup"])[here], width, color=COLOURS[(0, 4, 2, 7)[number % 4]],
                        hatch=HATCHES[number % 4], edgecolor="white", label=method)  # fmt: skip
        axes.bar_label(bars, fmt="%.2f", fontsize=7, padding=2)
    axes.set_xticks(range(len(models)), models)
    axes.axhline(1.0, color=GREY, lw=0.8, ls=":", marker="")
    axes.set(xlabel="model", ylabel="speedup over autoregressive decoding", title=title)
    axes.legend(loc="lower right", frameon=True)
    return axes
