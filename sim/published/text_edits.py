"""EdiT5 beside T5: what one decoder step takes on paper, and a line through the two profiled steps."""

from __future__ import annotations

from sim.analytic.cost import PassCost
from sim.analytic.precision import Precision
from sim.analytic.work import Work
from sim.published import shapes
from sim.published.table import Published, Table

INPUT, GPU = 23, "v100-sxm2-32gb"  # the slides name no GPU; any of its time is tens of times faster on paper
LAYERS = {"t5_step_ms": 12, "edit5_step_ms": 1}


def step_ms(row: Published, table: Table) -> float:
    """Milliseconds of a decoder step: fixed and by layer, from the two steps of 12 layers and of one."""
    many, one = (table.value(table.one(row, quantity=name).id) for name in LAYERS)
    layer = (many - one) / (LAYERS["t5_step_ms"] - 1)
    return one + (LAYERS[row.quantity] - 1) * layer


def roofline_step_ms(row: Published, table: Table) -> float:
    """Milliseconds of T5-base's decoder step in float32 by bytes over bandwidth."""
    cost = PassCost(shapes.shape("t5-v1.1-base"), shapes.device(GPU), Precision("fp32", "fp32", "fp32"))
    work = Work.decode(1, 16)._replace(cross_pairs=INPUT, cross_reads=INPUT)
    return float(cost.seconds(work)) * 1e3
