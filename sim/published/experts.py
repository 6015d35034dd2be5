"""Mixtures of experts: what a token uses, and that verifying two tokens reads more than one; arithmetic intensity."""

from __future__ import annotations

from sim.analytic.cost import PassCost
from sim.analytic.model import Attention, Ffn, Layer, ModelShape
from sim.analytic.work import Work
from sim.published import shapes
from sim.published.table import Published, Table


def used(row: Published, table: Table) -> float:
    """Percent of the FFN weights that one token reads where one of four experts is chosen."""
    block = Layer(Attention(8, 8, 64, 64), Ffn(2048, experts=4, experts_per_token=1))
    shape = ModelShape("four-experts", 512, 32000, (block,))
    cost = PassCost(shape, shapes.device("h100-sxm"))
    read = sum(float(op.weight_bytes) for op in cost.ops(Work.decode(1, 64)) if op.name in ("moe.up", "moe.down"))
    held = sum(count for name, count in block.ffn.parameters(512).items() if name != "moe.router")
    return 100 * read / (held * 2)


def verification(row: Published, table: Table) -> float:
    """Seconds of a pass over two tokens over one, eight of 256 experts a token, batch 1."""
    cost = PassCost(shapes.shape("deepseek-v3"), shapes.device("h200-sxm"))
    windows = cost.shape.windows
    two, one = (float(cost.seconds(Work.decode(1, 512, new, windows))) for new in (2, 1))
    return two / one


def intensity(row: Published, table: Table) -> float:
    """FLOPs a byte of a verification of gamma + 1 tokens over those of a step."""
    cost = PassCost(shapes.shape("llama-3.1-8b"), shapes.device("h100-sxm"))
    found = [cost.counts(Work.decode(1, 64, new)) for new in (int(row.gamma) + 1, 1)]
    many, one = (float(counts["flops"] / counts["hbm_bytes"]) for counts in found)
    return many / one
